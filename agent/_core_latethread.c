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
 * A child that was executed has no descriptors of the agent's until then, either.  Its thread waits for the time, or to
 * be hurried, on a condition of which nobody else knows: a fork's child, whose threads wait for descriptors, does not
 * use it.
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
#  include <time.h>
#  ifdef __linux__
#    include <sys/prctl.h>
#  endif

typedef struct {
    PyObject *function; /* owned */
    int64_t until_ns;
    nfds_t count;
    struct pollfd ready[];
} LateThread;

static pthread_mutex_t hurry_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t hurry_condition =
    PTHREAD_COND_INITIALIZER; /* waits by the wall clock: an early end does no harm */
static int hurried;

static void
wait_to_be_hurried(int64_t left_ns)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    int64_t nanoseconds = end.tv_nsec + (left_ns > 0 ? left_ns : 0);
    end.tv_sec += (time_t)(nanoseconds / 1000000000);
    end.tv_nsec = (long)(nanoseconds % 1000000000);
    pthread_mutex_lock(&hurry_mutex);
    while (!hurried && pthread_cond_timedwait(&hurry_condition, &hurry_mutex, &end) == 0) {
    }
    hurried = 0;
    pthread_mutex_unlock(&hurry_mutex);
}

static void *
begin_late(void *argument)
{
    LateThread *self = argument;
#  ifdef __linux__
    prctl(PR_SET_NAME, "concagent-agent"); /* at once: who counts the process's threads leaves it out */
#  endif
    if (self->count == 0) {
        wait_to_be_hurried(self->until_ns - now_ns());
    }
    while (self->count > 0) {
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
 * descriptors can be read or the time is over; without descriptors also when it is hurried. */
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

/* hurry_late_thread(): have a thread that waits for no descriptors begin now. */
PyObject *
core_hurry_late_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&hurry_mutex);
    hurried = 1;
    pthread_cond_signal(&hurry_condition);
    pthread_mutex_unlock(&hurry_mutex);
    Py_RETURN_NONE;
}

#else

PyObject *
core_hurry_late_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_NONE;
}

PyObject *
core_start_thread_late(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    PyErr_SetString(PyExc_NotImplementedError, "this system has no POSIX threads");
    return NULL;
}

#endif
