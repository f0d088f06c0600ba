/* A signal handler that writes one byte into a pipe, counts, and does nothing else.
 *
 * faulthandler's handler, which is the only other one that runs at once and can be installed from Python, walks the
 * frames of the interrupted thread.  That is made for processes that are dying: on some versions (3.13.0) it crashes
 * when the signal comes in the midst of a call.  This one is async-signal-safe: write(2), futex(2) (see
 * _core_lastresort.c), and the handler that was there before.
 *
 * One signal at a time; register again to change the descriptor, unregister to put back what was there.
 */
#include "_core.h"
#include <errno.h>
#include <signal.h>

static struct {
    volatile sig_atomic_t signum; /* 0: none */
    volatile int fd;
    volatile sig_atomic_t chain;
    struct sigaction before;
} report = {0, -1, 0, {.sa_flags = 0}};

static void
on_signal(int signum, siginfo_t *info, void *context)
{
    int saved = errno;
    if (report.fd >= 0) {
        ssize_t ignored = write(report.fd, "s", 1);
        (void)ignored; /* full: a request is pending anyway */
        LastResort_request();
    }
    if (report.chain) {
        if (report.before.sa_flags & SA_SIGINFO) {
            report.before.sa_sigaction(signum, info, context);
        }
        else if (report.before.sa_handler != SIG_DFL && report.before.sa_handler != SIG_IGN) {
            report.before.sa_handler(signum);
        }
    }
    errno = saved;
}

/* signal_register(signum, fd, chain) */
PyObject *
core_signal_register(PyObject *Py_UNUSED(module), PyObject *args)
{
    int signum, fd, chain;
    if (!PyArg_ParseTuple(args, "iip:signal_register", &signum, &fd, &chain)) {
        return NULL;
    }
    if (signum == SIGSEGV || signum == SIGBUS || signum == SIGFPE || signum == SIGILL || signum == SIGABRT) {
        PyErr_Format(PyExc_ValueError, "signal %d tells of a crash and cannot ask for a report", signum);
        return NULL;
    }
    if (report.signum != 0 && report.signum != signum) {
        PyErr_SetString(PyExc_RuntimeError, "another signal is registered");
        return NULL;
    }
    report.fd = fd;
    report.chain = chain;
    if (report.signum == 0) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = on_signal;
        sigemptyset(&action.sa_mask);
        /* With a handler of the program's, system calls are interrupted as they were; without one, not even those. */
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | (chain ? 0 : SA_RESTART);
        if (sigaction(signum, &action, &report.before) < 0) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        report.signum = signum;
    }
    Py_RETURN_NONE;
}

/* signal_unregister(signum): put back what was there, unless somebody has taken the signal since. */
PyObject *
core_signal_unregister(PyObject *Py_UNUSED(module), PyObject *args)
{
    int signum;
    if (!PyArg_ParseTuple(args, "i:signal_unregister", &signum)) {
        return NULL;
    }
    if (report.signum != signum || signum == 0) {
        Py_RETURN_FALSE;
    }
    report.fd = -1;
    report.chain = 0;
    report.signum = 0;
    if (sigaction(signum, &report.before, NULL) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_TRUE;
}
