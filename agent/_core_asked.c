/* What Python code may ask of the core.  See _core.pyi for the signatures, _pycore.py for the explanations. */
#include "_core.h"

#ifdef __linux__
#  include <sys/prctl.h>
#endif

/* -- control -- */

static PyObject *
core_configure(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *describe, *walker, *allocate, *rlock;
    if (!PyArg_ParseTuple(args, "OOOO", &describe, &walker, &allocate, &rlock)) {
        return NULL;
    }
    Py_XSETREF(core.describe, Py_NewRef(describe));
    Py_XSETREF(core.walker, Py_NewRef(walker));
    Py_XSETREF(core.real_allocate, Py_NewRef(allocate));
    Py_XSETREF(core.real_rlock, Py_NewRef(rlock));
    Py_RETURN_NONE;
}

static PyObject *
core_start(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"listener", "class_limit", "main_ident", NULL};
    PyObject *listener;
    Py_ssize_t limit = 8191;
    unsigned long main_ident = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$nk:start", names, &listener, &limit, &main_ident)) {
        return NULL;
    }
    core.main_ident = main_ident;
    Py_XSETREF(core.listener, Py_NewRef(listener));
    core.class_limit = limit;
    core.tick_ns = now_ns();
    core.recording = 1;
    memset(core.uses, 0, sizeof(core.uses));
    Record_forget_caches();
    Py_RETURN_NONE;
}

static PyObject *
core_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    core.recording = 0;
    Py_CLEAR(core.listener);
    Py_RETURN_NONE;
}

static PyObject *
core_is_recording(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(core.recording);
}

static PyObject *
core_tick(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    core.tick_ns = now_ns();
    Py_RETURN_NONE;
}

/* The other twin learns late that a lock is gone; here a lock tells it itself. */
static PyObject *
core_collect_gone(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    Py_RETURN_NONE;
}

static PyObject *
core_next_serial(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLongLong(++core.serial);
}

/* -- records -- */

static PyObject *
core_current_record(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return Py_XNewRef((PyObject *)current_record());
}

static PyObject *
core_record_of_ident(PyObject *Py_UNUSED(module), PyObject *ident)
{
    PyObject *record = PyDict_GetItemWithError(core.by_ident, ident);
    if (record == NULL && PyErr_Occurred()) {
        return NULL;
    }
    return Py_NewRef(record != NULL ? record : Py_None);
}

static PyObject *
core_records(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyDict_Values(core.records);
}

static PyObject *
core_forget_record(PyObject *Py_UNUSED(module), PyObject *record)
{
    if (Py_TYPE(record) == RecordType && ((Record *)record)->ended && ((Record *)record)->held_count == 0) {
        PyObject *key = PyLong_FromUnsignedLongLong(((Record *)record)->serial);
        if (key == NULL || PyDict_DelItem(core.records, key) < 0) {
            PyErr_Clear();
        }
        Py_XDECREF(key);
    }
    Py_RETURN_NONE;
}

static PyObject *
core_mark_agent_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    Record *record = current_record();
    if (record == NULL) {
        return NULL;
    }
    record->agent = 1;
#ifdef __linux__
    prctl(PR_SET_NAME, "concagent-agent"); /* for the kernel's lists of threads, and hooks/undrained.py */
#endif
    Py_RETURN_NONE;
}

/* -- names, sites, classes -- */

static PyObject *
core_add_transparent_file(PyObject *Py_UNUSED(module), PyObject *name)
{
    if (PySet_Add(core.transparent, name) < 0) {
        return NULL;
    }
    for (int i = 0; i < TRANSPARENT_SLOTS; i++) {
        Py_CLEAR(core.transparent_cache[i].code);
    }
    Py_RETURN_NONE;
}

static PyObject *
core_is_transparent(PyObject *Py_UNUSED(module), PyObject *code)
{
    if (!PyCode_Check(code)) {
        Py_RETURN_FALSE;
    }
    return PyBool_FromLong(Code_is_transparent((PyCodeObject *)code));
}

static Lock *
as_lock(PyObject *object)
{
    return PyObject_TypeCheck(object, LockType) || PyObject_TypeCheck(object, RLockType) ? (Lock *)object : NULL;
}

static PyObject *
core_cell_of(PyObject *Py_UNUSED(module), PyObject *object)
{
    Lock *lock = as_lock(object);
    return lock == NULL ? Py_NewRef(Py_None) : Py_XNewRef((PyObject *)Lock_cell(lock));
}

static PyObject *
core_name_lock(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *object, *name;
    if (!PyArg_ParseTuple(args, "OU:name_lock", &object, &name)) {
        return NULL;
    }
    Lock *lock = as_lock(object);
    if (lock == NULL) {
        Py_RETURN_FALSE;
    }
    LockCell *cell = Lock_cell(lock);
    if (cell == NULL || PyObject_SetAttrString((PyObject *)cell, "name", name) < 0) {
        return NULL;
    }
    Py_RETURN_TRUE;
}

static PyObject *
core_classes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyDict_Values(core.lines);
}

static PyObject *
core_acquisitions(PyObject *Py_UNUSED(module), PyObject *cls)
{
    if (Py_TYPE(cls) != ClassType) {
        PyErr_SetString(PyExc_TypeError, "acquisitions() takes a LockClass");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(((LockClass *)cls)->acquisitions);
}

/* {class serial: [count, ns, bucket, ...]} of waits or holds. */
static PyObject *
statistics(int of_holds)
{
    PyObject *result = PyDict_New();
    PyObject *classes = result == NULL ? NULL : PyDict_Values(core.lines);
    for (Py_ssize_t i = 0; classes != NULL && i < PyList_GET_SIZE(classes); i++) {
        LockClass *cls = (LockClass *)PyList_GET_ITEM(classes, i);
        uint64_t count = of_holds ? cls->hold_samples : cls->contentions;
        uint64_t *buckets = of_holds ? cls->hold_buckets : cls->wait_buckets;
        if (count == 0) {
            continue;
        }
        PyObject *row = PyList_New(0);
        PyObject *key = PyLong_FromUnsignedLongLong(cls->serial);
        for (int j = -2; row != NULL && j < BUCKETS; j++) {
            uint64_t value = j == -2 ? count : j == -1 ? (of_holds ? cls->hold_ns : cls->wait_ns) : buckets[j];
            PyObject *number = PyLong_FromUnsignedLongLong(value);
            if (number == NULL || PyList_Append(row, number) < 0) {
                Py_CLEAR(row);
            }
            Py_XDECREF(number);
        }
        int failed = row == NULL || key == NULL || PyDict_SetItem(result, key, row) < 0;
        Py_XDECREF(row);
        Py_XDECREF(key);
        if (failed) {
            Py_CLEAR(classes);
        }
    }
    if (classes == NULL) {
        Py_CLEAR(result);
    }
    Py_XDECREF(classes);
    return result;
}

static PyObject *
core_wait_statistics(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return statistics(0);
}

static PyObject *
core_hold_statistics(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return statistics(1);
}

static PyObject *
core_drain_order(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *fresh = PyList_New(0);
    if (fresh == NULL) {
        return NULL;
    }
    PyObject *full = core.order_ring;
    core.order_ring = fresh;
    return full;
}

static PyObject *
core_was_interrupted(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(core.interrupted);
}

static PyObject *
core_order_dropped(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLongLong(core.order_dropped);
}

/* Keep the calling thread's record; every other thread has ended without releasing anything. */
static PyObject *
core_after_fork_in_child(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    Record *me = current_record();
    PyObject *all = me == NULL ? NULL : PyDict_Values(core.records);
    PyObject *ident = all == NULL ? NULL : PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    if (ident == NULL) {
        Py_XDECREF(all);
        return NULL;
    }
    me->pid = (long)getpid();
    me->ident = PyThread_get_thread_ident();
    me->native_id = PyThread_get_thread_native_id();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(all); i++) {
        Record *record = (Record *)PyList_GET_ITEM(all, i);
        if (record != me) {
            Record_end(record); /* nothing is told: its process is another */
        }
    }
    Py_DECREF(all);
    PyDict_Clear(core.by_ident);
    int failed = PyDict_SetItem(core.by_ident, ident, (PyObject *)me) < 0;
    Py_DECREF(ident);
    if (failed) {
        return NULL;
    }
    core.main_ident = me->ident;
    PyObject *uses = core_drain_uses(NULL, NULL);
    Py_XDECREF(uses);
    PyObject *old = core_drain_order(NULL, NULL);
    PyObject *refreshed = old == NULL ? NULL : PyObject_CallMethod((PyObject *)me, "refresh", NULL);
    Py_XDECREF(old);
    return refreshed;
}

static PyObject *
core_reset_for_tests(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    /* Chains are exact and never freed; forgetting them means no longer finding them: the caches are all that is needed
     * to make every order new again, together with cutting the children off their roots. */
    PyObject *classes = PyDict_Values(core.lines);
    for (Py_ssize_t i = 0; classes != NULL && i < PyList_GET_SIZE(classes); i++) {
        LockClass *cls = (LockClass *)PyList_GET_ITEM(classes, i);
        cls->root.children = NULL;
        cls->last_use = 0;
        memset(cls->uses_told, 0, sizeof(cls->uses_told));
        cls->contentions = cls->wait_ns = cls->hold_ns = cls->hold_samples = 0;
        memset(cls->wait_buckets, 0, sizeof cls->wait_buckets);
        memset(cls->hold_buckets, 0, sizeof cls->hold_buckets);
    }
    if (classes == NULL) {
        return NULL;
    }
    Py_DECREF(classes);
    Record_forget_caches();
    core.order_dropped = 0;
    core.interrupted = 0;
    memset(core.uses, 0, sizeof(core.uses));
    PyObject *uses = core_drain_uses(NULL, NULL);
    Py_XDECREF(uses);
    return core_drain_order(NULL, NULL);
}

/* The environment as C code has it: os.putenv, setenv and libraries change it behind the back of os.environ. */
extern char **environ;

static PyObject *
core_environment(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *pairs = PyList_New(0);
    for (char **entry = environ; pairs != NULL && entry != NULL && *entry != NULL; entry++) {
        PyObject *pair = PyBytes_FromString(*entry);
        if (pair == NULL || PyList_Append(pairs, pair) < 0) {
            Py_CLEAR(pairs);
        }
        Py_XDECREF(pair);
    }
    return pairs;
}

PyMethodDef core_methods[] = {
    {"environment", core_environment, METH_NOARGS, "Return what a child inherits: [b'NAME=value', ...]."},
    {"reach_look", core_reach_look, METH_VARARGS, "Look at the heap once: see _core_reach.c."},
    {"reach_frames", core_reach_frames, METH_O, "Return [(code or None, lasti), ...] of a thread, innermost first."},
    {"reach_locals", core_reach_locals, METH_O, "Return [(code or None, [address, ...]), ...] of a thread."},
    {"reach_objects", core_reach_objects, METH_O, "Return the tracked objects at these addresses, or None."},
    {"signal_register", core_signal_register, METH_VARARGS, "Write a byte into a descriptor at each signal."},
    {"signal_unregister", core_signal_unregister, METH_VARARGS, "Put back what handled the signal before."},
    {"last_resort_start", core_last_resort_start, METH_VARARGS, "Write all stacks if a request finds no answer."},
    {"last_resort_stop", core_last_resort_stop, METH_NOARGS, "End that thread; return its native id, 0 if none ran."},
    {"last_resort_after_fork", core_last_resort_after_fork, METH_NOARGS, "Forget that thread in a fork's child."},
    {"last_resort_threads", core_last_resort_threads, METH_NOARGS,
     "Return how many threads of the process it is: 0 or 1."},
    {"last_resort_requests", core_last_resort_requests, METH_NOARGS, "Return how often the signal came."},
    {"last_resort_answer", core_last_resort_answer, METH_O, "Say that requests up to this number have their answer."},
    {"hurry_late_thread", core_hurry_late_thread, METH_NOARGS, "Have a thread begin that was to do so late."},
    {"start_thread_late", core_start_thread_late, METH_VARARGS,
     "Call a function in a thread that Python does not know until then."},
    {"configure", core_configure, METH_VARARGS, "Give the core its Python helpers and the originals."},
    {"configure_sync", core_configure_sync, METH_VARARGS, "Tell the core what the library builds on conditions."},
    {"configure_not_owned", core_configure_not_owned, METH_O, "Say what to call where a lock is not its asker's."},
    {"configure_simple_get", core_configure_simple_get, METH_VARARGS,
     "Say what SimpleQueue.get is, and what it raises."},
    {"replace_method", core_replace_method, METH_VARARGS,
     "Put a method into an immutable type; return the former one."},
    {"sync_method", core_sync_method, METH_VARARGS, "Return a replacement for a method of a condition or semaphore."},
    {"configure_threads", core_configure_threads, METH_VARARGS, "Tell the core what threads are made of."},
    {"open_function", core_open_function, METH_VARARGS,
     "Return the function that stands in for `open`; None where the original is not what is known."},
    {"record_openings", core_record_openings, METH_VARARGS, "Let that function note files for a hook."},
    {"ignore_openings", core_ignore_openings, METH_O, "Note nothing more for a hook; another one stays."},
    {"forget_openings", core_forget_openings, METH_NOARGS, "Ask the table for each site again."},
    {"hasten_semlock", core_hasten_semlock, METH_VARARGS,
     "Put fast methods into the type in the place of SemLock; False where they do not fit."},
    {"share", core_share, METH_VARARGS, "Say where the board is, None for nowhere new, and when this process started."},
    {"start", (PyCFunction)(void (*)(void))core_start, METH_VARARGS | METH_KEYWORDS, "Begin to record."},
    {"stop", core_stop, METH_NOARGS, "Stop recording; locks that exist go on as plain locks."},
    {"is_recording", core_is_recording, METH_NOARGS, "Return whether acquisitions are recorded."},
    {"tick", core_tick, METH_NOARGS, "Set the coarse clock from which untimed holds take their beginning."},
    {"collect_gone", core_collect_gone, METH_NOARGS, "Do nothing: a lock that goes says so itself."},
    {"next_serial", core_next_serial, METH_NOARGS, "Return a serial for a resource; never reused."},
    {"current_record", core_current_record, METH_NOARGS, "Return the calling thread's record, made on first use."},
    {"record_of_ident", core_record_of_ident, METH_O, "Return the live record of an OS thread id, or None."},
    {"records", core_records, METH_NOARGS, "Return the records of live threads and of ended ones that hold something."},
    {"untracked", core_untracked, METH_O, "Return a value that is in no cycle, hidden from the garbage collector."},
    {"readings", core_readings, METH_O, "Return what each record waits for and holds."},
    {"forget_record", core_forget_record, METH_O, "Drop an ended record from the table."},
    {"mark_agent_thread", core_mark_agent_thread, METH_NOARGS, "Make the calling thread one of the agent's."},
    {"find_cell", core_find_cell, METH_VARARGS, "Return the cell that an object has, or None."},
    {"keep_cell", core_keep_cell, METH_VARARGS, "Lay a cell into an object, unless it has one; return what it has."},
    {"begin_wait", core_begin_wait, METH_VARARGS, "Publish a wait for something that is not a lock of ours."},
    {"wait_mark", core_wait_mark, METH_NOARGS, "Return how many waits the calling thread is in."},
    {"waiter_lock", core_waiter_lock, METH_NOARGS, "Return a lock that remembers who released it."},
    {"end_waits", core_end_waits, METH_O, "End the waits published since the mark."},
    {"check_wait", core_check_wait, METH_O, "Walk from a published wait; raises what the listener answers to a ring."},
    {"wake_victim", core_wake_victim, METH_VARARGS, "Make a blocked acquire raise; False if it cannot be woken."},
    {"add_transparent_file", core_add_transparent_file, METH_O, "Let code of this file count as its caller."},
    {"is_transparent", core_is_transparent, METH_O, "Return whether frames of this code count as their caller's."},
    {"cell_of", core_cell_of, METH_O, "Return the cell of a lock of ours, None for anything else."},
    {"name_lock", core_name_lock, METH_VARARGS, "Give a lock a name; False if it is not one of ours."},
    {"classes", core_classes, METH_NOARGS, "Return all lock classes."},
    {"acquisitions", core_acquisitions, METH_O, "Return how often locks of a class were acquired."},
    {"wait_statistics", core_wait_statistics, METH_NOARGS, "Return per class: contentions, ns, counts per bucket."},
    {"hold_statistics", core_hold_statistics, METH_NOARGS, "Return per class: sampled holds, ns, counts per bucket."},
    {"drain_order", core_drain_order, METH_NOARGS, "Return the chains seen for the first time since the last call."},
    {"drain_uses", core_drain_uses, METH_NOARGS,
     "Return the new ways in which lock classes were used since the last call."},
    {"was_interrupted", core_was_interrupted, METH_NOARGS,
     "Return whether code that the interpreter called took a lock."},
    {"order_dropped", core_order_dropped, METH_NOARGS, "Return how many new chains were dropped."},
    {"after_fork_in_child", core_after_fork_in_child, METH_NOARGS, "Keep the calling thread's record only."},
    {"reset_for_tests", core_reset_for_tests, METH_NOARGS, "Forget chains and statistics."},
    {NULL, NULL, 0, NULL},
};
