/* Threads as the standard library starts and joins them: where from, who waits for which, what they are called.
 *
 * The C twin of what hooks/threads.py describes.  A hook of Python around `start` and another around `join` cost as
 * much as the new thread's record; here they are some stores, and what `start` waits on costs less than the original
 * does.
 *
 * `start` waits until the new thread says that it runs, which it always does: there is nothing to watch.  So the
 * condition in its event is exchanged for a gate, which opens once and stays open.  That is all that an event needs
 * that is set once: whoever sees the flag unset and comes to wait after it was set finds the gate open, so no lock is
 * needed around the two.  The wait itself is that of an original lock, and signals interrupt it as ever.  When the
 * thread runs the condition is put back: no gate is left for anybody to find.
 *
 * A new thread's name is read from its `Thread` object with no Python code, if that is plain: neither `name` nor
 * `daemon` is another property than the library's.
 */
#include "_core_sync.h"

/* A thread as a resource: whoever joins it waits for its end.  What it can do is in a class of Python derived from it.
 */
typedef struct {
    PyObject_HEAD uint64_t serial;
    PyObject *kind; /* owned */
    PyObject *code; /* owned: where it was started; NULL: unknown */
    int lasti;
    PyObject *name;      /* owned or NULL */
    PyObject *reference; /* owned: weak */
} ThreadCell;

typedef struct {
    PyObject_HEAD PyObject *lock; /* owned: an original, held until the gate opens */
    char is_open;
} Gate;

static PyTypeObject *ThreadCellType, *GateType;
static PyObject *s_thread, *s_ident, *s_started, *s_flag, *s_name, *s_daemon, *s_hidden_name, *s_hidden_daemon,
    *s_acquire, *s_release, *s_reinit;

/* What the library looks like; set once for each installation, and kept. */
static struct {
    PyTypeObject *cell, *event, *condition, *thread; /* owned; `cell` is derived from ThreadCellType */
    PyObject *active, *limbo;                        /* owned: the library's dicts */
    PyObject *name, *daemon;                         /* owned: its properties */
} threads;

/* -- cells -- */

static int
ThreadCell_init(ThreadCell *self, PyObject *args, PyObject *names)
{
    PyObject *thread;
    if ((names != NULL && PyDict_GET_SIZE(names) > 0) || !PyArg_ParseTuple(args, "O:ThreadCell", &thread)) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "ThreadCell() takes one argument");
        }
        return -1;
    }
    PyObject *reference = PyWeakref_NewRef(thread, NULL);
    if (reference == NULL) {
        return -1;
    }
    Py_XSETREF(self->reference, reference);
    Py_XSETREF(self->kind, Py_NewRef(s_thread));
    self->serial = ++core.serial;
    return 0;
}

static void
ThreadCell_dealloc(ThreadCell *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->kind);
    Py_XDECREF(self->code);
    Py_XDECREF(self->name);
    Py_XDECREF(self->reference);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef ThreadCell_members[] = {
    {"serial", T_ULONGLONG, offsetof(ThreadCell, serial), READONLY, NULL},
    {"kind", T_OBJECT, offsetof(ThreadCell, kind), READONLY, NULL},
    {"code", T_OBJECT, offsetof(ThreadCell, code), 0, "Where the thread was started, or None."},
    {"lasti", T_INT, offsetof(ThreadCell, lasti), 0, NULL},
    {"name", T_OBJECT, offsetof(ThreadCell, name), 0, NULL},
    {"reference", T_OBJECT, offsetof(ThreadCell, reference), READONLY, "Weak reference to the Thread."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot ThreadCell_slots[] = {
    {Py_tp_dealloc, ThreadCell_dealloc},
    {Py_tp_init, ThreadCell_init},
    {Py_tp_members, ThreadCell_members},
    {0, NULL},
};
static PyType_Spec ThreadCell_spec = {
    .name = "concagent._core.ThreadCell",
    .basicsize = sizeof(ThreadCell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = ThreadCell_slots,
};

/* Return the cell of a thread, made on first use; a new reference, NULL with an exception. */
static PyObject *
cell_of(PyObject *thread)
{
    PyObject *cell = attribute(thread, s_cell);
    if (cell != NULL || PyErr_Occurred()) {
        return cell;
    }
    PyObject *reference = PyWeakref_NewRef(thread, NULL);
    ThreadCell *made = reference == NULL ? NULL : (ThreadCell *)threads.cell->tp_alloc(threads.cell, 0);
    if (made == NULL) {
        Py_XDECREF(reference);
        return NULL;
    }
    made->reference = reference;
    made->kind = Py_NewRef(s_thread);
    made->serial = ++core.serial;
    cell = attribute(thread, s_cell); /* making one may have run the collector, and with it any code */
    if (cell == NULL && !PyErr_Occurred() && PyObject_GenericSetAttr(thread, s_cell, (PyObject *)made) == 0) {
        cell = Py_NewRef((PyObject *)made);
    }
    Py_DECREF((PyObject *)made);
    return cell;
}

/* -- the gate -- */

static PyObject *
Gate_new(void)
{
    PyObject *lock = PyObject_CallNoArgs(core.real_allocate);
    PyObject *taken = lock == NULL ? NULL : PyObject_CallMethodNoArgs(lock, s_acquire);
    Gate *self = taken == NULL ? NULL : PyObject_New(Gate, GateType);
    Py_XDECREF(taken);
    if (self == NULL) {
        Py_XDECREF(lock);
        return NULL;
    }
    self->lock = lock;
    self->is_open = 0;
    return (PyObject *)self;
}

static void
Gate_dealloc(Gate *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_DECREF(self->lock);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
Gate_enter(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    Py_RETURN_TRUE;
}

static PyObject *
Gate_exit(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args))
{
    Py_RETURN_NONE;
}

/* wait(timeout=None): whoever comes through leaves the gate open for the next. */
static PyObject *
Gate_wait(Gate *self, PyObject *args)
{
    PyObject *timeout = Py_None, *got;
    if (!PyArg_UnpackTuple(args, "wait", 0, 1, &timeout)) {
        return NULL;
    }
    if (self->is_open) {
        Py_RETURN_TRUE;
    }
    if (timeout == Py_None) {
        got = PyObject_CallMethodNoArgs(self->lock, s_acquire);
    }
    else {
        PyObject *zero = PyLong_FromLong(0);
        int waits = zero == NULL ? -1 : PyObject_RichCompareBool(timeout, zero, Py_GT);
        Py_XDECREF(zero);
        if (waits < 0) {
            return NULL;
        }
        got = waits ? PyObject_CallMethodObjArgs(self->lock, s_acquire, Py_True, timeout, NULL)
                    : PyObject_CallMethodObjArgs(self->lock, s_acquire, Py_False, NULL);
    }
    if (got == Py_True) {
        PyObject *released = PyObject_CallMethodNoArgs(self->lock, s_release);
        Py_XDECREF(released);
        if (released == NULL) {
            Py_CLEAR(got);
        }
    }
    return got;
}

/* On the new thread: it has a record before whoever started it goes on, for some waits are read off the interpreter. */
static PyObject *
Gate_notify_all(Gate *self, PyObject *Py_UNUSED(none))
{
    int theirs = current_record() == NULL && Error_drop_ours() < 0; /* the starter is not to wait for that */
    PyObject *type = NULL, *error = NULL, *trace = NULL, *released = Py_None;
    if (theirs) {
        PyErr_Fetch(&type, &error, &trace);
    }
    if (!self->is_open) {
        self->is_open = 1;
        released = PyObject_CallMethodNoArgs(self->lock, s_release);
        Py_XDECREF(released);
    }
    if (theirs) {
        PyErr_Restore(type, error, trace);
        return NULL;
    }
    return released == NULL ? NULL : Py_NewRef(Py_None);
}

static PyObject *
Gate_at_fork_reinit(Gate *self, PyObject *Py_UNUSED(none))
{
    PyObject *done = PyObject_CallMethodNoArgs(self->lock, s_reinit);
    if (done != NULL && !self->is_open) {
        Py_SETREF(done, PyObject_CallMethodObjArgs(self->lock, s_acquire, Py_False, NULL));
    }
    Py_XDECREF(done);
    return done == NULL ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef Gate_methods[] = {
    {"__enter__", Gate_enter, METH_NOARGS, NULL},
    {"__exit__", Gate_exit, METH_VARARGS, NULL},
    {"wait", (PyCFunction)Gate_wait, METH_VARARGS, "Wait until the thread runs."},
    {"notify_all", (PyCFunction)Gate_notify_all, METH_NOARGS, "Say that the thread runs."},
    {"_at_fork_reinit", (PyCFunction)Gate_at_fork_reinit, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot Gate_slots[] = {{Py_tp_dealloc, Gate_dealloc}, {Py_tp_methods, Gate_methods}, {0, NULL}};
static PyType_Spec Gate_spec = {
    .name = "concagent._core.StartGate",
    .basicsize = sizeof(Gate),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Gate_slots,
};

/* -- start -- */

/* A thread's event while it has a gate; all NULL: it has none. */
typedef struct {
    PyObject *event;     /* owned */
    PyObject *condition; /* owned: what the library put there */
    Gate *gate;          /* owned */
} Gated;

/* Put a gate into the thread's event, if that is as the library makes it, unset, and nobody waits for it. */
static void
set_gate(PyObject *thread, Gated *self)
{
    PyObject *started = attribute(thread, s_started);
    PyObject *condition = started != NULL && Py_TYPE(started) == threads.event ? attribute(started, s_cond) : NULL;
    PyObject *flag = condition != NULL && Py_TYPE(condition) == threads.condition ? attribute(started, s_flag) : NULL;
    PyObject *waiters = flag == Py_False ? attribute(condition, s_waiters) : NULL;
    if (waiters != NULL && PyObject_Size(waiters) == 0) {
        PyObject *gate = Gate_new();
        if (gate != NULL && PyObject_GenericSetAttr(started, s_cond, gate) == 0) {
            self->event = Py_NewRef(started);
            self->condition = Py_NewRef(condition);
            self->gate = (Gate *)Py_NewRef(gate);
        }
        Py_XDECREF(gate);
    }
    Py_XDECREF(waiters);
    Py_XDECREF(flag);
    Py_XDECREF(condition);
    Py_XDECREF(started);
}

/* Put the condition back once the thread has said that it runs: nobody needs a condition whose event is set, but
 * somebody may look at it.  With no lock around the two, the event's flag may have been seen just before the new thread
 * opens the gate, and has its record. */
static int
leave_gate(Gated *self)
{
    if (!self->gate->is_open) {
        PyObject *seconds = PyFloat_FromDouble(1.0);
        PyObject *arguments = seconds == NULL ? NULL : PyTuple_Pack(1, seconds);
        PyObject *came = arguments == NULL ? NULL : Gate_wait(self->gate, arguments);
        Py_XDECREF(seconds);
        Py_XDECREF(arguments);
        Py_XDECREF(came);
        if (came == NULL) {
            return -1;
        }
    }
    PyObject *present = self->gate->is_open ? attribute(self->event, s_cond) : NULL;
    int failed = present == (PyObject *)self->gate && PyObject_GenericSetAttr(self->event, s_cond, self->condition) < 0;
    Py_XDECREF(present);
    return failed || PyErr_Occurred() ? -1 : 0;
}

/* Remember where the thread is started from; -1 with an exception. */
static int
note_start(PyObject *thread)
{
    PyObject *cell = cell_of(thread);
    if (cell != NULL && PyObject_TypeCheck(cell, ThreadCellType)) {
        FramePtr frame = Frame_current(Thread_state());
        PyCodeObject *code = frame == NULL ? NULL : Frame_code(frame);
        ((ThreadCell *)cell)->lasti = code == NULL ? 0 : Frame_lasti(frame);
        Py_XSETREF(((ThreadCell *)cell)->code, Py_XNewRef((PyObject *)code));
    }
    Py_XDECREF(cell);
    return cell == NULL ? -1 : 0;
}

PyObject *
start_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    SyncMethod *self = (SyncMethod *)callable;
    Gated gated = {NULL, NULL, NULL};
    if (core.recording && threads.cell != NULL && PyVectorcall_NARGS(nargsf) > 0) {
        if (note_start(args[0]) == 0) {
            set_gate(args[0], &gated);
        }
        if (Error_drop_ours() < 0) {
            Py_CLEAR(gated.event);
            Py_CLEAR(gated.condition);
            Py_CLEAR(gated.gate);
            return NULL;
        }
    }
    PyObject *result = PyObject_Vectorcall(self->original, args, nargsf, names);
    if (result != NULL && gated.gate != NULL && leave_gate(&gated) < 0 && Error_drop_ours() < 0) {
        Py_CLEAR(result);
    }
    Py_XDECREF(gated.event);
    Py_XDECREF(gated.condition);
    Py_XDECREF((PyObject *)gated.gate);
    return result;
}

/* -- join -- */

/* Publish the wait for a thread's end, and walk from it where the thread waits itself (else it will walk, and see this
 * wait); -1 with an exception that may be ours, -2 with one that is the program's to see. */
static int
publish_join(Record *record, PyObject *thread, int timed)
{
    PyObject *ident = attribute(thread, s_ident);
    if (ident == NULL || !PyLong_Check(ident) || PyLong_AsUnsignedLong(ident) == PyThread_get_thread_ident()) {
        Py_XDECREF(ident); /* not started, or a mistake that the original knows */
        return PyErr_Occurred() ? -1 : 0;
    }
    FramePtr frame = Frame_current(Thread_state());
    PyCodeObject *code = frame == NULL ? NULL : Frame_code(frame);
    PyObject *cell = cell_of(thread);
    Wait *wait = cell == NULL ? NULL : Wait_new(cell, timed, code, code == NULL ? 0 : Frame_lasti(frame));
    int result = wait == NULL ? -1 : PyList_Append(record->waits, (PyObject *)wait);
    if (result == 0) {
        record->epoch++;
        Record *joined = (Record *)PyDict_GetItemWithError(core.by_ident, ident);
        if (joined != NULL && PyList_GET_SIZE(joined->waits) > 0 && !timed && !record->agent) {
            result = Wait_walk(record) < 0 ? -2 : 0;
        }
    }
    Py_XDECREF(wait);
    Py_XDECREF(cell);
    Py_DECREF(ident);
    return result;
}

PyObject *
join_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    SyncMethod *self = (SyncMethod *)callable;
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    Record *record = core.recording && threads.cell != NULL && count > 0 ? current_record() : NULL;
    if (record == NULL) {
        return Error_drop_ours() < 0 ? NULL : PyObject_Vectorcall(self->original, args, nargsf, names);
    }
    Py_ssize_t mark = PyList_GET_SIZE(record->waits);
    PyObject *result = NULL;
    Py_INCREF(self);
    Py_INCREF(record);
    int published = publish_join(record, args[0], has_timeout(args, count, names));
    if (published == 0 || (published == -1 && Error_drop_ours() == 0)) {
        result = PyObject_Vectorcall(self->original, args, nargsf, names);
    }
    PyObject *error_type, *error, *trace;
    PyErr_Fetch(&error_type, &error, &trace);
    Record_end_waits(record, mark);
    Py_DECREF(record);
    Py_DECREF(self);
    PyErr_Restore(error_type, error, trace);
    return result;
}

/* -- names -- */

/* Return the Thread that has this ident, borrowed; NULL: none is known, an exception may be set. */
static PyObject *
find_thread(PyObject *ident)
{
    PyObject *thread = PyDict_GetItemWithError(threads.active, ident);
    PyObject *candidate, *value;
    Py_ssize_t at = 0;
    unsigned long wanted = PyLong_AsUnsignedLong(ident);
    while (thread == NULL && !PyErr_Occurred() && PyDict_Next(threads.limbo, &at, &candidate, &value)) {
        PyObject *its = attribute(candidate, s_ident);
        if (its != NULL && PyLong_CheckExact(its) && PyLong_AsUnsignedLong(its) == wanted) {
            thread = candidate;
        }
        Py_XDECREF(its);
    }
    return thread;
}

/* Read what the thread's record says of it off its plain Thread object; 0: ask Python code. */
int
Thread_describe(Record *self, PyObject *ident)
{
    PyObject *thread = threads.active == NULL ? NULL : Py_XNewRef(find_thread(ident));
    int is_plain = thread != NULL && PyObject_TypeCheck(thread, threads.thread) &&
                   _PyType_Lookup(Py_TYPE(thread), s_name) == threads.name &&
                   _PyType_Lookup(Py_TYPE(thread), s_daemon) == threads.daemon;
    PyObject *name = is_plain ? attribute(thread, s_hidden_name) : NULL;
    PyObject *daemon = name == NULL ? NULL : attribute(thread, s_hidden_daemon);
    PyObject *reference = NULL;
    if (daemon != NULL && PyUnicode_CheckExact(name) && PyBool_Check(daemon)) {
        reference = PyWeakref_NewRef(thread, NULL);
    }
    PyErr_Clear();
    if (reference != NULL) {
        Py_XSETREF(self->name, Py_NewRef(name));
        Py_XSETREF(self->daemon, Py_NewRef(daemon));
        Py_XSETREF(self->thread, Py_NewRef(reference));
    }
    int known = reference != NULL;
    Py_XDECREF(reference);
    Py_XDECREF(name);
    Py_XDECREF(daemon);
    Py_XDECREF(thread);
    return known;
}

/* -- seen from Python -- */

PyObject *
core_configure_threads(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *cell, *event, *condition, *thread, *active, *limbo;
    if (!PyArg_ParseTuple(args, "O!O!O!O!O!O!:configure_threads", &PyType_Type, &cell, &PyType_Type, &event,
                          &PyType_Type, &condition, &PyType_Type, &thread, &PyDict_Type, &active, &PyDict_Type,
                          &limbo)) {
        return NULL;
    }
    if (!PyType_IsSubtype((PyTypeObject *)cell, ThreadCellType)) {
        PyErr_SetString(PyExc_TypeError, "a thread's cell is derived from ThreadCell");
        return NULL;
    }
    PyObject *name = PyObject_GetAttr(thread, s_name);
    PyObject *daemon = name == NULL ? NULL : PyObject_GetAttr(thread, s_daemon);
    if (daemon == NULL) {
        Py_XDECREF(name);
        return NULL;
    }
    Py_XSETREF(threads.event, (PyTypeObject *)Py_NewRef(event));
    Py_XSETREF(threads.condition, (PyTypeObject *)Py_NewRef(condition));
    Py_XSETREF(threads.thread, (PyTypeObject *)Py_NewRef(thread));
    Py_XSETREF(threads.name, name);
    Py_XSETREF(threads.daemon, daemon);
    Py_XSETREF(threads.limbo, Py_NewRef(limbo));
    Py_XSETREF(threads.active, Py_NewRef(active));
    Py_XSETREF(threads.cell, (PyTypeObject *)Py_NewRef(cell));
    Py_RETURN_NONE;
}

int
Thread_init(PyObject *module)
{
    static const struct {
        PyObject **place;
        const char *text;
    } names[] = {
        {&s_thread, "thread"},
        {&s_ident, "_ident"},
        {&s_started, "_started"},
        {&s_flag, "_flag"},
        {&s_name, "name"},
        {&s_daemon, "daemon"},
        {&s_hidden_name, "_name"},
        {&s_hidden_daemon, "_daemonic"},
        {&s_acquire, "acquire"},
        {&s_release, "release"},
        {&s_reinit, "_at_fork_reinit"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        *names[i].place = PyUnicode_InternFromString(names[i].text);
        if (*names[i].place == NULL) {
            return -1;
        }
    }
    ThreadCellType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ThreadCell_spec, NULL);
    GateType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Gate_spec, NULL);
    return ThreadCellType == NULL || GateType == NULL ||
                   PyModule_AddObjectRef(module, "ThreadCell", (PyObject *)ThreadCellType) < 0
               ? -1
               : 0;
}
