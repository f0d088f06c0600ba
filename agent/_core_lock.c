/* Lock: a drop-in for _thread.lock that knows its holder, and what RLock has of it.  Its fast path is _core_hold.h. */
#include "_core_hold.h"

/* -- what was done wrong -- */

static void
tell_listener(const char *detail, LockCell *cell, PyObject *hold, PyObject *frame)
{
    PyObject *listener = Py_XNewRef(core.listener); /* stop() may come meanwhile */
    if (listener != NULL) {
        PyObject *done = PyObject_CallMethod(listener, "misuse", "sOOO", detail, (PyObject *)cell,
                                             hold != NULL ? hold : Py_None, frame != NULL ? frame : Py_None);
        Py_XDECREF(done);
        Py_DECREF(listener);
    }
}

/* Tell the listener of a wrong use; keeps the exception that is set, if any. */
COLD void
tell_misuse(const char *detail, Lock *lock, PyObject *hold)
{
    PyObject *error_type, *error, *trace;
    if (!core.recording || is_finalizing()) {
        return;
    }
    PyErr_Fetch(&error_type, &error, &trace);
    LockCell *cell = Lock_cell(lock);
    PyObject *frame = cell == NULL ? NULL : (PyObject *)PyEval_GetFrame(); /* borrowed */
    if (cell != NULL && (frame != NULL || !PyErr_Occurred())) {
        tell_listener(detail, cell, hold, frame);
    }
    swallow_error();
    PyErr_Restore(error_type, error, trace);
}

/* -- Lock -- */

static inline int
release_lock(Lock *self)
{
    if (UNLIKELY(self->locked != LOCKED)) {
        tell_misuse("double-release", self, NULL);
        PyErr_SetString(PyExc_RuntimeError, "release unlocked lock");
        return -1;
    }
    Record *holder = self->holder;
    if (UNLIKELY(holder != NULL && holder != tls_record && holder->ident != PyThread_get_thread_ident() &&
                 core.recording && !holder->agent)) {
        self->cls->is_signal = 1; /* an event, not a mutex */
    }
    let_go(self);
    return 0;
}

static PyObject *
Lock_acquire(Lock *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Patience patience;
    if (parse_patience(args, count, names, &patience) < 0) {
        return NULL;
    }
    int got = acquire_lock(self, patience, 0, 1);
    return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyObject *
Lock_enter(Lock *self, PyObject *Py_UNUSED(none))
{
    Patience patience = {1, -1};
    return acquire_lock(self, patience, 1, 1) < 0 ? NULL : Py_NewRef(Py_True);
}

static PyObject *
Lock_release(Lock *self, PyObject *Py_UNUSED(none))
{
    return release_lock(self) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
Lock_exit(Lock *self, PyObject *const *Py_UNUSED(args), Py_ssize_t count)
{
    return check_exit(count) < 0 || release_lock(self) < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *
Lock_locked(Lock *self, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(self->locked == LOCKED);
}

/* Free the lock in a fork's child: whoever held or awaited it does not exist there. */
PyObject *
Lock_at_fork_reinit(Lock *self, PyObject *Py_UNUSED(none))
{
    while (self->waiters != NULL) {
        Lock_leave_queue(self, self->waiters);
    }
    if (self->holder != NULL) {
        Record *holder = self->holder;
        self->holder = NULL;
        Record_remove(holder, self);
    }
    self->locked = FREE;
    self->sampled = 0;
    self->depth = 0;
    Py_RETURN_NONE;
}

static PyObject *
Lock_repr(Lock *self)
{
    return PyUnicode_FromFormat("<%s %s object at %p>", self->locked == LOCKED ? "locked" : "unlocked",
                                Py_TYPE(self)->tp_name, (void *)self);
}

/* The lock dies in its holder's hands; it is half gone, so the listener gets its cell, which does not lead back to it.
 */
static COLD void
destroy_held(Lock *self)
{
    PyObject *error_type, *error, *trace;
    Record *holder = (Record *)Py_NewRef((PyObject *)self->holder);
    PyErr_Fetch(&error_type, &error, &trace);
    int tell = core.recording && !holder->agent && !self->cls->is_signal && !is_finalizing();
    LockCell *cell = tell ? Lock_cell(self) : NULL;
    PyObject *hold = cell == NULL ? NULL : LockCell_hold(cell);
    self->holder = NULL;
    Record_remove(holder, self);
    if (hold != NULL) {
        Py_INCREF(cell);
        cell->lock = NULL;
        tell_listener("destroy-held", cell, hold, NULL);
        Py_DECREF(cell);
        Py_DECREF(hold);
    }
    swallow_error();
    PyErr_Restore(error_type, error, trace);
    Py_DECREF(holder);
}

void
Lock_dealloc(Lock *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    if (UNLIKELY(self->holder != NULL)) {
        destroy_held(self);
    }
    if (self->cls != NULL) {
        self->cls->alive--;
    }
    if (self->cell != NULL) {
        LockCell_lock_gone(self->cell);
        Py_CLEAR(self->cell);
    }
    Py_CLEAR(self->code);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Return a new lock whose class is the line of the calling Python frame. */
PyObject *
Lock_make(PyTypeObject *type, int kind)
{
    Record *record = current_record();
    LockClass *cls = record == NULL ? NULL : LockClass_of_site(kind, Frame_current(Thread_state()));
    if (cls == NULL) {
        return NULL;
    }
    Lock *self = (Lock *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->kind = (char)kind;
        self->cls = cls;
        self->serial = ++core.serial;
        cls->alive++;
    }
    return (PyObject *)self;
}

static PyObject *
vectorcall(PyObject *type, PyObject *original, int kind, PyObject *const *args, size_t count, PyObject *names)
{
    if (UNLIKELY(PyVectorcall_NARGS(count) != 0 || names != NULL) && original != NULL) {
        PyObject *probe = PyObject_Vectorcall(original, args, count & ~PY_VECTORCALL_ARGUMENTS_OFFSET, names);
        if (probe == NULL) {
            return NULL;
        }
        Py_DECREF(probe);
    }
    return Lock_make((PyTypeObject *)type, kind);
}

/* `Lock()` and `RLock()` without tuple and dictionary; for the types themselves, not for what is derived from them. */
PyObject *
Lock_vectorcall(PyObject *type, PyObject *const *args, size_t count, PyObject *names)
{
    return vectorcall(type, core.real_lock, KIND_LOCK, args, count, names);
}

PyObject *
RLock_vectorcall(PyObject *type, PyObject *const *args, size_t count, PyObject *names)
{
    return vectorcall(type, core.real_rlock, KIND_RLOCK, args, count, names);
}

#if PY_VERSION_HEX >= 0x030D0000
static PyObject *
Lock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return check_arguments(core.real_lock, args, kwargs) < 0 ? NULL : Lock_make(type, KIND_LOCK);
}
#endif

static PyMethodDef Lock_methods[] = {
    {"acquire", FAST(Lock_acquire), METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, /, blocking=True, timeout=-1)\n--\n\nTake the lock; return whether it was taken."},
    {"acquire_lock", FAST(Lock_acquire), METH_FASTCALL | METH_KEYWORDS, "An obsolete synonym of acquire()."},
    {"release", (PyCFunction)Lock_release, METH_NOARGS, "release($self, /)\n--\n\nRelease the lock."},
    {"release_lock", (PyCFunction)Lock_release, METH_NOARGS, "An obsolete synonym of release()."},
    {"locked", (PyCFunction)Lock_locked, METH_NOARGS, "locked($self, /)\n--\n\nReturn whether the lock is held."},
    {"locked_lock", (PyCFunction)Lock_locked, METH_NOARGS, "An obsolete synonym of locked()."},
    {"__enter__", (PyCFunction)Lock_enter, METH_NOARGS, "Take the lock."},
    {"__exit__", FAST(Lock_exit), METH_FASTCALL, "Release the lock."},
    {"_at_fork_reinit", (PyCFunction)Lock_at_fork_reinit, METH_NOARGS, "Free the lock in a fork's child."},
    {NULL, NULL, 0, NULL},
};
PyMemberDef Lock_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Lock, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot Lock_slots[] = {
    {Py_tp_dealloc, Lock_dealloc},
    {Py_tp_repr, Lock_repr},
    {Py_tp_methods, Lock_methods},
    {Py_tp_members, Lock_members},
#if PY_VERSION_HEX >= 0x030D0000
    {Py_tp_new, Lock_new},
#endif
    {0, NULL}, /* filled in: Py_tp_doc */
    {0, NULL},
};
PyType_Spec Lock_spec = {
    .name = "_thread.lock",
    .basicsize = sizeof(Lock),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE
#if PY_VERSION_HEX < 0x030D0000
             | Py_TPFLAGS_DISALLOW_INSTANTIATION
#endif
    ,
    .slots = Lock_slots,
};

/* Call before the type is made. */
void
Lock_adopt_original(PyObject *original)
{
    adopt_methods(Lock_methods, original);
    adopt_doc(Lock_slots, original);
}
