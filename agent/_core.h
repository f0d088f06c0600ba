/* The structs of the C core, and who may write which field.
 *
 * Everything here is read and written with the GIL held, so no field is atomic; the one place where the GIL is
 * released is the parked wait in _core_wait.c.  No Python code runs between the first and the last store of an
 * acquisition or release.
 *
 *   Lock.holder, site, held stack   set together when the lock is taken, cleared together when it is released;
 *                                   so a holder is never stale, and never missing but for signal mode
 *   Record                          one per thread state; its own thread writes, except `held`, from which a foreign
 *                                   release or a dying lock takes its entry (the GIL makes that safe)
 *   Wait                            its own thread; a releaser or an executioner only sets `unparked` and `victim`
 *   LockClass, Chain                made once, never freed (their number is bounded)
 */
#ifndef CONCAGENT_CORE_H
#define CONCAGENT_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stddef.h>
#include "structmember.h"
#include "pythread.h"
#include <unistd.h>
#include <string.h>
#include "_core_frame.h"

#define HELD_INLINE 64  /* locks held at once before the stack moves to the heap */
#define CHAIN_SETS 32   /* sets of the per-thread chain cache, two entries each */
#define BUCKETS 9       /* of the wait and hold histograms; the last one is open */
#define ORDER_RING 4096 /* rows that wait for the monitor */
#define TRANSPARENT_SLOTS 256
#define SITE_SLOTS 256
#define USE_SLOTS 1024 /* ways of use that were looked at */
#define USE_RING 1024  /* rows that wait for the monitor */
#define USE_KINDS 12

#if defined(__GNUC__)
#  define LIKELY(x) __builtin_expect(!!(x), 1)
#  define UNLIKELY(x) __builtin_expect(!!(x), 0)
#  define COLD __attribute__((noinline, cold))
#else
#  define LIKELY(x) (x)
#  define UNLIKELY(x) (x)
#  define COLD
#endif

/* A thread-local of a shared object is a function call unless its model is initial-exec; that works where the C
 * library reserves room for it (glibc), and one pointer is well within. */
#if defined(__GLIBC__)
#  define FAST_TLS __attribute__((tls_model("initial-exec")))
#else
#  define FAST_TLS
#endif

/* What the files of the core share is nobody else's: without this each use is a look into the GOT, or a call by the
 * PLT. */
#if defined(__GNUC__)
#  pragma GCC visibility push(hidden)
#endif

typedef struct Chain Chain;
typedef struct LockClass LockClass;
typedef struct LockCell LockCell;
typedef struct Lock Lock;
typedef struct Record Record;
typedef struct Wait Wait;

enum { KIND_LOCK = 0, KIND_RLOCK = 1 };

/* Lock.locked.  RESERVED is free to look at, but only the first in the queue can take it: see Wait_pass_on. */
enum { FREE = 0, LOCKED = 1, RESERVED = 2 };

/* A sequence of held lock classes, as a path in a tree: exact, so that no collision can hide an order. */
struct Chain {
    Chain *parent; /* NULL: the first lock of a thread */
    LockClass *cls;
    Chain *sibling; /* next child of the same parent */
    Chain *children;
    char told;       /* the order ring had it, from an acquisition that would have waited for ever */
    char told_tried; /* the same, from one that only tried or had a time-out */
};

struct LockClass {
    PyObject_HEAD uint64_t serial;
    int kind;
    int lasti;
    PyObject *code; /* owned; NULL: unknown site */
    char is_signal; /* set once by a foreign release */
    uint64_t alive;
    uint64_t acquisitions;
    uint64_t contentions;
    uint64_t wait_ns;
    uint64_t wait_buckets[BUCKETS];
    uint64_t hold_ns;
    uint64_t hold_samples;
    uint64_t hold_buckets[BUCKETS];
    PyObject *name;               /* owned or NULL: last name given to a lock of this class */
    uint64_t last_use;            /* Use_mark of the last acquisition */
    uint8_t uses_told[USE_KINDS]; /* rows in the use ring, by kind */
    Chain root;
};

struct Lock {
    PyObject_HEAD PyObject *weakrefs;
    Record *holder;     /* borrowed: a record lives as long as its held stack is not empty */
    PyCodeObject *code; /* owned, of the last acquisition; kept until another one comes, so that a hit costs nothing */
    int lasti;
    char locked;
    char entered; /* by `with`, or by the standard library */
    char kind;
    char sampled;   /* since_ns is exact, and the release counts the hold */
    Wait *waiters;  /* first of the circular queue, NULL if nobody waits; the queue owns a reference to each */
    LockClass *cls; /* borrowed: never freed */
    LockCell *cell; /* owned, made on first need */
    uint64_t serial;
    uint32_t generation; /* of the hold; +1 at each acquisition */
    uint32_t depth;      /* re-entries of an RLock */
    int64_t since_ns;    /* exact if sampled, else of the last tick */
};

/* What reports refer to: outlives the lock. */
struct LockCell {
    PyObject_HEAD Lock *lock; /* borrowed; NULL once the lock is gone */
    LockClass *cls;
    uint64_t serial;
    PyObject *name; /* owned or NULL */
    PyObject *hold; /* owned or NULL: the tuple of hold_generation, so that two readings can compare identity */
    uint32_t hold_generation;
    int64_t reserved_ns; /* when the lock was last reserved for a waiter */
    PyObject *weakrefs;
};

struct Record {
    PyObject_HEAD unsigned long ident;
    unsigned long native_id;
    long pid;
    uint64_t serial;
    uint64_t epoch;
    Py_ssize_t held_count;
    Py_ssize_t held_capacity;
    Lock **held;    /* borrowed: a dying lock takes itself out */
    Chain **chains; /* of held[0..i] */
    char ended;
    char agent;
    Record *waker;   /* owned or NULL: who released the last waiter's lock that this thread took; see _core_waiter.c */
    PyObject *waits; /* owned list of Wait, innermost last */
    PyObject *sleeps_on; /* borrowed: the waiter's lock that the thread is asleep on, for its innermost wait */
    PyObject *name;      /* owned str */
    PyObject *daemon;    /* owned bool */
    PyObject *thread;    /* owned: weak reference to the Thread, or None */
    PyObject *weakrefs;
    Lock *held_inline[HELD_INLINE];
    Chain *chains_inline[HELD_INLINE];
    struct {
        Chain *parent;
        LockClass *cls;
        Chain *chain;
    } cache[CHAIN_SETS * 2];
};

struct Wait {
    PyObject_HEAD Wait *next; /* in the lock's queue; NULL: not queued */
    Wait *prev;
    PyThread_type_lock parker; /* NULL for waits that are not for a lock of ours */
    char unparked;
    char timed;
    int lasti;
    PyObject *code; /* owned or NULL */
    int64_t since_ns;
    PyObject *resource; /* owned */
    PyObject *token;    /* owned */
    PyObject *user;     /* owned; the user's lock, NULL once the wait is over (and for waits of others) */
    PyObject *victim;   /* owned or NULL: the exception to raise */
};

typedef struct {
    char recording;
    int64_t tick_ns;      /* set once a second by the monitor and by every slow path */
    uint32_t sample_left; /* acquisitions until the next one whose hold is timed */
    uint64_t serial;      /* last one given to a resource */
    uint64_t thread_serial;
    uint64_t class_serial;
    uint64_t chains;
    uint64_t order_dropped;
    uint64_t held_overflows;
    Py_ssize_t class_limit;
    PyObject *listener;              /* owned */
    PyObject *describe;              /* owned: ident -> (weak reference or None, name, daemon) */
    PyObject *walker;                /* owned: record -> exception or None */
    PyObject *real_allocate;         /* owned: the original, which raises what bad arguments raise */
    PyObject *real_rlock;            /* owned */
    PyObject *real_lock;             /* owned or NULL: the original type, while it is in `_thread` */
    PyInterpreterState *interpreter; /* borrowed: the only one that may use the core; NULL before it is ready */
    PyObject *allocate;              /* owned: our allocate_lock */
    PyObject *records;               /* owned dict: serial -> Record */
    PyObject *by_ident;              /* owned dict: ident -> Record */
    PyObject *classes;               /* owned dict: (kind, code, lasti) -> LockClass */
    PyObject *lines;                 /* owned dict: (kind, file, line) -> LockClass */
    PyObject *order_ring;            /* owned list of tuples, bounded */
    PyObject *use_ring;              /* owned list of tuples, bounded */
    PyObject *finalizer_name;        /* owned, interned: "__del__" */
    unsigned long main_ident;        /* of the thread that runs signal handlers */
    char interrupted;                /* some lock was taken by code that the interpreter called */
    PyObject *transparent;           /* owned set of file names */
    struct {
        PyCodeObject *code; /* owned */
        char is_transparent;
    } transparent_cache[TRANSPARENT_SLOTS];
    struct {
        PyCodeObject *code; /* borrowed: owned as a key of classes */
        int lasti;
        LockClass *cls;
    } sites[SITE_SLOTS];
    uint64_t uses[USE_SLOTS]; /* a hash of class and Use_mark; a wrong hit only looks away once */
} Core;

extern Core core;
extern FAST_TLS _Thread_local Record *tls_record;

extern PyTypeObject *LockType, *RLockType, *CellType, *ClassType, *RecordType, *WaitType, *ThreadEndType;
extern PyTypeObject *SharedCellType;

/* _core_record.c */
Record *Record_new(void); /* borrowed result */
void Record_end(Record *self);
void Record_forget_if_empty(Record *self);
PyObject *Record_waiting(Record *self);
extern PyType_Spec Record_spec, ThreadEnd_spec;

/* _core_held.c */
int Record_grow(Record *self);
void Record_forget_caches(void);
void Record_remove(Record *self, Lock *lock);
Chain *Record_find_chain(Record *self, Chain *parent, Lock *lock, Site site, int blocking);

/* _core_readings.c */
PyObject *core_readings(PyObject *module, PyObject *records);
PyObject *core_untracked(PyObject *module, PyObject *value);

/* _core_errors.c */
int Error_drop_ours(void);
void swallow_error(void); /* drop an exception that cannot be raised here; the program's is raised a moment later */

/* _core_use.c */
void Use_look(Lock *lock, Record *record, int blocking);
PyObject *core_drain_uses(PyObject *module, PyObject *none);

/* What tells one way to use a lock class from another, as far as it can be had for a few instructions: the function,
 * the one below it, how deep the stack is, and whether it only tries. */
static inline uint64_t
Use_mark(Site site, int blocking)
{
    return (uint64_t)(uintptr_t)site.code ^ site.below << 17 ^ (uint64_t)blocking << 63;
}

/* _core_class.c */
LockClass *LockClass_of_site(int kind, FramePtr frame);
LockCell *Lock_cell(Lock *self);         /* borrowed result */
PyObject *LockCell_hold(LockCell *self); /* new reference */
PyObject *LockCell_hold_seen_by(LockCell *self, PyObject *wait);
void LockCell_lock_gone(LockCell *self);
int Code_ask_transparent(PyCodeObject *code, size_t slot);
void count_bucket(uint64_t *buckets, uint64_t ns);
extern PyType_Spec LockClass_spec, LockCell_spec;

/* _core_wait.c */
int64_t now_ns(void);
int Lock_wait(Lock *self, Record *record, int64_t timeout_ns, int interruptible, Site site, int entered);
int Wait_walk(Record *record);
int Wait_wake_victim(Wait *self, PyObject *error);
void Lock_leave_queue(Lock *self, Wait *wait);
void Wait_unpark_first(Lock *self);
void Wait_pass_on(Lock *self);
Wait *Wait_new(PyObject *resource, int timed, PyCodeObject *code, int lasti);
void Record_end_wait(Record *record, Wait *wait);
void Record_end_waits(Record *record, Py_ssize_t from);
void Record_leave_queues(Record *record);
extern PyType_Spec Wait_spec;

/* _core_signal.c */
PyObject *core_signal_register(PyObject *module, PyObject *args);
PyObject *core_signal_unregister(PyObject *module, PyObject *args);

/* _core_asked.c */
extern PyMethodDef core_methods[];

/* _core_publish.c */
PyObject *core_find_cell(PyObject *module, PyObject *args);
PyObject *core_keep_cell(PyObject *module, PyObject *args);
PyObject *core_begin_wait(PyObject *module, PyObject *args);
PyObject *core_wait_mark(PyObject *module, PyObject *none);
PyObject *core_end_waits(PyObject *module, PyObject *mark);
PyObject *core_check_wait(PyObject *module, PyObject *wait);
PyObject *core_wake_victim(PyObject *module, PyObject *args);

/* _core_sync.c */
int Sync_init(PyObject *module);
PyObject *core_configure_sync(PyObject *module, PyObject *args);
PyObject *core_configure_not_owned(PyObject *module, PyObject *hook);
int Sync_not_owned(void);
PyObject *core_sync_method(PyObject *module, PyObject *args);

/* _core_simplequeue.c */
PyObject *core_configure_simple_get(PyObject *module, PyObject *args);
PyObject *core_replace_method(PyObject *module, PyObject *args);

/* _core_thread.c */
int Thread_init(PyObject *module);
int Thread_describe(Record *self, PyObject *ident);
PyObject *core_configure_threads(PyObject *module, PyObject *args);

/* _core_open.c */
int Open_init(PyObject *module);
PyObject *core_open_function(PyObject *module, PyObject *args);
PyObject *core_record_openings(PyObject *module, PyObject *args);
PyObject *core_ignore_openings(PyObject *module, PyObject *hook);
PyObject *core_forget_openings(PyObject *module, PyObject *none);

/* _core_lastresort.c */
void LastResort_request(void);
PyObject *core_last_resort_requests(PyObject *module, PyObject *none);
PyObject *core_last_resort_answer(PyObject *module, PyObject *number);
PyObject *core_last_resort_start(PyObject *module, PyObject *args);
PyObject *core_last_resort_stop(PyObject *module, PyObject *none);
PyObject *core_last_resort_after_fork(PyObject *module, PyObject *none);
PyObject *core_last_resort_threads(PyObject *module, PyObject *none);

/* _core_latethread.c */
PyObject *core_start_thread_late(PyObject *module, PyObject *args);
PyObject *core_hurry_late_thread(PyObject *module, PyObject *ignored);

/* What acquire's arguments ask for. */
typedef struct {
    int blocking;
    int64_t timeout_ns; /* -1: for ever */
} Patience;

/* _core_waiter.c */
PyObject *core_waiter_lock(PyObject *module, PyObject *none);
int WaiterLock_is_free(PyObject *self);
int Waiter_init(PyObject *module);

/* _core_semlock.c */
PyObject *core_hasten_semlock(PyObject *module, PyObject *args);

/* _core_sharedcell.c */
PyObject *core_share(PyObject *module, PyObject *args);
int SharedCell_init(PyObject *module);

/* _core_reach.c */
PyObject *core_reach_look(PyObject *module, PyObject *args);
PyObject *core_reach_frames(PyObject *module, PyObject *ident);
PyObject *core_reach_locals(PyObject *module, PyObject *ident);
PyObject *core_reach_objects(PyObject *module, PyObject *addresses);

/* _core_original.c */
int parse_given(PyObject *const *args, Py_ssize_t count, PyObject *names, Patience *patience);
int check_arguments(PyObject *original, PyObject *args, PyObject *kwargs);
void adopt_methods(PyMethodDef *methods, PyObject *original);
void adopt_doc(PyType_Slot *slots, PyObject *original);

/* Read acquire's arguments; -1 with the exception that the original raises. */
static inline int
parse_patience(PyObject *const *args, Py_ssize_t count, PyObject *names, Patience *patience)
{
    patience->blocking = 1;
    patience->timeout_ns = -1;
    return LIKELY(count == 0 && names == NULL) ? 0 : parse_given(args, count, names, patience);
}

/* _core_lock.c */
void tell_misuse(const char *detail, Lock *lock, PyObject *hold);
extern PyType_Spec Lock_spec;
extern PyMemberDef Lock_members[];
PyObject *Lock_make(PyTypeObject *type, int kind);
PyObject *Lock_vectorcall(PyObject *type, PyObject *const *args, size_t count, PyObject *names);
PyObject *RLock_vectorcall(PyObject *type, PyObject *const *args, size_t count, PyObject *names);
PyObject *Lock_locked(Lock *self, PyObject *none);
PyObject *Lock_at_fork_reinit(Lock *self, PyObject *none);
void Lock_dealloc(Lock *self);
void Lock_adopt_original(PyObject *original);

/* _core_rlock.c */
extern PyType_Spec RLock_spec;
void RLock_adopt_original(PyObject *original);

/* No Python code is called when the interpreter is taking itself apart. */
static inline int
is_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

/* Before 3.12 making a tuple may run the garbage collector, and with it finalizers: any Python code.  Where that must
 * not be, the collector pauses; later versions only note that it is due. */
static inline int
gc_pause(void)
{
#if PY_VERSION_HEX < 0x030C0000
    return PyGC_Disable();
#else
    return 0;
#endif
}

static inline void
gc_resume(int was_enabled)
{
    if (was_enabled) {
        PyGC_Enable();
    }
}

/* Return whether frames of this code count as their caller's.  The answer is cached by address; the cache owns the
 * code objects in it, so an address cannot come to mean another function.  A miss may run Python code (of whoever
 * watches a code object die): ask before anything is half done. */
static inline int
Code_is_transparent(PyCodeObject *code)
{
    size_t slot = ((size_t)code >> 5) % TRANSPARENT_SLOTS;
    if (LIKELY(core.transparent_cache[slot].code == code)) {
        return core.transparent_cache[slot].is_transparent;
    }
    return Code_ask_transparent(code, slot);
}

static inline Record *
current_record(void)
{
    Record *record = tls_record;
    return LIKELY(record != NULL) ? record : Record_new();
}

#if defined(__GNUC__)
#  pragma GCC visibility pop
#endif

#endif
