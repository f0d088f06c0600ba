/* RLock: a drop-in for _thread.RLock that knows its owner.  Its fast path is _core_hold.h. */
#include "_core_hold.h"

static inline int
is_ours(Lock *self, Record *record)
{
    /* By thread, not by record: late in a thread's life its record may be its second. */
    return self->holder != NULL && (self->holder == record || self->holder->ident == PyThread_get_thread_ident());
}

static inline int
acquire_rlock(Lock *self, Patience patience, int entered)
{
    Record *record = current_record();
    if (UNLIKELY(record == NULL)) {
        return -1;
    }
    if (self->locked && is_ours(self, record)) {
        if (UNLIKELY(self->depth == UINT32_MAX)) {
            PyErr_SetString(PyExc_OverflowError, "Internal lock count overflowed");
            return -1;
        }
        self->depth++;
        return 1;
    }
    return acquire_lock(self, patience, entered, 1);
}

static int
release_rlock(Lock *self)
{
    if (UNLIKELY(!self->locked || !is_ours(self, tls_record))) {
        LockCell *cell = self->holder != NULL ? Lock_cell(self) : NULL;
        PyObject *hold = cell != NULL ? LockCell_hold(cell) : NULL;
        swallow_error();
        tell_misuse(self->holder != NULL ? "foreign-release" : "double-release", self, hold);
        Py_XDECREF(hold);
        PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
        return -1;
    }
    if (--self->depth == 0) {
        let_go(self);
    }
    return 0;
}

static PyObject *
RLock_acquire(Lock *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Patience patience;
    if (parse_patience(args, count, names, &patience) < 0) {
        return NULL;
    }
    int got = acquire_rlock(self, patience, 0);
    return got < 0 ? NULL : PyBool_FromLong(got);
}

static PyObject *
RLock_enter(Lock *self, PyObject *Py_UNUSED(none))
{
    Patience patience = {1, -1};
    return acquire_rlock(self, patience, 1) < 0 ? NULL : Py_NewRef(Py_True);
}

static PyObject *
RLock_release(Lock *self, PyObject *Py_UNUSED(none))
{
    return release_rlock(self) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
RLock_exit(Lock *self, PyObject *const *Py_UNUSED(args), Py_ssize_t count)
{
    return check_exit(count) < 0 || release_rlock(self) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
RLock_is_owned(Lock *self, PyObject *Py_UNUSED(none))
{
    if (LIKELY(self->locked && is_ours(self, tls_record))) {
        Py_RETURN_TRUE;
    }
    return Sync_not_owned() < 0 ? NULL : Py_NewRef(Py_False);
}

static PyObject *
RLock_recursion_count(Lock *self, PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLong(self->locked && is_ours(self, tls_record) ? self->depth : 0);
}

static PyObject *
RLock_release_save(Lock *self, PyObject *Py_UNUSED(none))
{
    if (self->locked != LOCKED) {
        PyErr_SetString(PyExc_RuntimeError, "cannot release un-acquired lock");
        return NULL;
    }
    PyObject *saved = Py_BuildValue("(kk)", (unsigned long)self->depth, self->holder != NULL ? self->holder->ident : 0);
    if (saved != NULL) {
        self->depth = 0;
        let_go(self);
    }
    return saved;
}

static PyObject *
RLock_acquire_restore(Lock *self, PyObject *state)
{
    unsigned long depth, owner;
    Patience patience = {1, -1};
    if (!PyTuple_Check(state) || PyTuple_GET_SIZE(state) != 2) {
        PyObject *probe = PyObject_CallNoArgs(core.real_rlock); /* raises what is to be raised */
        PyObject *done = probe == NULL ? NULL : PyObject_CallMethod(probe, "_acquire_restore", "(O)", state);
        Py_XDECREF(probe);
        Py_XDECREF(done);
        return done == NULL ? NULL
                            : PyErr_Format(PyExc_TypeError, "_acquire_restore() takes what _release_save() returned");
    }
    if (!PyArg_ParseTuple(state, "kk:_acquire_restore", &depth, &owner)) {
        return NULL;
    }
    /* Whoever calls this relies on having the lock, so that as with the original no signal handler ends the wait. */
    if (acquire_lock(self, patience, 1, 0) < 0) {
        return NULL;
    }
    self->depth = depth == 0 ? 1 : depth < UINT32_MAX ? (uint32_t)depth : UINT32_MAX;
    Py_RETURN_NONE;
}

static PyObject *
RLock_repr(Lock *self)
{
    return PyUnicode_FromFormat("<%s %s object owner=%lu count=%u at %p>",
                                self->locked == LOCKED ? "locked" : "unlocked", Py_TYPE(self)->tp_name,
                                self->holder != NULL ? self->holder->ident : 0UL,
                                (unsigned)(self->locked == LOCKED ? self->depth : 0), (void *)self);
}

static PyObject *
RLock_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    /* A subclass with an __init__ of its own may take what it likes. */
    PyObject *original = type->tp_init == RLockType->tp_init ? core.real_rlock : NULL;
    return check_arguments(original, args, kwargs) < 0 ? NULL : Lock_make(type, KIND_RLOCK);
}

static PyMethodDef RLock_methods[] = {
    {"acquire", FAST(RLock_acquire), METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, /, blocking=True, timeout=-1)\n--\n\nTake the lock, once more if it is ours."},
    {"release", (PyCFunction)RLock_release, METH_NOARGS, "release($self, /)\n--\n\nRelease the lock once."},
#if PY_VERSION_HEX >= 0x030E0000
    {"locked", (PyCFunction)Lock_locked, METH_NOARGS, "locked($self, /)\n--\n\nReturn whether anybody holds the lock."},
#endif
    {"__enter__", (PyCFunction)RLock_enter, METH_NOARGS, "Take the lock."},
    {"__exit__", FAST(RLock_exit), METH_FASTCALL, "Release the lock once."},
    {"_is_owned", (PyCFunction)RLock_is_owned, METH_NOARGS, "For internal use by `threading.Condition`."},
    {"_recursion_count", (PyCFunction)RLock_recursion_count, METH_NOARGS, "For internal use by reentrancy checks."},
    {"_release_save", (PyCFunction)RLock_release_save, METH_NOARGS, "For internal use by `threading.Condition`."},
    {"_acquire_restore", (PyCFunction)RLock_acquire_restore, METH_O, "For internal use by `threading.Condition`."},
    {"_at_fork_reinit", (PyCFunction)Lock_at_fork_reinit, METH_NOARGS, "Free the lock in a fork's child."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot RLock_slots[] = {
    {Py_tp_dealloc, Lock_dealloc},
    {Py_tp_repr, RLock_repr},
    {Py_tp_methods, RLock_methods},
    {Py_tp_members, Lock_members},
    {Py_tp_new, RLock_new},
    {0, NULL},
    {0, NULL},
};
PyType_Spec RLock_spec = {
    .name = "_thread.RLock",
    .basicsize = sizeof(Lock),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = RLock_slots,
};

/* Call before the type is made. */
void
RLock_adopt_original(PyObject *original)
{
    adopt_methods(RLock_methods, original);
    adopt_doc(RLock_slots, original);
}
