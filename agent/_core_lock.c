/* Lock and RLock: drop-ins for _thread.lock and _thread.RLock that know their holder.
 *
 * Under the GIL an uncontended acquire is: is it free? then a handful of stores (who, where, which chain).  No system
 * call, no atomic, no allocation, no Python object.  CPython up to 3.14 asks a system semaphore instead, and parses an
 * argument tuple to be told "no arguments"; that is where the time is won which the recording costs.
 */
#include "_core.h"

#define HOLD_SAMPLE 1024 /* one uncontended acquisition in so many is timed; contended ones all are */

/* Return where the calling Python code is.  May run Python code (see Code_is_transparent). */
static inline Site
caller_site(int *entered)
{
    Site site = {NULL, 0, 0};
    PyThreadState *tstate = Thread_state();
    FramePtr frame = Frame_current(tstate);
    while (LIKELY(frame != NULL)) {
        PyCodeObject *code = Frame_code(frame);
        if (UNLIKELY(code == NULL)) {
            break;
        }
        FramePtr back;
        if (LIKELY(!Code_is_transparent(code)) || (back = Frame_back(frame)) == NULL) {
            site.code = code;
            site.lasti = Frame_lasti(frame);
            site.below = Frame_below(tstate, frame);
            break;
        }
        frame = back;
        *entered = 1; /* the standard library releases what it takes */
    }
    return site;
}

static inline Chain *
next_chain(Record *record, Lock *lock, Site site, int blocking)
{
    LockClass *cls = lock->cls;
    if (record->held_count == 0) {
        return &cls->root; /* the first lock of a thread has no order */
    }
    Chain *parent = record->chains[record->held_count - 1];
    size_t set = (((size_t)parent >> 4) ^ ((size_t)cls >> 4)) % CHAIN_SETS * 2;
    if (LIKELY(record->cache[set].cls == cls && record->cache[set].parent == parent)) {
        return record->cache[set].chain;
    }
    if (record->cache[set + 1].cls == cls && record->cache[set + 1].parent == parent) {
        return record->cache[set + 1].chain;
    }
    Chain *chain = Record_find_chain(record, parent, lock, site, blocking);
    if (chain != NULL &&
        (chain->told || !core.recording || record->agent)) { /* else there is still something to tell */
        record->cache[set + 1] = record->cache[set];
        record->cache[set].parent = parent;
        record->cache[set].cls = cls;
        record->cache[set].chain = chain;
    }
    return chain;
}

/* Record that the calling thread has taken the lock.  The caller made sure of room on the held stack. */
static inline void
took(Lock *self, Record *record, Site site, int entered, int blocking, int contended)
{
    LockClass *cls = self->cls;
    PyCodeObject *old = NULL;
    self->locked = LOCKED;
    self->depth = 1;
    self->generation++;
    self->entered = (char)entered;
    self->lasti = site.lasti;
    if (UNLIKELY(self->code != site.code)) {
        old = self->code;
        Py_XINCREF(site.code);
        self->code = site.code;
    }
    cls->acquisitions++;
    if (UNLIKELY(--core.sample_left == 0) || UNLIKELY(contended)) {
        if (core.sample_left == 0) {
            core.sample_left = HOLD_SAMPLE;
            cls->last_use = 0; /* to be looked at, though its mark be known */
        }
        self->sampled = 1;
        core.tick_ns = now_ns();
    }
    self->since_ns = core.tick_ns;
    if (LIKELY(!cls->is_signal) || self->kind == KIND_RLOCK) { /* an RLock needs its owner in any case */
        Chain *chain = next_chain(record, self, site, blocking);
        Py_ssize_t top = record->held_count;
        self->holder = record;
        record->chains[top] = chain;
        record->held[top] = self;
        record->held_count = top + 1;
    }
    uint64_t use = Use_mark(site, blocking);
    uint64_t last_use = cls->last_use;
    if (UNLIKELY(last_use != use)) {
        uint64_t key = (use ^ cls->serial << 33) * 0x9E3779B97F4A7C15u;
        cls->last_use = use;
        if (UNLIKELY(last_use == 0 || core.uses[key >> 54] != key)) {
            core.uses[key >> 54] = key;
            Use_look(self, record, blocking);
        }
    }
    Py_XDECREF(old); /* may run code: everything is consistent by now */
}

static inline int
have_room(Record *record)
{
    return LIKELY(record->held_count < record->held_capacity) || Record_grow(record) == 0;
}

static inline void
let_go(Lock *self)
{
    Record *holder = self->holder;
    if (holder != NULL) {
        self->holder = NULL;
        if (LIKELY(holder->held_count > 0 && holder->held[holder->held_count - 1] == self && !holder->ended)) {
            holder->held_count--;
        }
        else {
            Record_remove(holder, self);
        }
    }
    if (UNLIKELY(self->sampled)) {
        self->sampled = 0;
        uint64_t held = (uint64_t)(now_ns() - self->since_ns);
        self->cls->hold_ns += held;
        self->cls->hold_samples++;
        count_bucket(self->cls->hold_buckets, held);
    }
    self->locked = FREE;
    if (UNLIKELY(self->waiters != NULL)) {
        Wait_pass_on(self);
    }
}

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

/* -- arguments of acquire -- */

/* Up, as the original rounds; what it accepts fits into 63 bits. */
static inline int64_t
ns_of(double seconds)
{
    if (seconds < 0) {
        return -1;
    }
    double ns = seconds * 1e9;
    int64_t floor = ns < 9.2e18 ? (int64_t)ns : INT64_MAX;
    return floor + (floor < INT64_MAX && (double)floor < ns);
}

/* Everything unusual: let the original, on a lock of its own, raise what is to be raised, then read what it accepted.
 */
static COLD int
parse_unusual(PyObject *const *args, Py_ssize_t count, PyObject *names, Patience *patience)
{
    PyObject *blocking = NULL, *timeout = NULL;
    PyObject *probe = PyObject_CallNoArgs(core.real_allocate);
    PyObject *acquire = probe == NULL ? NULL : PyObject_GetAttrString(probe, "acquire");
    PyObject *result = acquire == NULL ? NULL : PyObject_Vectorcall(acquire, args, count, names);
    Py_XDECREF(acquire);
    Py_XDECREF(probe);
    if (result == NULL) {
        return -1;
    }
    Py_DECREF(result);
    for (Py_ssize_t i = 0; i < count; i++) {
        *(i == 0 ? &blocking : &timeout) = args[i];
    }
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        int is_timeout = PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, i), "timeout") == 0;
        *(is_timeout ? &timeout : &blocking) = args[count + i];
    }
    patience->blocking = blocking == NULL ? 1 : PyObject_IsTrue(blocking);
    double seconds = timeout == NULL ? -1.0 : PyFloat_AsDouble(timeout);
    if (patience->blocking < 0 || (seconds == -1.0 && PyErr_Occurred())) {
        return -1;
    }
    patience->timeout_ns = ns_of(seconds);
    return 0;
}

/* The arguments that programs really give, without the detour; 0 if these are others. */
static inline int
parse_usual(PyObject *const *args, Py_ssize_t count, PyObject *names, Patience *patience)
{
    PyObject *blocking = count > 0 ? args[0] : NULL;
    PyObject *timeout = count > 1 ? args[1] : NULL;
    if (UNLIKELY(count > 2)) {
        return 0;
    }
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (timeout == NULL && PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            timeout = args[count + i];
        }
        else if (blocking == NULL && PyUnicode_CompareWithASCIIString(name, "blocking") == 0) {
            blocking = args[count + i];
        }
        else {
            return 0;
        }
    }
    if (blocking == Py_False || (blocking != NULL && PyLong_CheckExact(blocking) && Py_SIZE(blocking) == 0)) {
        patience->blocking = 0;
        return timeout == NULL; /* with a time-out it is an error */
    }
    if (blocking != NULL && blocking != Py_True) {
        return 0;
    }
    if (timeout == NULL) {
        return 1;
    }
    double seconds;
    if (PyFloat_CheckExact(timeout)) {
        seconds = PyFloat_AS_DOUBLE(timeout);
    }
    else if (PyLong_CheckExact(timeout)) {
        int overflow;
        seconds = (double)PyLong_AsLongAndOverflow(timeout, &overflow); /* -1 after an overflow */
        if (overflow) {
            return 0;
        }
    }
    else {
        return 0;
    }
    if (!(seconds == -1.0 || (seconds >= 0 && seconds < 9e9))) {
        return 0;
    }
    patience->timeout_ns = ns_of(seconds);
    return 1;
}

/* Read acquire's arguments; -1 with the exception that the original raises. */
int
parse_patience(PyObject *const *args, Py_ssize_t count, PyObject *names, Patience *patience)
{
    patience->blocking = 1;
    patience->timeout_ns = -1;
    if (LIKELY(count == 0 && names == NULL) || parse_usual(args, count, names, patience)) {
        return 0;
    }
    return parse_unusual(args, count, names, patience);
}

/* -- Lock -- */

static inline int
acquire_lock(Lock *self, Patience patience, int entered, int interruptible)
{
    Record *record = current_record();
    int contended = 0;
    if (UNLIKELY(record == NULL)) {
        return -1;
    }
    Site site = caller_site(&entered); /* before we look at the lock: Python code may run */
    if (UNLIKELY(!have_room(record))) {
        return -1;
    }
    /* At the interpreter's end the thread for which a lock is reserved never comes: threads are gone before their
     * thread-locals, whose finalizers may want it. */
    if (UNLIKELY(self->locked) && !(self->locked == RESERVED && is_finalizing())) {
        if (!patience.blocking || patience.timeout_ns == 0) {
            return 0;
        }
        int got = Lock_wait(self, record, patience.timeout_ns, interruptible, site, entered);
        if (got <= 0) {
            return got;
        }
        contended = 1;
        if (UNLIKELY(!have_room(record))) { /* a handler may have taken locks while we waited */
            self->locked = FREE;
            Wait_unpark_first(self);
            return -1;
        }
    }
    took(self, record, site, entered, patience.blocking && patience.timeout_ns < 0, contended);
    return 1;
}

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

/* Of `__exit__`: since 3.15 it takes three, before that what it is given. */
static inline int
check_exit(Py_ssize_t count)
{
#if PY_VERSION_HEX >= 0x030F0000
    if (UNLIKELY(count != 3)) {
        PyErr_Format(PyExc_TypeError, "__exit__ expected 3 arguments, got %zd", count);
        return -1;
    }
#else
    (void)count;
#endif
    return 0;
}

static PyObject *
Lock_exit(Lock *self, PyObject *const *Py_UNUSED(args), Py_ssize_t count)
{
    return check_exit(count) < 0 || release_lock(self) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
Lock_locked(Lock *self, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(self->locked == LOCKED);
}

/* Free the lock in a fork's child: whoever held or awaited it does not exist there. */
static PyObject *
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

static void
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

/* Raise what this version's type raises to these arguments, if it does. */
static int
check_arguments(PyObject *original, PyObject *args, PyObject *kwargs)
{
    if (original == NULL || (PyTuple_GET_SIZE(args) == 0 && (kwargs == NULL || PyDict_GET_SIZE(kwargs) == 0))) {
        return 0;
    }
    PyObject *probe = PyObject_Call(original, args, kwargs);
    Py_XDECREF(probe);
    return probe == NULL ? -1 : 0;
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

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

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
static PyMemberDef Lock_members[] = {
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

/* -- RLock -- */

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
    return PyBool_FromLong(self->locked && is_ours(self, tls_record));
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

/* -- what this version calls things -- */

/* Leave out the methods that this version's original does not have, and let the others be described as it describes
 * them: signatures are made from these texts. */
static void
adopt_methods(PyMethodDef *methods, PyObject *original)
{
    PyMethodDef *kept = methods;
    for (PyMethodDef *method = methods; method->ml_name != NULL; method++) {
        PyObject *theirs = PyObject_GetAttrString(original, method->ml_name);
        if (theirs == NULL) {
            PyErr_Clear();
            continue;
        }
        *kept = *method;
        if (Py_TYPE(theirs) == &PyMethodDescr_Type) {
            kept->ml_doc = ((PyMethodDescrObject *)theirs)->d_method->ml_doc; /* a constant of the interpreter */
        }
        kept++;
        Py_DECREF(theirs);
    }
    *kept = (PyMethodDef){NULL, NULL, 0, NULL};
}

static void
adopt_doc(PyType_Slot *slots, PyObject *original)
{
    const char *doc = ((PyTypeObject *)original)->tp_doc;
    while (slots->slot != 0) {
        slots++;
    }
    if (doc != NULL) {
        *slots = (PyType_Slot){Py_tp_doc, (void *)doc};
    }
}

/* Call before the types are made; either may be NULL, if somebody replaced it. */
void
Lock_adopt_originals(PyObject *lock, PyObject *rlock)
{
    if (lock != NULL) {
        adopt_methods(Lock_methods, lock);
        adopt_doc(Lock_slots, lock);
    }
    if (rlock != NULL) {
        adopt_methods(RLock_methods, rlock);
        adopt_doc(RLock_slots, rlock);
    }
}
