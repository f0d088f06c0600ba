/* SimpleQueue.get: an item that is there is taken at once, and the hook waits for one that is not. */
#include "_core_sync.h"

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
PyObject *
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
