/* The permits of semaphores: taken and given back in one step where nobody is inside, and who has them.
 *
 * `acquire` and `release` are a shortcut: with the GIL held and the semaphore's inner lock free nobody is inside, so
 * "is there a permit? take it; note who has it" is one step without the lock.  Where nothing is left or somebody waits
 * they call the original and note the permit afterwards.  Everything else (arguments, a derived class, the first use)
 * is left to the Python hook, which decides what a permit's holder is; see hooks/sync.py.
 *
 * Nothing runs while a shortcut looks: attributes are read from the instances of exactly the library's classes, a
 * number and a dictionary keyed by records run no code, and integers are no business of the garbage collector.
 */
#include "_core_sync.h"

/* Who has permits of a semaphore; all is borrowed. */
typedef struct {
    PyObject *cell;
    PyObject *holders; /* dict: record -> number of permits */
    long permits;      /* of the calling thread */
} Permits;

/* A semaphore that nobody is inside of, as its methods would find it. */
typedef struct {
    long value;
    PyObject *cond; /* borrowed */
} Quiet;

/* Look who has permits; 0: nothing is known yet, or is not to be. */
static int
find_permits(PyObject *semaphore, Permits *found)
{
    if (!core.recording || tls_record == NULL || tls_record->agent || (found->cell = peek(semaphore, s_cell)) == NULL ||
        (found->holders = peek(found->cell, s_holders)) == NULL || !PyDict_CheckExact(found->holders)) {
        return 0;
    }
    PyObject *permits = PyDict_GetItemWithError(found->holders, (PyObject *)tls_record);
    found->permits = permits == NULL ? 0 : PyLong_AsLong(permits);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return 1;
}

/* Look at a semaphore; 0: somebody is inside. */
static int
is_quiet(PyObject *semaphore, Quiet *found)
{
    PyObject *lock, *number;
    if ((found->cond = peek(semaphore, s_cond)) == NULL || Py_TYPE(found->cond) != lib.condition ||
        (lock = peek(found->cond, s_lock)) == NULL || Py_TYPE(lock) != LockType || ((Lock *)lock)->locked != FREE ||
        (number = peek(semaphore, s_value)) == NULL || !PyLong_CheckExact(number)) {
        return 0;
    }
    int overflow;
    found->value = PyLong_AsLongAndOverflow(number, &overflow);
    if (overflow || PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return 1;
}

/* Note how many permits the thread has now. */
static void
note_permits(Permits *found, long permits)
{
    PyObject *count = permits > 0 ? PyLong_FromLong(permits) : NULL;
    if (count != NULL) {
        PyDict_SetItem(found->holders, (PyObject *)tls_record, count);
        Py_DECREF(count);
    }
    else if (found->permits > 0) {
        PyDict_DelItem(found->holders, (PyObject *)tls_record);
    }
    if (permits < 0) { /* given back by a thread that took none */
        PyObject_GenericSetAttr(found->cell, s_foreign, Py_True);
    }
    PyErr_Clear(); /* the semaphore is right, whatever we know of it */
}

/* Set the semaphore's value; -1: nothing was done. */
static int
set_value(PyObject *semaphore, long value)
{
    PyObject *number = PyLong_FromLong(value);
    int result = number == NULL ? -1 : PyObject_GenericSetAttr(semaphore, s_value, number);
    Py_XDECREF(number);
    return result;
}

PyObject *
acquire_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    SyncMethod *self = (SyncMethod *)callable;
    Permits mine;
    Quiet found;
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    if (count == 0 || (Py_TYPE(args[0]) != lib.semaphore && Py_TYPE(args[0]) != lib.bounded) ||
        !find_permits(args[0], &mine)) {
        return PyObject_Vectorcall(self->function, args, nargsf, names);
    }
    if (count == 1 && names == NULL && is_quiet(args[0], &found) && found.value > 0) {
        if (set_value(args[0], found.value - 1) < 0) {
            return NULL;
        }
        note_permits(&mine, mine.permits + 1);
        Py_RETURN_TRUE;
    }
    PyObject *got = PyObject_Vectorcall(self->original, args, nargsf, names);
    if (got == Py_True && find_permits(args[0], &mine)) {
        note_permits(&mine, mine.permits + 1);
    }
    return got;
}

/* Return whether a permit can be given back to a bounded semaphore with this value. */
static int
has_room(PyObject *semaphore, long value)
{
    int overflow;
    PyObject *initial = peek(semaphore, s_initial);
    return initial != NULL && PyLong_CheckExact(initial) && value < PyLong_AsLongAndOverflow(initial, &overflow);
}

static PyObject *
release_of(PyTypeObject *type, PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    SyncMethod *self = (SyncMethod *)callable;
    PyObject *waiters;
    Permits mine;
    Quiet found;
    if (PyVectorcall_NARGS(nargsf) != 1 || names != NULL || Py_TYPE(args[0]) != type || !find_permits(args[0], &mine)) {
        return PyObject_Vectorcall(self->function, args, nargsf, names);
    }
    if (is_quiet(args[0], &found) && found.value != LONG_MAX && (waiters = peek(found.cond, s_waiters)) != NULL &&
        PyObject_Size(waiters) == 0 && (type != lib.bounded || has_room(args[0], found.value))) {
        if (set_value(args[0], found.value + 1) < 0) {
            return NULL;
        }
        note_permits(&mine, mine.permits - 1);
        Py_RETURN_NONE;
    }
    PyErr_Clear(); /* of a number of waiters that nobody can tell */
    if (type == lib.bounded) {
        return PyObject_Vectorcall(self->function, args, nargsf, names); /* the hook tells of one permit too many */
    }
    PyObject *done = PyObject_Vectorcall(self->original, args, nargsf, names);
    if (done != NULL && find_permits(args[0], &mine)) {
        note_permits(&mine, mine.permits - 1);
    }
    return done;
}

PyObject *
release_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    return release_of(lib.semaphore, callable, args, nargsf, names);
}

PyObject *
bounded_release_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    return release_of(lib.bounded, callable, args, nargsf, names);
}
