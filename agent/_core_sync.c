/* What the standard library builds on conditions: a wait is published, and taken back when it is over.
 *
 * `Condition.wait` and the methods of `Semaphore` are Python functions, and a hook around a Python function costs more
 * than the function.  So the hooks are callables of our own here.  `wait` publishes, calls the original and takes the
 * wait back with no Python code in between, so there is no moment at which a signal could leave a wait behind.  The
 * methods of semaphores are in _core_permits.c.
 */
#include "_core_sync.h"

static PyTypeObject *SyncMethodType;

Library lib;
PyObject *s_cell, *s_learn, *s_cond, *s_lock, *s_value, *s_initial, *s_waiters, *s_holders, *s_foreign, *s_timeout,
    *s_signallers;

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

int
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
        {"wait", wait_call},         {"acquire", acquire_call},
        {"release", release_call},   {"bounded_release", bounded_release_call},
        {"is_owned", is_owned_call}, {"simple_get", simple_get_call},
        {"start", start_call},       {"join", join_call},
    };
    const char *name;
    PyObject *function, *original;
    if (!PyArg_ParseTuple(args, "sOO:sync_method", &name, &function, &original)) {
        return NULL;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(kinds[i].name, name) == 0 &&
            (lib.cell_of != NULL || kinds[i].call == start_call || kinds[i].call == join_call)) {
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
