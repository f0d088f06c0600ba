/* Condition._is_owned: whether a condition's lock is its caller's, and who is told where it is not. */
#include "_core_sync.h"

/* Whoever asks a lock whether it is his, and it is not, may be a condition that is about to refuse; -1: the program has
 * raised meanwhile. */
COLD int
Sync_not_owned(void)
{
    if (!core.recording || is_finalizing() || lib.not_owned == NULL) {
        return 0;
    }
    PyObject *hook = Py_NewRef(lib.not_owned);
    Py_XDECREF(PyObject_CallNoArgs(hook));
    Py_DECREF(hook);
    return Error_drop_ours();
}

/* A plain lock has no owner: the library tries to take it, which fails if anybody has it. */
PyObject *
is_owned_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    PyObject *lock;
    if (PyVectorcall_NARGS(nargsf) == 1 && names == NULL && Py_TYPE(args[0]) == lib.condition &&
        (lock = peek(args[0], s_lock)) != NULL && Py_TYPE(lock) == LockType && ((Lock *)lock)->locked == LOCKED) {
        Py_RETURN_TRUE;
    }
    return PyObject_Vectorcall(((SyncMethod *)callable)->function, args, nargsf, names);
}

PyObject *
core_configure_not_owned(PyObject *Py_UNUSED(module), PyObject *hook)
{
    Py_XSETREF(lib.not_owned, Py_NewRef(hook));
    Py_RETURN_NONE;
}
