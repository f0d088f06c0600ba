/* In what circumstances is a lock class used: by ordinary code, or by code that the interpreter called in the midst of
 * it?
 *
 * To look at the stack costs too much for each acquisition.  So each class remembers a mark of the last way it was used
 * (Use_mark), which an acquisition compares; another way is looked up in a small table; only a way that is new is
 * looked at, here.  The same function can be reached in ordinary code and from a finalizer alike in all that the mark
 * tells, so one acquisition in so many (HOLD_SAMPLE) is looked at in any case.
 *
 * What is seen goes into a bounded ring for the monitor, a few rows for each class and circumstance.
 *
 * How an interruption is told from a call: by what the interpreter hands to it.  `interruptions.py`, the twin of this,
 * argues why.
 */
#include "_core.h"

enum { ORDINARY = 0, FINALIZER, WEAKREF, GC, SIGNAL };

#define CHAIN_LIMIT 50    /* frames of evidence between the lock and the interruption */
#define CALLER_LIMIT 4    /* the same for ordinary code, where only the site is wanted */
#define ARGUMENTS 5       /* looked at; more has no such function, with `self` */
#define COLLECTION_KEYS 8 /* of what a gc callback is given, looked at: `generation` is the first */
#define ORDINARY_ROWS 2   /* of a class and a kind */
#define INTERRUPTION_ROWS 16

static int
names(PyObject *co_names, PyObject *name)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(co_names); i++) {
        if (PyTuple_GET_ITEM(co_names, i) == name) {
            return 1;
        }
    }
    return 0;
}

/* Collect the positional arguments that are still bound, borrowed; return their number. */
static int
arguments(FramePtr frame, PyCodeObject *code, PyObject **values)
{
    int count = 0;
    for (int i = 0; i < code->co_argcount && count < ARGUMENTS; i++) {
        PyObject *value = Frame_argument(frame, i);
        if (value != NULL) {
            values[count++] = value;
        }
    }
    PyObject *rest =
        code->co_flags & CO_VARARGS ? Frame_argument(frame, code->co_argcount + code->co_kwonlyargcount) : NULL;
    for (Py_ssize_t i = 0; rest != NULL && PyTuple_CheckExact(rest) && i < PyTuple_GET_SIZE(rest) && count < ARGUMENTS;
         i++) {
        values[count++] = PyTuple_GET_ITEM(rest, i);
    }
    return count;
}

static int
is_text(PyObject *value, const char *text)
{
    return PyUnicode_CompareWithASCIIString(value, text) == 0;
}

/* Return whether this is what a gc callback is given.  How much more it says depends on the version (3.15: candidates,
 * duration); to ask the dictionary for the key could run somebody's comparison. */
static int
tells_of_a_collection(PyObject *information)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (at < COLLECTION_KEYS && PyDict_Next(information, &at, &key, &value)) {
        if (PyUnicode_CheckExact(key) && is_text(key, "generation")) {
            return 1;
        }
    }
    return 0;
}

/* Return how the interpreter came to call this function; ORDINARY where the function below called it. */
static int
kind_of(FramePtr frame, PyCodeObject *code, PyCodeObject *caller)
{
    PyObject *values[ARGUMENTS];
    if (!(code->co_flags & CO_OPTIMIZED)) {
        return ORDINARY;
    }
    if (code->co_name == core.finalizer_name) {
        return names(caller->co_names, core.finalizer_name) ? ORDINARY : FINALIZER;
    }
    if (code->co_argcount >= ARGUMENTS) {
        return ORDINARY;
    }
    int count = arguments(frame, code, values);
    for (int at = 0; at < 2 && at < count; at++) { /* a method has `self` in front */
        PyObject *first = values[at];
        PyObject *second = at + 2 == count ? values[at + 1] : NULL;
        if (PyWeakref_Check(first) && ((PyWeakReference *)first)->wr_object == Py_None) {
            return WEAKREF;
        }
        if (second != NULL && PyLong_Check(first) && PyFrame_Check(second)) {
            return SIGNAL;
        }
        if (second != NULL && PyUnicode_CheckExact(first) && PyDict_CheckExact(second) &&
            (is_text(first, "start") || is_text(first, "stop")) && tells_of_a_collection(second)) {
            return GC;
        }
    }
    return ORDINARY;
}

/* Return the circumstances of the running function, and how many frames lead from it to what was interrupted. */
static int
look_down(int *depth)
{
    int at = 0;
    FramePtr frame = Frame_current(Thread_state());
    while (frame != NULL) {
        FramePtr back = Frame_back(frame);
        PyCodeObject *code = Frame_code(frame);
        PyCodeObject *caller = back == NULL ? NULL : Frame_code(back);
        int kind = code == NULL || caller == NULL ? ORDINARY : kind_of(frame, code, caller);
        at++;
        if (kind != ORDINARY) {
            *depth = at + 1; /* what was interrupted is evidence, too */
            return kind;
        }
        frame = back;
    }
    *depth = CALLER_LIMIT;
    return ORDINARY;
}

/* Return (code, offset) of the innermost frames; a new reference or NULL. */
static PyObject *
stack_of(int depth)
{
    PyObject *list = PyList_New(0);
    FramePtr frame = Frame_current(Thread_state());
    for (int i = 0; list != NULL && frame != NULL && i < depth && i < CHAIN_LIMIT; i++) {
        PyCodeObject *code = Frame_code(frame);
        PyObject *pair = code == NULL ? NULL : Py_BuildValue("(Oi)", code, Frame_lasti(frame));
        if (code != NULL && (pair == NULL || PyList_Append(list, pair) < 0)) {
            Py_CLEAR(list);
        }
        Py_XDECREF(pair);
        frame = Frame_back(frame);
    }
    return list;
}

static PyObject *
others_held(Record *record, Lock *lock)
{
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list != NULL && i < record->held_count; i++) {
        if (record->held[i] != lock) {
            PyObject *serial = PyLong_FromUnsignedLongLong(record->held[i]->cls->serial);
            if (serial == NULL || PyList_Append(list, serial) < 0) {
                Py_CLEAR(list);
            }
            Py_XDECREF(serial);
        }
    }
    return list;
}

/* Look how the calling thread came to take this lock, which it just did, and note it if that is new for the class. */
COLD void
Use_look(Lock *lock, Record *record, int blocking)
{
    int depth;
    if (!core.recording || record->agent) {
        return;
    }
    int kind = look_down(&depth);
    int is_main = record->ident == core.main_ident;
    int gc = PyGC_IsEnabled();
    int row_kind = kind == ORDINARY ? is_main * 2 + gc : 2 + kind * 2 + is_main;
    if ((kind != ORDINARY && !blocking) || /* who only tries never waits for what he has interrupted */
        lock->cls->uses_told[row_kind] >= (kind == ORDINARY ? ORDINARY_ROWS : INTERRUPTION_ROWS) ||
        PyList_GET_SIZE(core.use_ring) >= USE_RING) {
        return;
    }
    lock->cls->uses_told[row_kind]++;
    /* Amid an acquisition: no Python code may run. */
    PyObject *error_type, *error, *trace;
    PyErr_Fetch(&error_type, &error, &trace);
    int was_enabled = gc_pause();
    LockCell *cell = Lock_cell(lock);
    PyObject *row = NULL;
    PyObject *held = cell == NULL ? NULL : others_held(record, lock);
    PyObject *stack = held == NULL ? NULL : stack_of(depth);
    if (stack != NULL) {
        row = Py_BuildValue("(KOiiiKOO)", (unsigned long long)lock->cls->serial, cell, kind, is_main, gc,
                            (unsigned long long)record->serial, held, stack);
    }
    if (row != NULL && PyList_Append(core.use_ring, row) == 0 && kind != ORDINARY) {
        core.interrupted = 1;
    }
    Py_XDECREF(row);
    Py_XDECREF(stack);
    Py_XDECREF(held);
    gc_resume(was_enabled);
    PyErr_Restore(error_type, error, trace);
}

PyObject *
core_drain_uses(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *fresh = PyList_New(0);
    if (fresh == NULL) {
        return NULL;
    }
    PyObject *full = core.use_ring;
    core.use_ring = fresh;
    return full;
}
