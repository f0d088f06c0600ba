/* The words of a shared lock on the board, its cell in this process, and the stores that sign for it.
 *
 * On the board the word that says who is the last store of an acquisition.  A release marks it FREED in one store,
 * before the semaphore is posted; so it is never stale while the holder lives, and a process that is killed between the
 * two can still be found.  Who finds the lock free says that he tries, from before he does until he has given it back:
 * killed before he could sign, or after he signed off, he is known by that.
 *
 * A cell of the board may be given to another lock when it was not used for long (see board.py): its key is looked at
 * before it is written, and again after the holder was.
 *
 * Inlined into the methods of _core_semlock.c.
 */
#ifndef CONCAGENT_CORE_BOARD_H
#define CONCAGENT_CORE_BOARD_H

#include "_core.h"

enum { KEY, WHO, START, WHERE, SINCE, TRYING, CELL_WORDS }; /* as in board.py */

/* WHO: freed (1 bit), number of the hold (19), process (22), thread (22). */
#define FREED (UINT64_C(1) << 63)
#define ID_BITS 22
#define ONE_HOLD (UINT64_C(1) << 2 * ID_BITS)
#define HOLDS (FREED - ONE_HOLD)

/* What a shared lock's cell (see shared.py) has in both twins. */
typedef struct {
    PyObject_HEAD uint64_t *words; /* of the lock, on the board or nowhere */
    uint64_t key;
    uint64_t bound; /* the key while it has a place on the board, else 0 */
    uint64_t place;
    Record *record;     /* owned or NULL: who took it last */
    PyCodeObject *code; /* owned or NULL: where */
    PyObject *hold;     /* owned or NULL: the tuple of this hold, so that two readings can compare identity */
    uint32_t site;
    int lasti;
    char entered;
    char held;
} SharedCell;

typedef struct {
    uint64_t *words; /* NULL for none; mapped as long as the process lives */
    uint64_t length;
    uint64_t start; /* of this process */
} Board;

#if defined(__GNUC__)
#  pragma GCC visibility push(hidden)
#endif

extern Board board;

#if defined(__GNUC__)
#  pragma GCC visibility pop
#endif

/* Where the program takes a lock. */
typedef struct {
    PyCodeObject *code; /* borrowed: the frame keeps it */
    int lasti;
    int entered;
    uint32_t site;
} Where;

static inline uint64_t
who(Record *record)
{
    return (uint64_t)record->pid << ID_BITS | (uint64_t)record->native_id;
}

/* A store that changes nothing is not made: the atomic operation that follows would wait for it. */
static inline void
put(uint64_t *word, uint64_t value)
{
    if (*word != value) {
        *word = value;
    }
}

/* Say that the calling thread tries to take a lock that seems to be free.  If another says so, he has the lock and will
 * sign, or was killed before he could: then nobody else would know of it. */
static inline void
say_trying(SharedCell *cell, Record *record)
{
    uint64_t *words = cell->words;
    uint64_t holder = words[WHO];
    if (LIKELY((holder == 0 || holder & FREED) && words[TRYING] == 0)) { /* else it is held, or was a moment ago */
        words[TRYING] = who(record);
    }
}

/* Say that it is over, one way or the other.  Not atomic: what another one says at the same moment may be lost. */
static inline void
say_done(SharedCell *cell, Record *record)
{
    if (cell->words[TRYING] == who(record)) {
        cell->words[TRYING] = 0;
    }
}

static inline void
took(SharedCell *cell, Record *record, Where where)
{
    uint64_t *words = cell->words;
    PyObject *old_record = NULL, *old_code = NULL;
    if (LIKELY(words[KEY] == cell->bound)) {
        put(&words[START], board.start);
        put(&words[WHERE], record->serial << 32 | where.site);
        put(&words[SINCE], (uint64_t)core.tick_ns);
        put(&words[TRYING], who(record));
        __atomic_store_n(&words[WHO], ((words[WHO] + ONE_HOLD) & HOLDS) | who(record), __ATOMIC_RELEASE);
        if (UNLIKELY(__atomic_load_n(&words[KEY], __ATOMIC_ACQUIRE) != cell->bound)) {
            words[WHO] |= FREED;
        }
    }
    if (UNLIKELY(cell->record != record)) {
        old_record = (PyObject *)cell->record;
        cell->record = (Record *)Py_NewRef((PyObject *)record);
    }
    if (UNLIKELY(cell->code != where.code)) {
        old_code = (PyObject *)cell->code;
        cell->code = (PyCodeObject *)Py_XNewRef((PyObject *)where.code);
    }
    if (UNLIKELY(cell->lasti != where.lasti || cell->entered != where.entered)) {
        cell->lasti = where.lasti;
        cell->entered = (char)where.entered;
    }
    cell->held = 1;
    if (UNLIKELY(cell->hold != NULL)) {
        Py_CLEAR(cell->hold);
    }
    if (UNLIKELY(old_record != NULL || old_code != NULL)) { /* may run code: all is done by now */
        Py_XDECREF(old_record);
        Py_XDECREF(old_code);
    }
}

static inline void
let_go(SharedCell *cell)
{
    uint64_t *words = cell->words;
    cell->held = 0;
    if (LIKELY(words[KEY] == cell->bound)) {
        __atomic_store_n(&words[WHO], words[WHO] | FREED, __ATOMIC_RELEASE);
    }
}

#endif
