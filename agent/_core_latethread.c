/* A thread that Python does not know until there is something for it to do.
 *
 * Most children of a fork do little and end soon: they call exec, or _exit.  The agent must be there for those that do
 * not, and a report asked for by a signal cannot wait for the main thread, which may be blocked.  But a thread that
 * Python knows is one that the child did not start: it is in sys._current_frames(), it takes its turns with the GIL,
 * and the fork lasts until it is born.  So in a child the agent's thread first waits without a Python state, for the
 * descriptors that its poll serves, or for the time of its first look; only then it takes the GIL and becomes a thread
 * of the interpreter.
 *
 * Before that it takes no lock and allocates nothing, so a fork beside it is harmless.  All signals but faults of its
 * own are blocked in it, as in all threads of the agent.
 *
 * Limits   a process that has one is no more of one thread for the operating system.  Where there are no POSIX threads
 *          there is no such thread, and no fork either.
 */
#include "_core.h"

#if defined(__unix__) || defined(__APPLE__)
#  include <errno.h>
#  include <poll.h>
#  include <pthread.h>
#  include <signal.h>

typedef struct {
    PyObject *function; /* owned */
    int64_t until_ns;
    nfds_t count;
    struct pollfd ready[];
} LateThread;

static void *
begin_late(void *argument)
{
    LateThread *self = argument;
    for (;;) {
        int64_t left_ns = self->until_ns - now_ns();
        int left_ms = left_ns <= 0 ? 0 : left_ns / 1000000 >= INT_MAX ? INT_MAX : (int)(left_ns / 1000000) + 1;
        /* A descriptor that was closed meanwhile counts as ready: somebody has to look. */
        if (poll(self->ready, self->count, left_ms) != -1 || errno != EINTR) {
            break;
        }
    }
    if (Py_IsInitialized()) {
        PyGILState_STATE state = PyGILState_Ensure();
        PyObject *function = self->function;
        PyMem_RawFree(self);
        PyObject *result = PyObject_CallNoArgs(function);
        if (result == NULL) {
            PyErr_WriteUnraisable(function);
        }
        Py_XDECREF(result);
        Py_DECREF(function);
        PyGILState_Release(state);
    }
    return NULL;
}

static int
create(LateThread *self, pthread_t *thread)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}; /* as in _real.py */
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        sigdelset(&all, faults[i]);
    }
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited */
    int failed = pthread_create(thread, NULL, begin_late, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

/* start_thread_late(function, descriptors, timeout_ns): call function() in a thread of its own, not before one of the
 * descriptors can be read or the time is over. */
PyObject *
core_start_thread_late(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *function, *numbers;
    long long timeout_ns;
    if (!PyArg_ParseTuple(args, "OO!L:start_thread_late", &function, &PyTuple_Type, &numbers, &timeout_ns)) {
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(numbers);
    LateThread *self = PyMem_RawCalloc(1, sizeof *self + (size_t)count * sizeof *self->ready);
    if (self == NULL) {
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        long number = PyLong_AsLong(PyTuple_GET_ITEM(numbers, i));
        if (number == -1 && PyErr_Occurred()) {
            PyMem_RawFree(self);
            return NULL;
        }
        self->ready[i] = (struct pollfd){(int)number, POLLIN, 0};
    }
    self->function = Py_NewRef(function);
    self->count = (nfds_t)count;
    self->until_ns = now_ns() + (timeout_ns > 0 ? timeout_ns : 0);
    pthread_t thread;
    int failed = create(self, &thread);
    if (failed) {
        Py_DECREF(function);
        PyMem_RawFree(self);
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    pthread_detach(thread);
    Py_RETURN_NONE;
}

#else

PyObject *
core_start_thread_late(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    PyErr_SetString(PyExc_NotImplementedError, "this system has no POSIX threads");
    return NULL;
}

#endif
