/* What the frames of stuck threads refer to: references that nobody else will ever use.
 *
 * A frame is read where it lies, and counts only if it is still where the caller saw it.  Of its evaluation stack only
 * those slots count of which the bytecode says for certain that they hold a reference (stackslots.py).
 */
#include "_core_reach.h"

#if PY_VERSION_HEX < 0x030B0000
#  include <opcode.h>
#endif

#define MASK_SLOTS 64 /* of an evaluation stack; deeper ones are not looked at */

static void
explain(Look *self, PyObject *object)
{
    Node *node = object == NULL ? NULL : Look_find(self, object);
    if (node != NULL) {
        node->seen = 1;
        node->explained++;
        node->kept = 1;
    }
}

static PyThreadState *
find_thread_state(unsigned long ident)
{
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (tstate != NULL && tstate->thread_id != ident) {
        tstate = PyThreadState_Next(tstate);
    }
    return tstate;
}

/* Return whether a slot of the evaluation stack is one of ours to count.  The argument tuple of `f(*args)` may have
 * been replaced inside of the instruction, and the slot be stale: then it must be found elsewhere, as a tuple. */
static int
is_sure(FrameRefs *refs, PyObject *args, int slot, uint64_t mask, int star)
{
    if (slot >= MASK_SLOTS || !(mask >> slot & 1)) {
        return 0;
    }
    if (slot != star) {
        return 1;
    }
    PyObject *value = FrameRefs_get(refs, refs->locals + slot);
    for (int i = 0; i < refs->locals; i++) {
        if (value != NULL && FrameRefs_get(refs, i) == value) {
            return PyTuple_CheckExact(value);
        }
    }
    for (Py_ssize_t i = 0; value != NULL && i < PyList_GET_SIZE(args); i++) {
        if (PyList_GET_ITEM(args, i) == value) {
            return PyTuple_CheckExact(value);
        }
    }
    return 0;
}

#if PY_VERSION_HEX < 0x030B0000
/* Return the slot whose reference is borrowed because a bound method is being called from it, -1 if there is none.
 *
 * `method_vectorcall` puts the method's `self` in the place of the method for the time of the call, and keeps the
 * method in a variable of its own.  A callee that cannot be called was put there so; where it can, nobody knows.
 */
static int
hidden_slot(Look *self, FramePtr frame, FramePtr callee, FrameRefs *refs, uint64_t mask)
{
    const _Py_CODEUNIT *at = (const _Py_CODEUNIT *)PyBytes_AS_STRING(frame->f_code->co_code) + frame->f_lasti;
    if (frame->f_lasti < 1 || _Py_OPCODE(at[-1]) == EXTENDED_ARG) {
        return -1;
    }
    int opcode = _Py_OPCODE(*at), is_call = opcode == CALL_FUNCTION || opcode == CALL_METHOD;
    if (!is_call && opcode != CALL_FUNCTION_KW) {
        return -1;
    }
    int slot = __builtin_popcountll(mask) - (is_call ? 1 : 2) - _Py_OPARG(*at);
    PyObject *value = slot < 0 ? NULL : FrameRefs_get(refs, refs->locals + slot);
    if (value == NULL || PyCallable_Check(value) ||
        (opcode == CALL_METHOD && (slot < 1 || FrameRefs_get(refs, refs->locals + slot - 1) != NULL))) {
        return -1;
    }
    PyObject *code = (PyObject *)Frame_code(callee);
    int i = 0;
    while (i < self->hidden_count && (self->hidden[i].self != value || self->hidden[i].code != code)) {
        i++;
    }
    if (i < HIDDEN_LIMIT) {
        self->hidden_count += i == self->hidden_count;
        self->hidden[i].self = value;
        self->hidden[i].code = code;
        self->hidden[i].times++;
    }
    return slot;
}
#else
#  define hidden_slot(self, frame, callee, refs, mask) (-1)
#endif

/* Count what a frame refers to.  `callee`: the frame that was called from here, or NULL. */
static void
explain_frame(Look *self, FramePtr frame, FramePtr callee, PyObject *args, uint64_t mask, int star)
{
    FrameRefs refs;
    if (!FrameRefs_init(&refs, frame, callee != NULL)) {
        return;
    }
    int hidden = callee != NULL ? hidden_slot(self, frame, callee, &refs, mask) : -1;
    for (int i = 0; i < refs.extra_count; i++) {
        explain(self, refs.extra[i]);
    }
    for (int i = refs.first; i < refs.locals; i++) {
        explain(self, FrameRefs_get(&refs, i));
    }
    /* Since 3.14 the depth is stored whatever is called; only a call of Python is certain to have taken what it uses.
     */
    int stored = refs.stack >= 0 && PY_VERSION_HEX < 0x030E0000;
    int depth = refs.stack >= 0 ? refs.stack : refs.stack_limit;
    for (int i = 0; i < depth; i++) {
        if (i != hidden && (stored || is_sure(&refs, args, i, mask, star))) {
            explain(self, FrameRefs_get(&refs, refs.locals + i));
        }
    }
}

/* A wait of ours holds the lock that it is for, and is no object that the collector knows. */
static void
explain_waits(Look *self, PyObject *ident)
{
    Record *record = core.by_ident == NULL ? NULL : (Record *)PyDict_GetItemWithError(core.by_ident, ident);
    for (Py_ssize_t i = 0; record != NULL && i < PyList_GET_SIZE(record->waits); i++) {
        PyObject *wait = PyList_GET_ITEM(record->waits, i);
        if (Py_TYPE(wait) == WaitType) {
            explain(self, ((Wait *)wait)->user);
        }
    }
}

/* Count the references of one thread's frames: (ident, [(code or None, lasti, mask, star slot), ...]), innermost first.
 * They must still be where they were when the masks were made; only for the caller's own thread there may be more. */
int
Look_explain_thread(Look *self, PyObject *thread, PyObject *args)
{
    PyObject *ident, *frames;
    if (!PyArg_ParseTuple(thread, "O!O!", &PyLong_Type, &ident, &PyList_Type, &frames)) {
        return -1;
    }
    unsigned long number = PyLong_AsUnsignedLong(ident);
    PyThreadState *tstate = PyErr_Occurred() ? NULL : find_thread_state(number);
    if (tstate == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    int own = tstate == Thread_state();
    for (int counting = 0; counting < 2; counting++) {
        FramePtr frame = Frame_current(tstate), callee = NULL;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(frames); i++) {
            PyObject *code;
            int lasti, star;
            unsigned long long mask;
            if (!PyArg_ParseTuple(PyList_GET_ITEM(frames, i), "OiKi", &code, &lasti, &mask, &star)) {
                return -1;
            }
            if (frame == NULL || (code != Py_None && (PyObject *)Frame_code(frame) != code) ||
                (Frame_lasti(frame) != lasti && !(own && i == 0))) {
                return 0; /* the thread has moved: nothing of it is known */
            }
            if (counting) {
                explain_frame(self, frame, callee, args, own && i == 0 ? 0 : mask, star);
            }
            callee = frame;
            frame = Frame_back(frame);
        }
        if (frame != NULL && !own) {
            return 0;
        }
    }
    if (!own) {
        explain_waits(self, ident);
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------ the module's */

/* reach_frames(ident): [(code or None, lasti), ...] of a thread, innermost first; None if there is no such thread. */
PyObject *
core_reach_frames(PyObject *Py_UNUSED(module), PyObject *ident)
{
    unsigned long number = PyLong_AsUnsignedLong(ident);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyObject *rows = PyList_New(0);
    PyThreadState *tstate = rows == NULL ? NULL : find_thread_state(number);
    if (tstate == NULL) {
        Py_XDECREF(rows);
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    int gc = PyGC_Disable();
    for (FramePtr frame = Frame_current(tstate); frame != NULL; frame = Frame_back(frame)) {
        PyCodeObject *code = Frame_code(frame);
        /* CPython's own little helpers are half made: no names, no file. */
        int whole = code != NULL && code->co_filename != NULL && code->co_name != NULL && code->co_linetable != NULL;
        PyObject *row = Py_BuildValue("Oi", whole ? (PyObject *)code : Py_None, Frame_lasti(frame));
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_XDECREF(row);
            Py_CLEAR(rows);
            break;
        }
        Py_DECREF(row);
    }
    if (gc) {
        PyGC_Enable();
    }
    return rows;
}

/* reach_locals(ident): [(code, [(name, address), ...]), ...] of a thread, innermost first: words for a report. */
PyObject *
core_reach_locals(PyObject *Py_UNUSED(module), PyObject *ident)
{
    unsigned long number = PyLong_AsUnsignedLong(ident);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyObject *rows = PyList_New(0);
    PyThreadState *tstate = rows == NULL ? NULL : find_thread_state(number);
    int gc = PyGC_Disable();
    for (FramePtr frame = tstate == NULL ? NULL : Frame_current(tstate); rows != NULL && frame != NULL;
         frame = Frame_back(frame)) {
        PyCodeObject *code = Frame_code(frame);
        PyObject *values = PyList_New(0);
        int count = code == NULL || values == NULL || code->co_filename == NULL ? 0 : Frame_local_count(frame);
        for (int i = 0; i < count; i++) {
            PyObject *address = PyLong_FromVoidPtr(Frame_local(frame, i));
            if (address == NULL || PyList_Append(values, address) < 0) {
                Py_XDECREF(address);
                Py_CLEAR(values);
                break;
            }
            Py_DECREF(address);
        }
        PyObject *row = values == NULL ? NULL : Py_BuildValue("OO", count ? (PyObject *)code : Py_None, values);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(values);
        Py_XDECREF(row);
    }
    if (gc) {
        PyGC_Enable();
    }
    return rows;
}
