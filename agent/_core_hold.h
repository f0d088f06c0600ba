/* Taking a lock and giving it back, where nobody is in the way: the part that Lock and RLock share.
 *
 * Under the GIL an uncontended acquire is: is it free? then a handful of stores (who, where, which chain).  No system
 * call, no atomic, no allocation, no Python object.  CPython up to 3.14 asks a system semaphore instead, and parses an
 * argument tuple to be told "no arguments"; that is where the time is won which the recording costs.
 *
 * A header, so that all of it is inlined into the methods of both types.
 */
#ifndef CONCAGENT_CORE_HOLD_H
#define CONCAGENT_CORE_HOLD_H

#include "_core.h"

#define HOLD_SAMPLE 1024 /* one uncontended acquisition in so many is timed; contended ones all are */

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

/* Return where the calling Python code is.  May run Python code (see Code_is_transparent). */
static inline Site
caller_site(int *entered)
{
    Site site = {NULL, 0, 0};
    PyThreadState *tstate = Thread_state();
    FramePtr frame = Frame_current(tstate);
    while (LIKELY(frame != NULL)) {
        PyCodeObject *code = Frame_code(frame);
        if (UNLIKELY(code == NULL)) {
            break;
        }
        FramePtr back;
        if (LIKELY(!Code_is_transparent(code)) || (back = Frame_back(frame)) == NULL) {
            site.code = code;
            site.lasti = Frame_lasti(frame);
            site.below = Frame_below(tstate, frame);
            break;
        }
        frame = back;
        *entered = 1; /* the standard library releases what it takes */
    }
    return site;
}

static inline Chain *
next_chain(Record *record, Lock *lock, Site site, int blocking)
{
    LockClass *cls = lock->cls;
    if (record->held_count == 0) {
        return &cls->root; /* the first lock of a thread has no order */
    }
    Chain *parent = record->chains[record->held_count - 1];
    size_t set = (((size_t)parent >> 4) ^ ((size_t)cls >> 4)) % CHAIN_SETS * 2;
    if (LIKELY(record->cache[set].cls == cls && record->cache[set].parent == parent)) {
        return record->cache[set].chain;
    }
    if (record->cache[set + 1].cls == cls && record->cache[set + 1].parent == parent) {
        return record->cache[set + 1].chain;
    }
    Chain *chain = Record_find_chain(record, parent, lock, site, blocking);
    if (chain != NULL &&
        (chain->told || !core.recording || record->agent)) { /* else there is still something to tell */
        record->cache[set + 1] = record->cache[set];
        record->cache[set].parent = parent;
        record->cache[set].cls = cls;
        record->cache[set].chain = chain;
    }
    return chain;
}

/* Record that the calling thread has taken the lock.  The caller made sure of room on the held stack. */
static inline void
took(Lock *self, Record *record, Site site, int entered, int blocking, int contended)
{
    LockClass *cls = self->cls;
    PyCodeObject *old = NULL;
    self->locked = LOCKED;
    self->depth = 1;
    self->generation++;
    self->entered = (char)entered;
    self->lasti = site.lasti;
    if (UNLIKELY(self->code != site.code)) {
        old = self->code;
        Py_XINCREF(site.code);
        self->code = site.code;
    }
    cls->acquisitions++;
    if (UNLIKELY(--core.sample_left == 0) || UNLIKELY(contended)) {
        if (core.sample_left == 0) {
            core.sample_left = HOLD_SAMPLE;
            cls->last_use = 0; /* to be looked at, though its mark be known */
        }
        self->sampled = 1;
        core.tick_ns = now_ns();
    }
    self->since_ns = core.tick_ns;
    if (LIKELY(!cls->is_signal) || self->kind == KIND_RLOCK) { /* an RLock needs its owner in any case */
        Chain *chain = next_chain(record, self, site, blocking);
        Py_ssize_t top = record->held_count;
        self->holder = record;
        record->chains[top] = chain;
        record->held[top] = self;
        record->held_count = top + 1;
    }
    uint64_t use = Use_mark(site, blocking);
    uint64_t last_use = cls->last_use;
    if (UNLIKELY(last_use != use)) {
        uint64_t key = (use ^ cls->serial << 33) * 0x9E3779B97F4A7C15u;
        cls->last_use = use;
        if (UNLIKELY(last_use == 0 || core.uses[key >> 54] != key)) {
            core.uses[key >> 54] = key;
            Use_look(self, record, blocking);
        }
    }
    Py_XDECREF(old); /* may run code: everything is consistent by now */
}

static inline int
have_room(Record *record)
{
    return LIKELY(record->held_count < record->held_capacity) || Record_grow(record) == 0;
}

static inline void
let_go(Lock *self)
{
    Record *holder = self->holder;
    if (holder != NULL) {
        self->holder = NULL;
        if (LIKELY(holder->held_count > 0 && holder->held[holder->held_count - 1] == self && !holder->ended)) {
            holder->held_count--;
        }
        else {
            Record_remove(holder, self);
        }
    }
    if (UNLIKELY(self->sampled)) {
        self->sampled = 0;
        uint64_t held = (uint64_t)(now_ns() - self->since_ns);
        self->cls->hold_ns += held;
        self->cls->hold_samples++;
        count_bucket(self->cls->hold_buckets, held);
    }
    self->locked = FREE;
    if (UNLIKELY(self->waiters != NULL)) {
        Wait_pass_on(self);
    }
}

static inline int
acquire_lock(Lock *self, Patience patience, int entered, int interruptible)
{
    Record *record = current_record();
    int contended = 0;
    if (UNLIKELY(record == NULL)) {
        return -1;
    }
    Site site = caller_site(&entered); /* before we look at the lock: Python code may run */
    if (UNLIKELY(!have_room(record))) {
        return -1;
    }
    /* At the interpreter's end the thread for which a lock is reserved never comes: threads are gone before their
     * thread-locals, whose finalizers may want it. */
    if (UNLIKELY(self->locked) && !(self->locked == RESERVED && is_finalizing())) {
        if (!patience.blocking || patience.timeout_ns == 0) {
            return 0;
        }
        int got = Lock_wait(self, record, patience.timeout_ns, interruptible, site, entered);
        if (got <= 0) {
            return got;
        }
        contended = 1;
        if (UNLIKELY(!have_room(record))) { /* a handler may have taken locks while we waited */
            self->locked = FREE;
            Wait_unpark_first(self);
            return -1;
        }
    }
    took(self, record, site, entered, patience.blocking && patience.timeout_ns < 0, contended);
    return 1;
}

/* Of `__exit__`: since 3.15 it takes three, before that what it is given. */
static inline int
check_exit(Py_ssize_t count)
{
#if PY_VERSION_HEX >= 0x030F0000
    if (UNLIKELY(count != 3)) {
        PyErr_Format(PyExc_TypeError, "__exit__ expected 3 arguments, got %zd", count);
        return -1;
    }
#else
    (void)count;
#endif
    return 0;
}

#endif
