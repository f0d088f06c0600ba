/* What the standard library builds on conditions: a wait is published, and a permit has a holder.
 *
 * `Condition.wait` and the methods of `Semaphore` are Python functions, and a hook around a Python function costs more
 * than the function.  So the hooks are callables of our own here.  `wait` publishes, calls the original and takes the
 * wait back with no Python code in between, so there is no moment at which a signal could leave a wait behind.
 * `acquire` and `release` are a shortcut: with the GIL held and the semaphore's inner lock free nobody is inside, so
 * "is there a permit? take it; note who has it" is one step without the lock.  Where nothing is left or somebody waits
 * they call the original and note the permit afterwards.  Everything else (arguments, a derived class, the first use)
 * is left to the Python hook, which decides what a permit's holder is; see hooks/sync.py.
 *
 * Nothing runs while a shortcut looks: attributes are read from the instances of exactly the library's classes, a
 * number and a dictionary keyed by records run no code, and integers are no business of the garbage collector.
 */
#include "_core.h"

#define OUTER_SLOTS 16

typedef struct {
    PyObject_HEAD vectorcallfunc call;
    PyObject *function; /* owned: the hook, for what is no case for the shortcut; of `wait` the original, too */
    PyObject *original; /* owned */
    PyObject *dict;     /* owned or NULL: what a wrapper says of what it wraps */
    PyObject *weakrefs;
} SyncMethod;

static PyTypeObject *SyncMethodType;

/* What the library looks like; set once for each installation, and kept: a method of ours may be in use for ever. */
static struct {
    PyObject *cell_of; /* owned: (condition, object, what `outer` says) -> cell or None; does not raise */
    PyTypeObject *condition, *semaphore, *bounded; /* owned */
    PyObject *simple_get, *empty;                  /* owned: the original of SimpleQueue, and what it raises */
    struct {
        PyObject *code; /* owned */
        PyObject *kind; /* owned: the wait is for the `self` of this code; None: such a wait ends by itself */
    } outer[OUTER_SLOTS];
} lib;
static PyObject *s_cell, *s_learn, *s_cond, *s_lock, *s_value, *s_initial, *s_waiters, *s_holders, *s_foreign,
    *s_timeout, *s_signallers;

/* Return an attribute, a new reference; NULL: there is none, or an exception is set that is no AttributeError.  Asks no
 * `__getattr__` of the program, and makes no exception to drop it. */
static PyObject *
attribute(PyObject *object, PyObject *name)
{
    return _PyObject_GenericGetAttrWithDict(object, name, NULL, 1);
}

static PyObject *
kind_of(PyCodeObject *code)
{
    for (int i = 0; i < OUTER_SLOTS && lib.outer[i].code != NULL; i++) {
        if (lib.outer[i].code == (PyObject *)code) {
            return lib.outer[i].kind;
        }
    }
    return NULL;
}

/* Nothing runs between the look and the store, so a cell is made once, whatever threads come at the same time. */
PyObject *
core_keep_cell(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *target, *name, *cell;
    if (!PyArg_ParseTuple(args, "OUO:keep_cell", &target, &name, &cell)) {
        return NULL;
    }
    PyObject *found = attribute(target, name);
    if (found != NULL || PyErr_Occurred()) {
        return found;
    }
    return PyObject_GenericSetAttr(target, name, cell) < 0 ? NULL : Py_NewRef(cell);
}

PyObject *
core_find_cell(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *target, *name;
    if (!PyArg_ParseTuple(args, "OU:find_cell", &target, &name)) {
        return NULL;
    }
    PyObject *found = attribute(target, name);
    return found != NULL || PyErr_Occurred() ? found : Py_NewRef(Py_None);
}

/* -- Condition.wait -- */

/* The cell of what is waited for, which lies in the condition; made on first use.  NULL: there is none, an exception
 * may be set. */
static PyObject *
find_cell(PyObject *condition, PyObject *target, PyObject *kind)
{
    PyObject *cell = attribute(condition, s_cell);
    if (cell == NULL && !PyErr_Occurred()) {
        cell = PyObject_CallFunctionObjArgs(lib.cell_of, condition, target, kind, NULL);
    }
    if (cell == Py_None) {
        Py_CLEAR(cell);
    }
    return cell;
}

/* Say that the calling thread waits on a condition, on behalf of the outermost of the library's functions that called
 * it; return the cell, NULL if nothing is published. */
static PyObject *
publish(Record *record, PyObject *condition, int timed)
{
    PyObject *target = condition; /* borrowed: the caller's, or a frame's below us */
    PyObject *kind = Py_None;
    PyCodeObject *code = NULL;
    FramePtr frame = Frame_current(Thread_state());
    while (frame != NULL && (code = Frame_code(frame)) != NULL && Code_is_transparent(code)) {
        PyObject *outer = kind_of(code);
        PyObject *user = outer == NULL ? NULL : Frame_first_local(frame);
        if (outer == Py_None) {
            return NULL;
        }
        if (user != NULL) {
            target = user;
            kind = outer;
        }
        frame = Frame_back(frame);
    }
    PyObject *cell = find_cell(condition, target, kind);
    if (cell != NULL) {
        int lasti = frame == NULL || code == NULL ? 0 : Frame_lasti(frame);
        Wait *wait = Wait_new(cell, timed, frame == NULL ? NULL : code, lasti);
        if (wait != NULL && PyList_Append(record->waits, (PyObject *)wait) == 0) {
            record->epoch++;
        }
        Py_XDECREF(wait);
    }
    return cell;
}

/* Count who has ended the wait; a new one is a matter for the cell. */
static void
learn(PyObject *cell, Record *waker)
{
    PyObject *known = PyObject_GenericGetAttr(cell, s_signallers);
    PyObject *times =
        known == NULL || !PyDict_CheckExact(known) ? NULL : PyDict_GetItemWithError(known, (PyObject *)waker);
    if (times != NULL && PyLong_CheckExact(times)) {
        PyObject *more = PyLong_FromLongLong(PyLong_AsLongLong(times) + 1);
        if (more != NULL) {
            PyDict_SetItem(known, (PyObject *)waker, more);
            Py_DECREF(more);
        }
    }
    else if (!PyErr_Occurred()) {
        Py_XDECREF(PyObject_CallMethodObjArgs(cell, s_learn, (PyObject *)waker, NULL));
    }
    Py_XDECREF(known);
}

static int
has_timeout(PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count > 1) {
        return args[1] != Py_None;
    }
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        if (PyUnicode_Compare(PyTuple_GET_ITEM(names, i), s_timeout) == 0) {
            return args[count + i] != Py_None;
        }
    }
    return 0;
}

static PyObject *
wait_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    SyncMethod *self = (SyncMethod *)callable;
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    Record *record = core.recording && count > 0 ? current_record() : NULL;
    if (record == NULL) {
        return Error_drop_ours() < 0 ? NULL : PyObject_Vectorcall(self->function, args, nargsf, names);
    }
    Py_ssize_t mark = PyList_GET_SIZE(record->waits);
    PyObject *result = NULL;
    Py_INCREF(self);
    Py_INCREF(record);
    PyObject *cell = publish(record, args[0], has_timeout(args, count, names));
    if (Error_drop_ours() == 0) {
        result = PyObject_Vectorcall(self->original, args, nargsf, names);
    }
    if (result == Py_True && cell != NULL && record->waker != NULL) {
        Record *waker = (Record *)Py_NewRef((PyObject *)record->waker);
        learn(cell, waker);
        Py_DECREF(waker);
        if (Error_drop_ours() < 0) {
            Py_CLEAR(result);
        }
    }
    PyObject *error_type, *error, *trace;
    PyErr_Fetch(&error_type, &error, &trace);
    Record_end_waits(record, mark);
    Py_XDECREF(cell);
    Py_DECREF(record);
    Py_DECREF(self);
    PyErr_Restore(error_type, error, trace);
    return result;
}

/* -- Semaphore -- */

/* Return an attribute, NULL if there is none; borrowed: the object keeps it, and nothing runs while we look.  What
 * nobody keeps (a property's result) is none. */
static PyObject *
peek(PyObject *object, PyObject *name)
{
    PyObject *value = attribute(object, name);
    if (value == NULL) {
        PyErr_Clear();
        return NULL;
    }
    int is_kept = Py_REFCNT(value) > 1;
    Py_DECREF(value);
    return is_kept ? value : NULL;
}

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

static PyObject *
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

static PyObject *
release_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    return release_of(lib.semaphore, callable, args, nargsf, names);
}

static PyObject *
bounded_release_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    return release_of(lib.bounded, callable, args, nargsf, names);
}

/* -- SimpleQueue.get -- */

/* What the arguments of `get` ask for: 1 to wait, 0 not to wait, -1 they are odd: let Python code look at them. */
static int
is_patient(PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *block = count > 1 ? args[1] : Py_True;
    PyObject *timeout = count > 2 ? args[2] : Py_None;
    if (count < 1 || count > 3) {
        return -1;
    }
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            timeout = args[count + i];
        }
        else if (PyUnicode_CompareWithASCIIString(name, "block") == 0) {
            block = args[count + i];
        }
        else {
            return -1;
        }
    }
    if (block == Py_False) {
        return 0;
    }
    double seconds = timeout == Py_None            ? 0
                     : PyFloat_CheckExact(timeout) ? PyFloat_AS_DOUBLE(timeout)
                     : PyLong_CheckExact(timeout)  ? PyLong_AsDouble(timeout)
                                                   : -1;
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return -1;
    }
    return block == Py_True && seconds >= 0 && seconds < 9e9 ? 1 : -1;
}

/* An item that is there is taken without blocking, so the queue is asked once and not "are you empty?" first; the hook
 * waits. */
static PyObject *
simple_get_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    int patient = !core.recording ? 0 : count == 1 && names == NULL ? 1 : is_patient(args, count, names);
    if (patient == 0) {
        return PyObject_Vectorcall(lib.simple_get, args, nargsf, names);
    }
    if (patient > 0) {
        PyObject *given[2] = {args[0], Py_False};
        PyObject *item = PyObject_Vectorcall(lib.simple_get, given, 2, NULL);
        if (item != NULL || !PyErr_ExceptionMatches(lib.empty)) {
            return item;
        }
        PyErr_Clear();
    }
    return PyObject_Vectorcall(((SyncMethod *)callable)->function, args, nargsf, names);
}

PyObject *
core_configure_simple_get(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *original, *empty;
    if (!PyArg_ParseTuple(args, "OO:configure_simple_get", &original, &empty)) {
        return NULL;
    }
    Py_XSETREF(lib.simple_get, Py_NewRef(original));
    Py_XSETREF(lib.empty, Py_NewRef(empty));
    Py_RETURN_NONE;
}

/* Put a method into a type that does not let its attributes be set; return what was there. */
PyObject *
core_replace_method(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyTypeObject *type;
    PyObject *name, *method;
    if (!PyArg_ParseTuple(args, "O!UO:replace_method", &PyType_Type, &type, &name, &method)) {
        return NULL;
    }
    if (!PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) { /* others are shared by all interpreters */
        return PyErr_Format(PyExc_TypeError, "%s is a static type", type->tp_name);
    }
    PyObject *old = PyDict_GetItemWithError(type->tp_dict, name);
    if (old == NULL) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_AttributeError, "%s has no %U", type->tp_name, name);
    }
    Py_INCREF(old);
    if (PyDict_SetItem(type->tp_dict, name, method) < 0) {
        Py_CLEAR(old);
    }
    PyType_Modified(type);
    return old;
}

/* -- seen from Python -- */

static PyObject *
SyncMethod_get(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

static PyObject *
SyncMethod_repr(PyObject *self)
{
    return PyObject_Repr(((SyncMethod *)self)->function);
}

/* A name, as for any function: pickled by reference, and its own copy. */
static PyObject *
SyncMethod_reduce(PyObject *self, PyObject *Py_UNUSED(none))
{
    return PyObject_GetAttrString(((SyncMethod *)self)->function, "__qualname__");
}

static int
SyncMethod_traverse(SyncMethod *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->function);
    Py_VISIT(self->original);
    Py_VISIT(self->dict);
    return 0;
}

static int
SyncMethod_clear(SyncMethod *self)
{
    Py_CLEAR(self->dict); /* the functions stay: there is no method without */
    return 0;
}

static void
SyncMethod_dealloc(SyncMethod *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    Py_CLEAR(self->function);
    Py_CLEAR(self->original);
    Py_CLEAR(self->dict);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef SyncMethod_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(SyncMethod, call), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(SyncMethod, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SyncMethod, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef SyncMethod_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef SyncMethod_methods[] = {
    {"__reduce__", SyncMethod_reduce, METH_NOARGS, "Return the name."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot SyncMethod_slots[] = {
    {Py_tp_dealloc, SyncMethod_dealloc}, {Py_tp_traverse, SyncMethod_traverse},
    {Py_tp_clear, SyncMethod_clear},     {Py_tp_call, PyVectorcall_Call},
    {Py_tp_descr_get, SyncMethod_get},   {Py_tp_repr, SyncMethod_repr},
    {Py_tp_members, SyncMethod_members}, {Py_tp_getset, SyncMethod_getset},
    {Py_tp_methods, SyncMethod_methods}, {0, NULL},
};
static PyType_Spec SyncMethod_spec = {
    .name = "concagent._core.SyncMethod",
    .basicsize = sizeof(SyncMethod),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_METHOD_DESCRIPTOR | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = SyncMethod_slots,
};

int
Sync_init(PyObject *module)
{
    static const struct {
        PyObject **place;
        const char *text;
    } names[] = {
        {&s_cell, "_concagent_cell"}, {&s_learn, "learn"},           {&s_cond, "_cond"},
        {&s_lock, "_lock"},           {&s_value, "_value"},          {&s_initial, "_initial_value"},
        {&s_waiters, "_waiters"},     {&s_holders, "holders"},       {&s_foreign, "foreign"},
        {&s_timeout, "timeout"},      {&s_signallers, "signallers"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        *names[i].place = PyUnicode_InternFromString(names[i].text);
        if (*names[i].place == NULL) {
            return -1;
        }
    }
    SyncMethodType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &SyncMethod_spec, NULL);
    return SyncMethodType == NULL ? -1 : 0;
}

PyObject *
core_configure_sync(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *outer, *cell_of, *code, *kind;
    PyTypeObject *condition, *semaphore, *bounded;
    if (!PyArg_ParseTuple(args, "O!OO!O!O!:configure_sync", &PyDict_Type, &outer, &cell_of, &PyType_Type, &condition,
                          &PyType_Type, &semaphore, &PyType_Type, &bounded)) {
        return NULL;
    }
    if (PyDict_GET_SIZE(outer) > OUTER_SLOTS) {
        return PyErr_Format(PyExc_ValueError, "more than %d functions that wait", OUTER_SLOTS);
    }
    Py_XSETREF(lib.cell_of, Py_NewRef(cell_of));
    Py_XSETREF(lib.condition, (PyTypeObject *)Py_NewRef((PyObject *)condition));
    Py_XSETREF(lib.semaphore, (PyTypeObject *)Py_NewRef((PyObject *)semaphore));
    Py_XSETREF(lib.bounded, (PyTypeObject *)Py_NewRef((PyObject *)bounded));
    Py_ssize_t at = 0;
    int slot = 0;
    while (PyDict_Next(outer, &at, &code, &kind)) {
        Py_XSETREF(lib.outer[slot].code, Py_NewRef(code));
        Py_XSETREF(lib.outer[slot].kind, Py_NewRef(kind));
        slot++;
    }
    for (; slot < OUTER_SLOTS; slot++) {
        Py_CLEAR(lib.outer[slot].code);
        Py_CLEAR(lib.outer[slot].kind);
    }
    Py_RETURN_NONE;
}

PyObject *
core_sync_method(PyObject *Py_UNUSED(module), PyObject *args)
{
    static const struct {
        const char *name;
        vectorcallfunc call;
    } kinds[] = {
        {"wait", wait_call},
        {"acquire", acquire_call},
        {"release", release_call},
        {"bounded_release", bounded_release_call},
        {"simple_get", simple_get_call},
    };
    const char *name;
    PyObject *function, *original;
    if (!PyArg_ParseTuple(args, "sOO:sync_method", &name, &function, &original)) {
        return NULL;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(kinds[i].name, name) == 0 && lib.cell_of != NULL) {
            SyncMethod *self = (SyncMethod *)SyncMethodType->tp_alloc(SyncMethodType, 0);
            if (self != NULL) {
                self->call = kinds[i].call;
                self->function = Py_NewRef(function);
                self->original = Py_NewRef(original);
            }
            return (PyObject *)self;
        }
    }
    return PyErr_Format(PyExc_ValueError, "no such method, or configure_sync() was not called: %s", name);
}
