/* The lock that a condition's waiter sleeps on: it remembers who released it.
 *
 * `Condition.wait` makes a lock for each wait, takes it, and takes it again to sleep; `notify` releases it.  So whoever
 * releases it has ended the wait, and to note him costs him one store.  The sleeper finds him when it wakes and leaves
 * him in its own record (`waker`), until the next such lock is taken.
 *
 * A free one is taken by a flag; only a sleeper needs something to sleep on.  With the GIL held on both sides there is
 * nothing between "is it free?" and "sleep", and each release leaves at most one wake-up (`rung`) for whoever sleeps:
 * he looks again, and who finds the lock taken sleeps on.
 */
#include "_core.h"

typedef struct {
    PyObject_HEAD PyThread_type_lock bell; /* NULL until somebody sleeps */
    Record *releaser;                      /* owned or NULL */
    PyObject *weakrefs;
    int sleepers;
    char locked;
    char rung; /* the bell is free: one wake-up is on its way */
} WaiterLock;

static PyTypeObject *WaiterLockType;

/* Whether the wait that sleeps on this lock has been ended, though its thread has not run since. */
int
WaiterLock_is_free(PyObject *self)
{
    return !((WaiterLock *)self)->locked;
}

/* The lock is ours: keep who gave it to us, if that was somebody else. */
static void
take(WaiterLock *self)
{
    Record *giver = self->releaser; /* owned, and so is what is dropped below */
    Record *record = tls_record;
    self->locked = 1;
    self->releaser = NULL;
    if (record != NULL) {
        Record *former = record->waker;
        record->waker = giver == record ? NULL : giver;
        giver = giver == record ? giver : NULL;
        Py_XDECREF(former);
    }
    Py_XDECREF(giver);
}

/* Sleep until the lock is free: 1 it is, 0 time is up, -1 exception. */
static int
sleep_on(WaiterLock *self, int64_t timeout_ns)
{
    int result = -1;
    int64_t deadline_ns = -1;
    if (timeout_ns >= 0) {
        int64_t now = now_ns();
        deadline_ns = timeout_ns < INT64_MAX - now ? now + timeout_ns : INT64_MAX;
    }
    if (self->bell == NULL) {
        self->bell = PyThread_allocate_lock();
        if (self->bell == NULL) {
            PyErr_SetString(PyExc_RuntimeError, "can't allocate lock");
            return -1;
        }
        PyThread_acquire_lock(self->bell, NOWAIT_LOCK);
    }
    Record *record = tls_record; /* kept by the thread */
    self->sleepers++;
    for (;;) {
        PY_TIMEOUT_T left_us = -1;
        PyLockStatus status;
        if (deadline_ns >= 0) {
            int64_t left_ns = deadline_ns - now_ns();
            left_us = left_ns <= 0 ? 0 : left_ns / 1000 + (left_ns % 1000 != 0);
        }
        PyObject *outer = record == NULL ? NULL : record->sleeps_on;
        if (record != NULL) {
            record->sleeps_on = (PyObject *)self;
        }
        Py_BEGIN_ALLOW_THREADS /* no Python API until the GIL is back */
        status = PyThread_acquire_lock_timed(self->bell, left_us, 1);
        Py_END_ALLOW_THREADS
        if (record != NULL) {
            record->sleeps_on = outer;
        }
        if (status == PY_LOCK_ACQUIRED) {
            self->rung = 0;
        }
        if (!self->locked) {
            result = 1; /* a signal's handlers run right after that */
            break;
        }
        if (status == PY_LOCK_INTR && Py_MakePendingCalls() < 0) {
            break;
        }
        if (left_us == 0) {
            result = 0;
            break;
        }
    }
    self->sleepers--;
    if (self->rung && self->sleepers == 0) { /* nobody is left to hear it */
        PyThread_acquire_lock(self->bell, NOWAIT_LOCK);
        self->rung = 0;
    }
    return result;
}

static PyObject *
WaiterLock_acquire(WaiterLock *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Patience patience;
    if (parse_patience(args, count, names, &patience) < 0) {
        return NULL;
    }
    if (self->locked) {
        int free = !patience.blocking || patience.timeout_ns == 0 ? 0 : sleep_on(self, patience.timeout_ns);
        if (free <= 0) {
            return free < 0 ? NULL : Py_NewRef(Py_False);
        }
    }
    take(self);
    Py_RETURN_TRUE;
}

static PyObject *
WaiterLock_enter(WaiterLock *self, PyObject *Py_UNUSED(none))
{
    return WaiterLock_acquire(self, NULL, 0, NULL);
}

static PyObject *
WaiterLock_release(WaiterLock *self, PyObject *Py_UNUSED(none))
{
    if (!self->locked) {
        PyErr_SetString(PyExc_RuntimeError, "release unlocked lock");
        return NULL;
    }
    Record *former = self->releaser;
    self->releaser = core.recording ? (Record *)Py_XNewRef((PyObject *)tls_record) : NULL;
    self->locked = 0;
    if (self->sleepers > 0 && !self->rung) {
        self->rung = 1;
        PyThread_release_lock(self->bell);
    }
    Py_XDECREF(former);
    Py_RETURN_NONE;
}

static PyObject *
WaiterLock_exit(WaiterLock *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count))
{
    return WaiterLock_release(self, NULL);
}

static PyObject *
WaiterLock_locked(WaiterLock *self, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(self->locked);
}

/* In a fork's child nobody sleeps any more; the bell of the parent's sleepers is left to them. */
static PyObject *
WaiterLock_at_fork_reinit(WaiterLock *self, PyObject *Py_UNUSED(none))
{
    self->bell = NULL;
    self->sleepers = 0;
    self->locked = self->rung = 0;
    Py_RETURN_NONE;
}

static PyObject *
WaiterLock_repr(WaiterLock *self)
{
    return PyUnicode_FromFormat("<%s _thread.lock object at %p>", self->locked ? "locked" : "unlocked", self);
}

static void
WaiterLock_dealloc(WaiterLock *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    if (self->bell != NULL) { /* nobody sleeps: a sleeper keeps the lock */
        PyThread_release_lock(self->bell);
        PyThread_free_lock(self->bell);
    }
    Py_CLEAR(self->releaser);
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject *
core_waiter_lock(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return WaiterLockType->tp_alloc(WaiterLockType, 0);
}

static PyMethodDef WaiterLock_methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))WaiterLock_acquire, METH_FASTCALL | METH_KEYWORDS, "Take the lock."},
    {"release", (PyCFunction)WaiterLock_release, METH_NOARGS, "Release the lock, and be remembered for it."},
    {"locked", (PyCFunction)WaiterLock_locked, METH_NOARGS, "Return whether the lock is held."},
    {"__enter__", (PyCFunction)WaiterLock_enter, METH_NOARGS, "Take the lock."},
    {"__exit__", (PyCFunction)(void (*)(void))WaiterLock_exit, METH_FASTCALL, "Release the lock."},
    {"_at_fork_reinit", (PyCFunction)WaiterLock_at_fork_reinit, METH_NOARGS, "Free the lock in a fork's child."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef WaiterLock_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(WaiterLock, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot WaiterLock_slots[] = {
    {Py_tp_dealloc, WaiterLock_dealloc},
    {Py_tp_methods, WaiterLock_methods},
    {Py_tp_members, WaiterLock_members},
    {Py_tp_repr, WaiterLock_repr},
    {0, NULL},
};
static PyType_Spec WaiterLock_spec = {
    .name = "concagent._core.WaiterLock",
    .basicsize = sizeof(WaiterLock),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = WaiterLock_slots,
};

int
Waiter_init(PyObject *module)
{
    WaiterLockType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &WaiterLock_spec, NULL);
    return WaiterLockType == NULL ? -1 : 0;
}
