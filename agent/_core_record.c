/* Per-thread records: what a thread holds and waits for.
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

static void
forget_if_empty(Record *self)
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
    forget_if_empty(self);
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
describe(Record *self)
{
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
        forget_if_empty(self);
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
    Py_DECREF(ident);
    if (self == NULL) {
        return NULL;
    }
    tls_record = self;
    /* Python code from here on; it may use locks and finds this record. */
    return describe(self) < 0 ? NULL : self;
}

/* Double the held stack; it is on the heap then. */
COLD int
Record_grow(Record *self)
{
    Py_ssize_t capacity = self->held_capacity * 2;
    Lock **held = PyMem_Malloc(sizeof(Lock *) * (size_t)capacity);
    Chain **chains = PyMem_Malloc(sizeof(Chain *) * (size_t)capacity);
    if (held == NULL || chains == NULL) {
        PyMem_Free(held);
        PyMem_Free(chains);
        PyErr_NoMemory();
        return -1;
    }
    memcpy(held, self->held, sizeof(Lock *) * (size_t)self->held_count);
    memcpy(chains, self->chains, sizeof(Chain *) * (size_t)self->held_count);
    if (self->held != self->held_inline) {
        PyMem_Free(self->held);
        PyMem_Free(self->chains);
    }
    else {
        core.held_overflows++;
    }
    self->held = held;
    self->chains = chains;
    self->held_capacity = capacity;
    return 0;
}

/* Return the chain parent -> class, made if need be; NULL if the table is full.
 *
 * A chain that was found moves to the front of its siblings: of thousands of locks that are taken inside of one, few
 * are in use at a time. */
static Chain *
chain_of(Chain *parent, LockClass *cls)
{
    for (Chain **link = &parent->children; *link != NULL; link = &(*link)->sibling) {
        Chain *child = *link;
        if (child->cls == cls) {
            *link = child->sibling;
            child->sibling = parent->children;
            parent->children = child;
            return child;
        }
    }
    Chain *chain = core.chains >= (1 << 20) ? NULL : PyMem_RawCalloc(1, sizeof(Chain));
    if (chain != NULL) {
        chain->parent = parent;
        chain->cls = cls;
        chain->sibling = parent->children;
        parent->children = chain;
        core.chains++;
    }
    return chain;
}

/* Put "cls, inside of all that is held" into the order ring.  Called amid an acquisition: no Python code may run. */
static void
tell_order(Record *self, LockClass *cls, Site site, int blocking)
{
    if (PyList_GET_SIZE(core.order_ring) >= ORDER_RING) {
        core.order_dropped++;
        return;
    }
    int gc = gc_pause();
    PyObject *outer = PyTuple_New(self->held_count);
    for (Py_ssize_t i = 0; outer != NULL && i < self->held_count; i++) {
        PyObject *serial = PyLong_FromUnsignedLongLong(self->held[i]->cls->serial);
        if (serial == NULL) {
            Py_CLEAR(outer);
            break;
        }
        PyTuple_SET_ITEM(outer, i, serial);
    }
    PyObject *row = outer == NULL ? NULL
                                  : Py_BuildValue("(NKOiKi)", outer, (unsigned long long)cls->serial,
                                                  site.code != NULL ? (PyObject *)site.code : Py_None, site.lasti,
                                                  (unsigned long long)self->serial, blocking);
    if (row == NULL || PyList_Append(core.order_ring, row) < 0) {
        PyErr_Clear();
        core.order_dropped++;
    }
    Py_XDECREF(row);
    gc_resume(gc);
}

/* Return the chain of what is held and this lock; one that the order ring has not had goes there.  NULL if the table is
 * full.
 *
 * An acquisition that only tries is no order, so a chain known from trying is told again when somebody waits. */
COLD Chain *
Record_find_chain(Record *self, Chain *parent, Lock *lock, Site site, int blocking)
{
    Chain *chain = parent == NULL ? NULL : chain_of(parent, lock->cls);
    if (chain == NULL) {
        core.order_dropped++;
        return NULL;
    }
    if (core.recording && !self->agent && !chain->told && (blocking || !chain->told_tried)) {
        if (blocking) {
            chain->told = 1;
        }
        else {
            chain->told_tried = 1;
        }
        tell_order(self, lock->cls, site, blocking);
    }
    return chain;
}

/* Forget all that the threads know of chains: some that were taken while nobody listened are still to be told. */
void
Record_forget_caches(void)
{
    PyObject *key, *record;
    Py_ssize_t at = 0;
    while (PyDict_Next(core.records, &at, &key, &record)) {
        memset(((Record *)record)->cache, 0, sizeof((Record *)record)->cache);
    }
}

/* Make the chains anew from `from` on.  An order that comes about by releasing out of turn is not told: the locks were
 * taken in another one, which was told then. */
static void
rechain(Record *self, Py_ssize_t from)
{
    for (Py_ssize_t i = from; i < self->held_count; i++) {
        LockClass *cls = self->held[i]->cls;
        self->chains[i] = i == 0 ? &cls->root : self->chains[i - 1] == NULL ? NULL : chain_of(self->chains[i - 1], cls);
    }
}

/* Take a lock out of the held stack: the last one nearly always, any other in hand-over-hand code. */
COLD void
Record_remove(Record *self, Lock *lock)
{
    for (Py_ssize_t i = self->held_count - 1; i >= 0; i--) {
        if (self->held[i] == lock) {
            memmove(&self->held[i], &self->held[i + 1], sizeof(Lock *) * (size_t)(self->held_count - i - 1));
            self->held_count--;
            rechain(self, i);
            break;
        }
    }
    if (UNLIKELY(self->ended)) {
        forget_if_empty(self);
    }
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

/* Hide a new tuple from the garbage collector: nothing in it leads back to it, and thousands of them would make the
 * collector go through the whole heap. */
static PyObject *
hidden(PyObject *tuple)
{
    if (tuple != NULL && PyObject_GC_IsTracked(tuple)) {
        PyObject_GC_UnTrack(tuple);
    }
    return tuple;
}

/* The pairs (cell, hold) of the locks that a record has, as a tuple. */
static PyObject *
read_held(Record *self)
{
    PyObject *pairs = PyList_New(0);
    for (Py_ssize_t i = 0; pairs != NULL && i < self->held_count; i++) {
        LockCell *cell = Lock_cell(self->held[i]);
        Py_XINCREF(cell);
        PyObject *hold = cell == NULL ? NULL : LockCell_hold(cell);
        int failed = hold == NULL;
        if (hold != NULL && hold != Py_None && PyTuple_GET_ITEM(hold, 0) == (PyObject *)self) {
            PyObject *pair = hidden(PyTuple_Pack(2, cell, hold));
            failed = pair == NULL || PyList_Append(pairs, pair) < 0;
            Py_XDECREF(pair);
        }
        Py_XDECREF(hold);
        Py_XDECREF(cell);
        if (failed) {
            Py_CLEAR(pairs);
        }
    }
    PyObject *result = pairs == NULL ? NULL : hidden(PyList_AsTuple(pairs));
    Py_XDECREF(pairs);
    return result;
}

/* (epoch, wait, hold that it waits for, held), in this order. */
static PyObject *
read_record(Record *self)
{
    uint64_t epoch = self->epoch;
    PyObject *wait = Record_waiting(self);
    PyObject *hold = NULL;
    if (wait == Py_None) {
        hold = Py_NewRef(Py_None);
    }
    else {
        PyObject *resource = Py_NewRef(((Wait *)wait)->resource);
        hold = Py_TYPE(resource) == CellType ? LockCell_hold_seen_by((LockCell *)resource, wait)
                                             : PyObject_CallMethod(resource, "hold_seen_by", "O", wait);
        Py_DECREF(resource);
    }
    PyObject *held = hold == NULL ? NULL : read_held(self);
    PyObject *result =
        held == NULL ? NULL : hidden(Py_BuildValue("(KOOO)", (unsigned long long)epoch, wait, hold, held));
    Py_XDECREF(held);
    Py_XDECREF(hold);
    Py_DECREF(wait);
    return result;
}

PyObject *
core_readings(PyObject *Py_UNUSED(module), PyObject *records)
{
    if (!PyList_Check(records)) {
        return PyErr_Format(PyExc_TypeError, "readings() takes a list of records");
    }
    PyObject *result = PyList_New(0);
    for (Py_ssize_t i = 0; result != NULL && i < PyList_GET_SIZE(records); i++) {
        PyObject *record = PyList_GET_ITEM(records, i);
        if (Py_TYPE(record) != RecordType) {
            PyErr_SetString(PyExc_TypeError, "readings() takes a list of records");
            Py_CLEAR(result);
            break;
        }
        PyObject *reading = read_record((Record *)record);
        if (reading == NULL || PyList_Append(result, reading) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(reading);
    }
    return result;
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
