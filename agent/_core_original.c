/* What this version's original accepts, what it raises to the rest, and what it calls things. */
#include "_core.h"

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

/* Read arguments of acquire where there are some; -1 with the exception that the original raises. */
int
parse_given(PyObject *const *args, Py_ssize_t count, PyObject *names, Patience *patience)
{
    return parse_usual(args, count, names, patience) ? 0 : parse_unusual(args, count, names, patience);
}

/* -- arguments of the types -- */

/* Raise what this version's type raises to these arguments, if it does. */
int
check_arguments(PyObject *original, PyObject *args, PyObject *kwargs)
{
    if (original == NULL || (PyTuple_GET_SIZE(args) == 0 && (kwargs == NULL || PyDict_GET_SIZE(kwargs) == 0))) {
        return 0;
    }
    PyObject *probe = PyObject_Call(original, args, kwargs);
    Py_XDECREF(probe);
    return probe == NULL ? -1 : 0;
}

/* -- names -- */

/* Leave out the methods that this version's original does not have, and let the others be described as it describes
 * them: signatures are made from these texts. */
void
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

void
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
