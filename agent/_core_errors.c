/* Exceptions that cannot be raised where they come up: ours are dropped, the program's are raised a moment later. */
#include "_core.h"

/* Drop what went wrong on our side; -1: what is set is the program's, raised by a signal handler that ran meanwhile. */
COLD int
Error_drop_ours(void)
{
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (type == NULL) {
        return 0;
    }
    int theirs = !PyErr_GivenExceptionMatches(type, PyExc_Exception); /* KeyboardInterrupt, SystemExit */
    if (!theirs && !is_finalizing()) {
        PyErr_NormalizeException(&type, &error, &trace);
        if (trace != NULL) {
            PyException_SetTraceback(error, trace);
        }
        PyObject *module = PyImport_ImportModule("concagent.interruptions");
        PyObject *answer = module == NULL ? NULL : PyObject_CallMethod(module, "is_of_handler", "O", error);
        theirs = answer == NULL || answer == Py_True; /* no answer: one more signal came */
        PyErr_Clear();
        Py_XDECREF(answer);
        Py_XDECREF(module);
    }
    if (theirs) {
        PyErr_Restore(type, error, trace);
        return -1;
    }
    Py_DECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return 0;
}

static int
raise_later(void *error)
{
    PyErr_SetObject((PyObject *)Py_TYPE((PyObject *)error), (PyObject *)error);
    Py_DECREF((PyObject *)error);
    return -1;
}

COLD void
swallow_error(void)
{
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        PyErr_SetInterrupt();
        PyErr_Clear();
    }
    if (Error_drop_ours() < 0) { /* signal handlers run in the main thread, and so do pending calls */
        PyObject *type, *error, *trace;
        PyErr_Fetch(&type, &error, &trace);
        PyErr_NormalizeException(&type, &error, &trace);
        if (trace != NULL) {
            PyException_SetTraceback(error, trace);
        }
        Py_XDECREF(type);
        Py_XDECREF(trace);
        if (Py_AddPendingCall(raise_later, error) < 0) {
            Py_XDECREF(error); /* more of them are waiting than there is room for */
        }
    }
}
