/* Waits that Python code publishes, for what is no lock of ours, and the cells that say what that is. */
#include "_core_sync.h"

/* -- cells -- */

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

/* -- waits -- */

PyObject *
core_begin_wait(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *resource, *frame;
    int timed;
    if (!PyArg_ParseTuple(args, "OpO:begin_wait", &resource, &timed, &frame)) {
        return NULL;
    }
    Record *record = current_record();
    if (record == NULL) {
        return NULL;
    }
    PyCodeObject *code = NULL;
    int lasti = 0;
    if (PyFrame_Check(frame)) {
        code = PyFrame_GetCode((PyFrameObject *)frame);
#if PY_VERSION_HEX >= 0x030B0000
        lasti = PyFrame_GetLasti((PyFrameObject *)frame);
#else
        lasti = Frame_lasti((PyFrameObject *)frame);
#endif
    }
    Wait *wait = Wait_new(resource, timed, code, lasti);
    Py_XDECREF(code);
    if (wait != NULL && PyList_Append(record->waits, (PyObject *)wait) < 0) {
        Py_CLEAR(wait);
    }
    record->epoch++;
    return (PyObject *)wait;
}

PyObject *
core_wait_mark(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    Record *record = current_record();
    return record == NULL ? NULL : PyLong_FromSsize_t(PyList_GET_SIZE(record->waits));
}

PyObject *
core_end_waits(PyObject *Py_UNUSED(module), PyObject *mark)
{
    Py_ssize_t from = PyLong_AsSsize_t(mark);
    Record *record = tls_record;
    if (from < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no mark of wait_mark(): %zd", from);
    }
    if (record != NULL) { /* else the thread is at its end */
        Record_end_waits(record, from);
    }
    Py_RETURN_NONE;
}

PyObject *
core_check_wait(PyObject *Py_UNUSED(module), PyObject *wait)
{
    Record *record = current_record();
    if (record == NULL) {
        return NULL;
    }
    if (Py_TYPE(wait) == WaitType && !((Wait *)wait)->timed && !record->agent && core.recording &&
        Wait_walk(record) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *
core_wake_victim(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *wait, *error;
    if (!PyArg_ParseTuple(args, "O!O:wake_victim", WaitType, &wait, &error)) {
        return NULL;
    }
    if (!PyExceptionInstance_Check(error)) {
        PyErr_SetString(PyExc_TypeError, "wake_victim() takes an exception");
        return NULL;
    }
    return PyBool_FromLong(Wait_wake_victim((Wait *)wait, error));
}
