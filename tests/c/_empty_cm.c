/* A context manager that does nothing: what `with` itself costs, for benchmarks.  Not shipped.
 *
 * Its methods have the shape of a lock's, METH_NOARGS and METH_FASTCALL, so that the interpreter calls them the same
 * way.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyObject *
Empty_enter(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    Py_RETURN_TRUE;
}

static PyObject *
Empty_exit(PyObject *Py_UNUSED(self), PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count))
{
    Py_RETURN_NONE;
}

static PyMethodDef Empty_methods[] = {
    {"__enter__", Empty_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))Empty_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot Empty_slots[] = {
    {Py_tp_methods, Empty_methods},
    {0, NULL},
};
static PyType_Spec Empty_spec = {
    .name = "_empty_cm.Empty",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Empty_slots,
};

static int
exec_module(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &Empty_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddType(module, (PyTypeObject *)type) < 0;
    Py_DECREF(type);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, exec_module},
    {0, NULL},
};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_empty_cm", .m_slots = slots};

PyMODINIT_FUNC
PyInit__empty_cm(void)
{
    return PyModuleDef_Init(&module);
}
