/* What the methods that stand for the standard library's share: the callable, and what the library looks like. */
#ifndef CONCAGENT_CORE_SYNC_H
#define CONCAGENT_CORE_SYNC_H

#include "_core.h"

#if defined(__GNUC__)
#  pragma GCC visibility push(hidden)
#endif

#define OUTER_SLOTS 16

typedef struct {
    PyObject_HEAD vectorcallfunc call;
    PyObject *function; /* owned: the hook, for what is no case for the shortcut; of `wait` the original, too */
    PyObject *original; /* owned */
    PyObject *dict;     /* owned or NULL: what a wrapper says of what it wraps */
    PyObject *weakrefs;
} SyncMethod;

/* What the library looks like; set once for each installation, and kept: a method of ours may be in use for ever. */
typedef struct {
    PyObject *cell_of; /* owned: (condition, object, what `outer` says) -> cell or None; does not raise */
    PyTypeObject *condition, *semaphore, *bounded; /* owned */
    PyObject *simple_get, *empty;                  /* owned: the original of SimpleQueue, and what it raises */
    PyObject *not_owned;                           /* owned: to be called where a lock is not its asker's */
    struct {
        PyObject *code; /* owned */
        PyObject *kind; /* owned: the wait is for the `self` of this code; None: such a wait ends by itself */
    } outer[OUTER_SLOTS];
} Library;

extern Library lib;
extern PyObject *s_cell, *s_learn, *s_cond, *s_lock, *s_value, *s_initial, *s_waiters, *s_holders, *s_foreign,
    *s_timeout, *s_signallers;

/* _core_permits.c */
PyObject *acquire_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names);
PyObject *release_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names);
PyObject *bounded_release_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names);

/* _core_owned.c */
PyObject *is_owned_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names);

/* _core_thread.c */
PyObject *start_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names);
PyObject *join_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names);

/* Return whether the second argument, `timeout`, is given and not None. */
int has_timeout(PyObject *const *args, Py_ssize_t count, PyObject *names);

/* _core_simplequeue.c */
PyObject *simple_get_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names);

/* Return an attribute, a new reference; NULL: there is none, or an exception is set that is no AttributeError.  Asks no
 * `__getattr__` of the program, and makes no exception to drop it. */
static inline PyObject *
attribute(PyObject *object, PyObject *name)
{
    return _PyObject_GenericGetAttrWithDict(object, name, NULL, 1);
}

/* Return an attribute, NULL if there is none; borrowed: the object keeps it, and nothing runs while we look.  What
 * nobody keeps (a property's result) is none. */
static inline PyObject *
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

#if defined(__GNUC__)
#  pragma GCC visibility pop
#endif

#endif
