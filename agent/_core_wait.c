/* Waiting: a queue per lock, a parker per wait.
 *
 * The waiter enters the queue, publishes its wait, and parks; the releaser frees the lock and unparks the first in the
 * queue, who tries again.  Whoever comes by in between may take the lock first: that is faster, but a thread that holds
 * it nearly always would let nobody else in, since a waiter needs the GIL to try.  So now and then the lock is reserved
 * for the first waiter.  With the GIL held on both sides there is nothing between "is it free?" and "park", so no
 * wake-up is lost.  Whoever leaves the queue without the lock, while it is free, passes the wake-up on.
 *
 * A Wait is an object on the heap and the queue owns a reference to it: a daemon thread that is parked when the
 * interpreter ends never comes back, and its queue entry must not lie on its dead stack.
 */
#include "_core.h"
#include <time.h>

/* A waiter of FAIR_NS may have the lock reserved, once in FAIR_EVERY_NS: as fair as the locks of the running version
 * are. Those of 3.14 are handed to each waiter of a millisecond (CPython Python/lock.c, TIME_TO_BE_FAIR_NS). */
#if PY_VERSION_HEX >= 0x030E0000
#  define FAIR_NS 1000000
#  define FAIR_EVERY_NS 0
#else
#  define FAIR_NS 2000000
#  define FAIR_EVERY_NS 2000000
#endif

int64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void
enqueue(Lock *lock, Wait *wait, int first)
{
    Py_INCREF(wait);
    if (lock->waiters == NULL) {
        wait->next = wait->prev = wait;
        lock->waiters = wait;
        return;
    }
    Wait *head = lock->waiters; /* in a ring the place before the first is the last, too */
    wait->next = head;
    wait->prev = head->prev;
    head->prev->next = wait;
    head->prev = wait;
    if (first) {
        lock->waiters = wait;
    }
}

/* Take a wait out of the queue, if it is there; the lock itself is kept by its caller. */
void
Lock_leave_queue(Lock *lock, Wait *wait)
{
    if (wait->next == NULL) {
        return; /* in a handler, in the walk, or a fork's child emptied the queue */
    }
    if (wait->next == wait) {
        lock->waiters = NULL;
    }
    else {
        wait->prev->next = wait->next;
        wait->next->prev = wait->prev;
        if (lock->waiters == wait) {
            lock->waiters = wait->next;
        }
    }
    wait->next = wait->prev = NULL;
    Py_DECREF(wait);
}

static void
unpark(Wait *wait)
{
    if (!wait->unparked && wait->parker != NULL) {
        wait->unparked = 1;
        PyThread_release_lock(wait->parker);
    }
}

void
Wait_unpark_first(Lock *self)
{
    if (self->waiters != NULL) {
        unpark(self->waiters);
    }
}

/* The lock was released and somebody waits: wake him, and reserve the lock for him if that is due. */
COLD void
Wait_pass_on(Lock *self)
{
    LockCell *cell = self->cell; /* a lock that is waited for has one */
    int64_t now = now_ns();
    if (now - self->waiters->since_ns >= FAIR_NS && now - cell->reserved_ns >= FAIR_EVERY_NS && !is_finalizing()) {
        cell->reserved_ns = now;
        self->locked = RESERVED;
    }
    unpark(self->waiters);
}

static inline int
can_take(Lock *lock, Wait *wait)
{
    return lock->locked == FREE || (lock->locked == RESERVED && lock->waiters == wait);
}

Wait *
Wait_new(PyObject *resource, int timed, PyCodeObject *code, int lasti)
{
    Wait *wait = (Wait *)WaitType->tp_alloc(WaitType, 0);
    if (wait != NULL) {
        wait->resource = Py_NewRef(resource);
        wait->timed = (char)timed;
        wait->code = Py_XNewRef((PyObject *)code);
        wait->lasti = lasti;
        wait->token = Py_NewRef(Py_None);
        wait->since_ns = core.tick_ns = now_ns();
    }
    return wait;
}

/* Take the waits from..to off a list, without a call that may fail: a wait that stays there would be a wait for ever.
 */
static void
cut(PyObject *waits, Py_ssize_t at)
{
    PyListObject *list = (PyListObject *)waits;
    PyObject *wait = list->ob_item[at];
    Py_ssize_t left = PyList_GET_SIZE(waits) - 1;
    memmove(&list->ob_item[at], &list->ob_item[at + 1], sizeof(PyObject *) * (size_t)(left - at));
    Py_SET_SIZE(list, left);
    Py_DECREF(wait); /* may run code: the list is whole by now */
}

/* Take a wait off a record's stack; the epoch moves, so nobody can take the next wait for this one. */
void
Record_end_wait(Record *record, Wait *wait)
{
    record->epoch++;
    for (Py_ssize_t i = PyList_GET_SIZE(record->waits) - 1; i >= 0; i--) {
        if (PyList_GET_ITEM(record->waits, i) == (PyObject *)wait) {
            cut(record->waits, i);
            return;
        }
    }
}

/* End all waits but the first `from`. */
void
Record_end_waits(Record *record, Py_ssize_t from)
{
    record->epoch++;
    while (PyList_GET_SIZE(record->waits) > from) {
        cut(record->waits, PyList_GET_SIZE(record->waits) - 1);
    }
}

/* A thread that will never run again (a fork's child has only one) must not swallow wake-ups. */
void
Record_leave_queues(Record *record)
{
    while (PyList_GET_SIZE(record->waits) > 0) {
        Wait *wait = (Wait *)Py_NewRef(PyList_GET_ITEM(record->waits, PyList_GET_SIZE(record->waits) - 1));
        if (wait->user != NULL) {
            Lock *lock = (Lock *)wait->user;
            wait->user = NULL;
            if (can_take(lock, wait)) {
                lock->locked = FREE;
            }
            Lock_leave_queue(lock, wait);
            if (lock->locked == FREE) {
                Wait_unpark_first(lock);
            }
            Py_DECREF(lock);
        }
        Record_end_wait(record, wait);
        Py_DECREF(wait);
    }
}

int
Wait_wake_victim(Wait *self, PyObject *error)
{
    if (self->parker == NULL || self->user == NULL) {
        return 0;
    }
    PyObject *old = self->victim;
    self->victim = Py_NewRef(error);
    unpark(self);
    Py_XDECREF(old);
    return 1;
}

/* Does the holder wait, too, or is it us, or is it dead?  Only then is there anything to walk. */
static int
is_worth_a_walk(Lock *lock, Record *record)
{
    Record *holder = lock->holder;
    return holder != NULL && !lock->cls->is_signal &&
           (holder == record || holder->ended || PyList_GET_SIZE(holder->waits) > 0);
}

/* Ask Python code whether the wait just published closes a ring; raises what it answers. */
int
Wait_walk(Record *record)
{
    if (core.walker == NULL || core.walker == Py_None || is_finalizing()) {
        return 0;
    }
    PyObject *walker = Py_NewRef(core.walker);
    PyObject *error = PyObject_CallOneArg(walker, (PyObject *)record);
    Py_DECREF(walker);
    if (error == NULL) {
        if (PyErr_ExceptionMatches(PyExc_RecursionError) || PyErr_ExceptionMatches(PyExc_MemoryError)) {
            PyErr_Clear(); /* ours and not the program's: the original would have waited */
            return 0;
        }
        return -1; /* a signal handler raised */
    }
    int answered = error != Py_None;
    if (answered) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    }
    Py_DECREF(error);
    return answered ? -1 : 0;
}

/* Let signal handlers run; -1 if one raised.
 *
 * A handler is Python code: it may want this very lock, or wait for a thread that wants it.  So the queue goes on
 * without us meanwhile, or a wake-up would lie with us until the handler has got what only that wake-up brings. */
static int
run_handlers(Lock *lock, Wait *wait)
{
    if (can_take(lock, wait)) {
        return 0; /* take it first; the handlers' turn is right after that */
    }
    Lock_leave_queue(lock, wait);
    if (wait->unparked) {
        PyThread_acquire_lock(wait->parker, NOWAIT_LOCK);
        wait->unparked = 0;
    }
    if (Py_MakePendingCalls() < 0) {
        return -1;
    }
    enqueue(lock, wait, 1);
    return 0;
}

/* Park until unparked, the deadline, or a signal whose handler raises: 1 look again, 0 time is up, -1 exception. */
static int
park(Lock *lock, Wait *wait, int64_t deadline_ns, int interruptible)
{
    PY_TIMEOUT_T left_us = -1;
    PyLockStatus status;
    PyThread_type_lock parker = wait->parker;
    if (deadline_ns >= 0) {
        int64_t left_ns = deadline_ns - now_ns();
        if (left_ns <= 0) {
            return 0;
        }
        left_us = left_ns / 1000 + (left_ns % 1000 != 0);
    }
    Py_BEGIN_ALLOW_THREADS /* no Python API until the GIL is back */
    status = PyThread_acquire_lock_timed(parker, left_us, interruptible);
    Py_END_ALLOW_THREADS
    if (status == PY_LOCK_ACQUIRED) {
        wait->unparked = 0;
        return 1;
    }
    if (status == PY_LOCK_INTR && run_handlers(lock, wait) < 0) {
        return -1;
    }
    return 1; /* whether the time is up is seen at the next turn, exactly */
}

/* Wait until the lock is free and mark it locked: 1 taken, 0 time is up, -1 exception.  Who holds it is for the caller
 * to record, before anything can run.  `timeout_ns` < 0 waits for ever.  The caller holds a reference to the lock. */
COLD int
Lock_wait(Lock *self, Record *record, int64_t timeout_ns, int interruptible, Site site, int entered)
{
    int result = -1;
    int64_t deadline_ns = -1;
    LockCell *cell = Lock_cell(self);
    Wait *wait = cell == NULL ? NULL : Wait_new((PyObject *)cell, timeout_ns >= 0, site.code, site.lasti);
    if (wait == NULL) {
        return -1;
    }
    /* What the hold would be: how a lock is awaited tells whether it will be released by who awaits it. */
    PyObject *token = Py_BuildValue("(OOiO)", record, site.code != NULL ? (PyObject *)site.code : Py_None, site.lasti,
                                    entered ? Py_True : Py_False);
    if (token == NULL) {
        Py_DECREF(wait);
        return -1;
    }
    Py_SETREF(wait->token, token);
    if (timeout_ns >= 0) {
        deadline_ns = timeout_ns < INT64_MAX - wait->since_ns ? wait->since_ns + timeout_ns : INT64_MAX;
    }
    wait->parker = PyThread_allocate_lock();
    if (wait->parker == NULL) {
        PyErr_NoMemory();
        Py_DECREF(wait);
        return -1;
    }
    PyThread_acquire_lock(wait->parker, NOWAIT_LOCK);
    if (PyList_Append(record->waits, (PyObject *)wait) < 0) {
        Py_DECREF(wait);
        return -1;
    }
    wait->user = Py_NewRef((PyObject *)self);
    record->epoch++;
    /* The walk is Python code and stands in no queue, for the reason given at run_handlers. */
    if (timeout_ns >= 0 || !core.recording || record->agent || !is_worth_a_walk(self, record) ||
        Wait_walk(record) == 0) {
        /* A signal that came up to here would not end the park, and an alarm comes only once. */
        result = interruptible ? PyErr_CheckSignals() : 0;
        enqueue(self, wait, 0);
        while (result >= 0) {
            if (can_take(self, wait)) {
                result = 1;
                break;
            }
            if (wait->victim != NULL) {
                PyErr_SetObject((PyObject *)Py_TYPE(wait->victim), wait->victim);
                result = -1;
                break;
            }
            result = park(self, wait, deadline_ns, interruptible);
            if (result <= 0) {
                break;
            }
        }
        Lock_leave_queue(self, wait);
    }
    if (result == 1) {
        self->locked = LOCKED;
    }
    else if (self->locked == FREE) {
        Wait_unpark_first(self); /* the wake-up may have been ours */
    }
    if (core.recording && !record->agent) {
        core.tick_ns = now_ns();
        uint64_t waited = (uint64_t)(core.tick_ns - wait->since_ns);
        self->cls->contentions++;
        self->cls->wait_ns += waited;
        count_bucket(self->cls->wait_buckets, waited);
    }
    PyObject *error_type, *error, *trace;
    PyErr_Fetch(&error_type, &error, &trace);
    Py_CLEAR(wait->user);
    Record_end_wait(record, wait);
    Py_DECREF(wait);
    PyErr_Restore(error_type, error, trace);
    return result;
}

/* -- seen from Python -- */

static PyObject *
Wait_get(Wait *self, void *closure)
{
    switch ((int)(intptr_t)closure) {
    case 0:
        return PyBool_FromLong(self->timed);
    case 1:
        return PyLong_FromLong(self->lasti);
    case 2:
        return PyLong_FromLongLong(self->since_ns);
    case 3:
        return Py_NewRef(self->code != NULL ? self->code : Py_None);
    case 4:
        return Py_NewRef(self->resource);
    case 5:
        return Py_NewRef(self->user != NULL ? self->user : Py_None);
    case 6:
        return PyBool_FromLong(self->parker != NULL);
    default:
        return Py_NewRef(self->token);
    }
}

static int
Wait_set_token(Wait *self, PyObject *value, void *Py_UNUSED(closure))
{
    Py_XSETREF(self->token, Py_NewRef(value != NULL ? value : Py_None));
    return 0;
}

static PyGetSetDef Wait_getset[] = {
    {"timed", (getter)Wait_get, NULL, "Whether the wait gives up by itself.", (void *)0},
    {"lasti", (getter)Wait_get, NULL, NULL, (void *)1},
    {"since_ns", (getter)Wait_get, NULL, NULL, (void *)2},
    {"code", (getter)Wait_get, NULL, NULL, (void *)3},
    {"resource", (getter)Wait_get, NULL, NULL, (void *)4},
    {"user", (getter)Wait_get, NULL, "The user's lock object while it is waited for, else None.", (void *)5},
    {"can_be_woken", (getter)Wait_get, NULL, "Whether the wait is for a lock of ours.", (void *)6},
    {"token", (getter)Wait_get, (setter)Wait_set_token, "Free for resources that answer `hold_seen_by`.", (void *)7},
    {NULL, NULL, NULL, NULL, NULL},
};

static void
Wait_dealloc(Wait *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->parker != NULL) {
        /* Debug builds of some C libraries want it free; nobody else can reach it any more. */
        PyThread_acquire_lock(self->parker, NOWAIT_LOCK);
        PyThread_release_lock(self->parker);
        PyThread_free_lock(self->parker);
    }
    Py_CLEAR(self->code);
    Py_CLEAR(self->resource);
    Py_CLEAR(self->token);
    Py_CLEAR(self->user);
    Py_CLEAR(self->victim);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot Wait_slots[] = {
    {Py_tp_dealloc, Wait_dealloc},
    {Py_tp_getset, Wait_getset},
    {0, NULL},
};
PyType_Spec Wait_spec = {
    .name = "concagent._core.Wait",
    .basicsize = sizeof(Wait),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Wait_slots,
};
