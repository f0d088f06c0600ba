/* Per-thread records: made on first use, ended with the thread, and what Python code sees of them.
 *
 * A record is made on a thread's first use of a lock and found through a thread-local pointer.  An object of ours in
 * the thread state's dictionary ends it: that dictionary is cleared when the thread state dies, for every thread,
 * whether `threading` knew it or not.  What a thread does after that (in the destructor of another thread-local) is on
 * a second record, whose end nobody sees; it ends when the next thread of the same id makes its own.  The record stays
 * in the table as long as it still holds something.
 */
#include "_core.h"

FAST_TLS _Thread_local Record *tls_record = NULL;

typedef struct {
    PyObject_HEAD Record *record; /* owned */
} ThreadEnd;

void
Record_forget_if_empty(Record *self)
{
    if (!self->ended || self->held_count != 0) {
        return;
    }
    PyObject *key = PyLong_FromUnsignedLongLong(self->serial);
    if (key != NULL && PyDict_GetItemWithError(core.records, key) != NULL) {
        PyDict_DelItem(core.records, key);
    }
    PyErr_Clear();
    Py_XDECREF(key);
}

static void
drop_ident(Record *self)
{
    PyObject *key = PyLong_FromUnsignedLong(self->ident);
    if (key != NULL && PyDict_GetItemWithError(core.by_ident, key) == (PyObject *)self) {
        PyDict_DelItem(core.by_ident, key);
    }
    PyErr_Clear();
    Py_XDECREF(key);
}

/* Say what a thread that is over still holds. */
static void
tell_held(Record *self)
{
    /* The listener is Python code and may let other threads release meanwhile: work on a copy. */
    PyObject *cells = PyList_New(0);
    for (Py_ssize_t i = 0; cells != NULL && i < self->held_count; i++) {
        LockCell *cell = Lock_cell(self->held[i]);
        if (cell == NULL || PyList_Append(cells, (PyObject *)cell) < 0) {
            Py_CLEAR(cells);
        }
    }
    for (Py_ssize_t i = 0; cells != NULL && i < PyList_GET_SIZE(cells); i++) {
        LockCell *cell = (LockCell *)PyList_GET_ITEM(cells, i);
        if (cell->lock != NULL && cell->lock->holder == self) {
            PyObject *hold = LockCell_hold(cell);
            if (cell->lock != NULL) {
                tell_misuse("exit-held", cell->lock, hold);
            }
            Py_XDECREF(hold);
        }
    }
    Py_XDECREF(cells);
}

/* The thread is over: say what it still holds, and forget it if that is nothing.  The caller has a reference. */
void
Record_end(Record *self)
{
    PyObject *error_type, *error, *trace;
    if (self->ended) {
        return;
    }
    PyErr_Fetch(&error_type, &error, &trace);
    self->ended = 1;
    if (tls_record == self) {
        tls_record = NULL;
    }
    Py_CLEAR(self->waker);
    drop_ident(self);
    Record_leave_queues(self);
    if (self->held_count > 0 && core.recording && !is_finalizing() && self->pid == (long)getpid()) {
        tell_held(self);
        swallow_error();
    }
    Record_forget_if_empty(self);
    PyErr_Restore(error_type, error, trace);
}

static void
ThreadEnd_dealloc(ThreadEnd *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->record != NULL) {
        Record_end(self->record);
        Py_CLEAR(self->record);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot ThreadEnd_slots[] = {
    {Py_tp_dealloc, ThreadEnd_dealloc},
    {0, NULL},
};
PyType_Spec ThreadEnd_spec = {
    .name = "concagent._core._ThreadEnd",
    .basicsize = sizeof(ThreadEnd),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = ThreadEnd_slots,
};

/* Ask Python code for the thread's name; -1 if a signal handler raised meanwhile. */
static int
describe(Record *self, PyObject *ident)
{
    if (Thread_describe(self, ident)) {
        return 0;
    }
    if (core.describe == NULL || core.describe == Py_None || is_finalizing()) {
        return 0;
    }
    PyObject *found = PyObject_CallFunction(core.describe, "k", self->ident);
    if (found == NULL) {
        return Error_drop_ours();
    }
    if (PyTuple_Check(found) && PyTuple_GET_SIZE(found) == 3) {
        Py_XSETREF(self->thread, Py_NewRef(PyTuple_GET_ITEM(found, 0)));
        Py_XSETREF(self->name, Py_NewRef(PyTuple_GET_ITEM(found, 1)));
        Py_XSETREF(self->daemon, Py_NewRef(PyTuple_GET_ITEM(found, 2)));
    }
    Py_DECREF(found);
    return 0;
}

/* Lay an object into the thread state's dictionary that ends the record with it. */
static int
end_with_thread(Record *self)
{
    PyObject *dict = PyThreadState_GetDict(); /* borrowed */
    PyObject *slot = dict == NULL ? NULL : PyUnicode_InternFromString("concagent._core.end");
    ThreadEnd *end = slot == NULL ? NULL : (ThreadEnd *)ThreadEndType->tp_alloc(ThreadEndType, 0);
    int failed = 1;
    if (end != NULL) {
        /* The record comes in last: whatever fails before must not end it. */
        failed = PyDict_SetItem(dict, slot, (PyObject *)end) < 0;
        if (!failed) {
            end->record = (Record *)Py_NewRef((PyObject *)self);
        }
        Py_DECREF(end);
    }
    else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    Py_XDECREF(slot);
    return failed ? -1 : 0;
}

/* A record in no table; NULL with an exception. */
static Record *
make_record(void)
{
    Record *self = (Record *)RecordType->tp_alloc(RecordType, 0);
    if (self == NULL) {
        return NULL;
    }
    self->ident = PyThread_get_thread_ident();
    self->native_id = PyThread_get_thread_native_id();
    self->pid = (long)getpid();
    self->serial = ++core.thread_serial;
    self->held = self->held_inline;
    self->chains = self->chains_inline;
    self->held_capacity = HELD_INLINE;
    self->waits = PyList_New(0);
    self->name = PyUnicode_FromFormat("thread-%lu", self->native_id);
    self->daemon = Py_NewRef(Py_True);
    self->thread = Py_NewRef(Py_None);
    if (self->waits == NULL || self->name == NULL) {
        Py_CLEAR(self);
    }
    return self;
}

/* Put a new record into the tables; a borrowed reference, which they keep; NULL with an exception. */
static Record *
enter_record(PyObject *ident)
{
    Record *self = make_record();
    PyObject *key = self == NULL ? NULL : PyLong_FromUnsignedLongLong(self->serial);
    if (key == NULL || PyDict_SetItem(core.records, key, (PyObject *)self) < 0) {
        Py_XDECREF(key);
        Py_XDECREF(self);
        return NULL;
    }
    Py_DECREF(key);
    if (PyDict_SetItem(core.by_ident, ident, (PyObject *)self) < 0 || end_with_thread(self) < 0) {
        PyObject *error_type, *error, *trace;
        PyErr_Fetch(&error_type, &error, &trace);
        self->ended = 1;
        drop_ident(self);
        Record_forget_if_empty(self);
        PyErr_Restore(error_type, error, trace);
        Py_DECREF(self);
        return NULL;
    }
    Py_DECREF(self);
    return self;
}

/* Make the calling thread's record; a borrowed reference, NULL with an exception. */
COLD Record *
Record_new(void)
{
    PyObject *ident = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    if (ident == NULL) {
        return NULL;
    }
    Record *old = (Record *)PyDict_GetItemWithError(core.by_ident, ident);
    if (old != NULL) { /* of a thread whose end nobody saw */
        Py_INCREF(old);
        Record_end(old);
        Py_DECREF(old);
    }
    if (tls_record != NULL) { /* the listener used a lock */
        Py_DECREF(ident);
        return tls_record;
    }
    int gc = gc_pause(); /* a finalizer that uses a lock would make a record of its own for this thread */
    Record *self = enter_record(ident);
    gc_resume(gc);
    if (self != NULL) {
        tls_record = self;
        /* Python code from here on; it may use locks and finds this record. */
        self = describe(self, ident) < 0 ? NULL : self;
    }
    Py_DECREF(ident);
    return self;
}

/* -- seen from Python -- */

static void
Record_dealloc(Record *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    for (Py_ssize_t i = 0; i < self->held_count; i++) {
        self->held[i]->holder = NULL; /* cannot be: the table keeps a record that holds something */
    }
    if (self->held != self->held_inline) {
        PyMem_Free(self->held);
        PyMem_Free(self->chains);
    }
    Py_CLEAR(self->waker);
    Py_CLEAR(self->waits);
    Py_CLEAR(self->name);
    Py_CLEAR(self->daemon);
    Py_CLEAR(self->thread);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
Record_get_held(Record *self, void *Py_UNUSED(closure))
{
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list != NULL && i < self->held_count; i++) {
        LockCell *cell = Lock_cell(self->held[i]);
        if (cell == NULL || PyList_Append(list, (PyObject *)cell) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *
Record_get_number(Record *self, void *closure)
{
    switch ((int)(intptr_t)closure) {
    case 0:
        return PyLong_FromUnsignedLongLong(self->serial);
    case 1:
        return PyLong_FromUnsignedLong(self->ident);
    case 2:
        return PyLong_FromUnsignedLong(self->native_id);
    case 3:
        return PyLong_FromLong(self->pid);
    case 4:
        return PyLong_FromUnsignedLongLong(self->epoch);
    case 5:
        return PyBool_FromLong(self->ended);
    default:
        return PyBool_FromLong(self->agent);
    }
}

static PyObject *
Record_get_object(Record *self, void *closure)
{
    PyObject *value = *(PyObject **)((char *)self + (intptr_t)closure);
    return Py_NewRef(value != NULL ? value : Py_None);
}

/* Return the innermost wait, None if the thread does not wait.  A thread whose waiter's lock was released and that has
 * not run since does not wait any more: nobody else need do anything for it to go on, and on a busy machine that may
 * last. (Who was woken for a lock of ours may find it taken once more; there the lock's holder tells.) */
PyObject *
Record_waiting(Record *self)
{
    Py_ssize_t count = PyList_GET_SIZE(self->waits);
    int is_woken = self->sleeps_on != NULL && WaiterLock_is_free(self->sleeps_on);
    return Py_NewRef(count == 0 || is_woken ? Py_None : PyList_GET_ITEM(self->waits, count - 1));
}

static PyObject *
Record_waiting_method(Record *self, PyObject *Py_UNUSED(none))
{
    return Record_waiting(self);
}

static PyObject *
Record_refresh(Record *self, PyObject *Py_UNUSED(none))
{
    if (self->thread == Py_None) {
        Py_RETURN_NONE;
    }
    PyObject *reference = Py_NewRef(self->thread);
    PyObject *thread = PyObject_CallNoArgs(reference);
    Py_DECREF(reference);
    if (thread != NULL && thread != Py_None) {
        PyObject *name = PyObject_GetAttrString(thread, "name");
        PyObject *daemon = name == NULL ? NULL : PyObject_GetAttrString(thread, "daemon");
        if (daemon != NULL) {
            Py_SETREF(self->name, Py_NewRef(name));
            Py_SETREF(self->daemon, Py_NewRef(daemon));
        }
        Py_XDECREF(name);
        Py_XDECREF(daemon);
    }
    Py_XDECREF(thread);
    swallow_error();
    Py_RETURN_NONE;
}

static PyObject *
Record_repr(Record *self)
{
    return PyUnicode_FromFormat("<ThreadRecord %llu %R>", (unsigned long long)self->serial, self->name);
}

static PyGetSetDef Record_getset[] = {
    {"held", (getter)Record_get_held, NULL, "Cells of the locks held, in the order of their acquisition.", NULL},
    {"serial", (getter)Record_get_number, NULL, NULL, (void *)0},
    {"ident", (getter)Record_get_number, NULL, NULL, (void *)1},
    {"native_id", (getter)Record_get_number, NULL, NULL, (void *)2},
    {"pid", (getter)Record_get_number, NULL, NULL, (void *)3},
    {"epoch", (getter)Record_get_number, NULL, NULL, (void *)4},
    {"ended", (getter)Record_get_number, NULL, NULL, (void *)5},
    {"agent", (getter)Record_get_number, NULL, NULL, (void *)6},
    {"waker", (getter)Record_get_object, NULL, "Who released the last waiter's lock that this thread took, or None.",
     (void *)offsetof(Record, waker)},
    {"waits", (getter)Record_get_object, NULL, NULL, (void *)offsetof(Record, waits)},
    {"name", (getter)Record_get_object, NULL, NULL, (void *)offsetof(Record, name)},
    {"daemon", (getter)Record_get_object, NULL, NULL, (void *)offsetof(Record, daemon)},
    {"thread", (getter)Record_get_object, NULL, NULL, (void *)offsetof(Record, thread)},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef Record_methods[] = {
    {"waiting", (PyCFunction)Record_waiting_method, METH_NOARGS, "Return the innermost wait, None if there is none."},
    {"refresh", (PyCFunction)Record_refresh, METH_NOARGS, "Read the thread's name again."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef Record_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Record, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot Record_slots[] = {
    {Py_tp_dealloc, Record_dealloc}, {Py_tp_getset, Record_getset}, {Py_tp_methods, Record_methods},
    {Py_tp_members, Record_members}, {Py_tp_repr, Record_repr},     {0, NULL},
};
PyType_Spec Record_spec = {
    .name = "concagent._core.ThreadRecord",
    .basicsize = sizeof(Record),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Record_slots,
};
