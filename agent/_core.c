/* The module: its types and tables, made once.  See _core.h for the structs, _core_asked.c for the functions. */
#include "_core.h"

Core core;
PyTypeObject *LockType, *RLockType, *CellType, *ClassType, *RecordType, *WaitType, *ThreadEndType;
static PyTypeObject *LockMetaType;

/* -- making locks -- */

static PyObject *
core_allocate_lock(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return Lock_make(LockType, KIND_LOCK);
}

static PyObject *
lockmeta_instancecheck(PyObject *cls, PyObject *instance)
{
    /* Originals made before us are locks, too. */
    PyTypeObject *type = Py_TYPE(instance);
    if (PyType_IsSubtype(type, (PyTypeObject *)cls)) {
        Py_RETURN_TRUE;
    }
    return PyBool_FromLong(core.real_allocate != NULL && strcmp(type->tp_name, "_thread.lock") == 0);
}

static PyMethodDef allocate_method = {"allocate_lock", core_allocate_lock, METH_NOARGS,
                                      "allocate_lock() -> lock object\n\nCreate a new lock object.  See "
                                      "help(type(threading.Lock())) for information about locks."};
static PyMethodDef instancecheck_method = {"__instancecheck__", lockmeta_instancecheck, METH_O, NULL};

static PyType_Slot LockMeta_slots[] = {
    {Py_tp_base, NULL}, /* filled in: &PyType_Type is no constant everywhere */
    {Py_tp_methods, NULL},
    {0, NULL},
};

/* The original of this name in `_thread`, NULL if somebody replaced it; a new reference. */
static PyObject *
original(PyObject *thread, const char *name, const char *type_name)
{
    PyObject *found = PyObject_GetAttrString(thread, name);
    if (found == NULL || !PyType_Check(found) || strcmp(((PyTypeObject *)found)->tp_name, type_name) != 0) {
        PyErr_Clear();
        Py_CLEAR(found);
    }
    return found;
}

static int
make_tables(void)
{
    core.class_limit = 8191;
    core.sample_left = 1024;
    core.records = PyDict_New();
    core.by_ident = PyDict_New();
    core.classes = PyDict_New();
    core.lines = PyDict_New();
    core.order_ring = PyList_New(0);
    core.use_ring = PyList_New(0);
    core.finalizer_name = PyUnicode_InternFromString("__del__");
    core.transparent = PySet_New(NULL);
    return core.records && core.by_ident && core.classes && core.lines && core.order_ring && core.use_ring &&
                   core.finalizer_name && core.transparent
               ? 0
               : -1;
}

static PyTypeObject *
make_type(PyObject *module, PyType_Spec *spec)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
}

static int
make_types(PyObject *module)
{
    static PyMethodDef meta_methods[2];
    static PyType_Spec meta_spec = {
        .name = "concagent._core._LockMeta",
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
        .slots = LockMeta_slots,
    };
    meta_methods[0] = instancecheck_method;
    LockMeta_slots[0].pfunc = &PyType_Type;
    LockMeta_slots[1].pfunc = meta_methods;
    LockMetaType = (PyTypeObject *)PyType_FromSpec(&meta_spec);
    LockType = make_type(module, &Lock_spec);
    RLockType = make_type(module, &RLock_spec);
    CellType = make_type(module, &LockCell_spec);
    ClassType = make_type(module, &LockClass_spec);
    RecordType = make_type(module, &Record_spec);
    WaitType = make_type(module, &Wait_spec);
    ThreadEndType = make_type(module, &ThreadEnd_spec);
    if (!LockMetaType || !LockType || !RLockType || !CellType || !ClassType || !RecordType || !WaitType ||
        !ThreadEndType || Waiter_init(module) < 0 || SharedCell_init(module) < 0) {
        return -1;
    }
    /* PyType_FromMetaclass is 3.12; the metatype adds one method and no field, so the exchange is safe. */
    Py_INCREF(LockMetaType);
    Py_SET_TYPE(LockType, LockMetaType);
#if PY_VERSION_HEX >= 0x030D0000
    LockType->tp_vectorcall = Lock_vectorcall; /* the slot is 3.14 */
#endif
    RLockType->tp_vectorcall = RLock_vectorcall;
    return 0;
}

/* Everything that lives as long as the process. */
static int
make_core(PyObject *module)
{
    PyObject *thread = PyImport_ImportModule("_thread");
    PyObject *name = thread == NULL ? NULL : PyUnicode_FromString("_thread");
    if (name == NULL) {
        Py_XDECREF(thread);
        return -1;
    }
    core.real_lock = original(thread, "LockType", "_thread.lock");
    core.real_rlock = original(thread, "RLock", "_thread.RLock");
    if (core.real_lock != NULL) {
        Lock_adopt_original(core.real_lock);
    }
    if (core.real_rlock != NULL) {
        RLock_adopt_original(core.real_rlock);
    }
    core.allocate = PyCFunction_NewEx(&allocate_method, thread, name);
    Py_DECREF(name);
    Py_DECREF(thread);
    if (core.allocate == NULL || make_tables() < 0 || make_types(module) < 0 || Sync_init(module) < 0 ||
        Open_init(module) < 0 || Thread_init(module) < 0) {
        return -1;
    }
    core.interpreter = PyInterpreterState_Get();
    return 0;
}

/* A second import in the same interpreter gets the same core: there is one of it, like the threads. */
static int
core_exec(PyObject *module)
{
    static char was_tried;
    if (core.interpreter == NULL && !was_tried) {
        was_tried = 1;
        if (make_core(module) < 0) {
            return -1;
        }
    }
    if (core.interpreter == NULL || core.interpreter != PyInterpreterState_Get()) {
        PyErr_SetString(PyExc_ImportError, "concagent._core serves one interpreter in a process");
        return -1;
    }
    if (PyModule_AddStringConstant(module, "NAME", "c") < 0 ||
        PyModule_AddObjectRef(module, "allocate_lock", core.allocate) < 0 ||
        PyModule_AddObjectRef(module, "Lock", (PyObject *)LockType) < 0 ||
        PyModule_AddObjectRef(module, "RLock", (PyObject *)RLockType) < 0 ||
        PyModule_AddObjectRef(module, "LockCell", (PyObject *)CellType) < 0 ||
        PyModule_AddObjectRef(module, "LockClass", (PyObject *)ClassType) < 0 ||
        PyModule_AddObjectRef(module, "ThreadRecord", (PyObject *)RecordType) < 0 ||
        PyModule_AddObjectRef(module, "Wait", (PyObject *)WaitType) < 0 ||
        PyModule_AddObjectRef(module, "SharedCell", (PyObject *)SharedCellType) < 0) {
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};
static PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "concagent._core",
    .m_doc = "Locks that record who holds them; the C twin of concagent._pycore.",
    .m_methods = core_methods,
    .m_slots = core_slots,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
