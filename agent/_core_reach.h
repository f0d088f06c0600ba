/* What the files of one look at the heap share: the objects asked for, the edges found, and tables of addresses.
 *
 *   _core_reach.c   the question and its answer
 *   _core_heap.c    the objects that the collector knows, and their references
 *   _core_stuck.c   the references from the frames of stuck threads
 *
 *   Node.explained   references that were seen: from the heap, from the frames of stuck threads, from our own
 *   Node.kept        among these is one from a stuck frame, which never drops it
 *   Edge.kind        STRONG; WEAK, which holds nothing but leads there; KEEPS, from a stuck actor that does not use it
 */
#ifndef CONCAGENT_CORE_REACH_H
#define CONCAGENT_CORE_REACH_H

#include "_core.h"

#if defined(__GNUC__)
#  pragma GCC visibility push(hidden)
#endif

enum { STRONG = 0, WEAK = 1, KEEPS = 2 };
enum { FINALIZER = 1, KEPT = 2, SOURCE_FORCED = 4 };

#define BLOOM_BITS (1u << 16)

typedef struct {
    PyObject *object; /* an address; borrowed while `seen` */
    Py_ssize_t explained;
    PyObject *last_source;
    char seen;
    char kept;
} Node;

typedef struct {
    PyObject *source; /* an address */
    Py_ssize_t target;
    int kind;
} Edge;

/* Addresses, open addressing; values are indices from 1. */
typedef struct {
    PyObject **keys;
    Py_ssize_t *values;
    size_t size;
    size_t used;
} Table;

/* 3.10: calls of `self` through a bound method that runs this code, `times` on the stacks; `found` such methods exist.
 */
typedef struct {
    PyObject *self, *code;
    int times, found;
} HiddenCall;

#define HIDDEN_LIMIT 256

typedef struct {
    Node *nodes;
    Py_ssize_t node_count;
    Table table;
    Table mine;    /* containers of ours: their references are explained and lead nowhere */
    Table ignored; /* sources some of whose references belong to a stuck actor: index of the first in `passes` */
    struct {
        PyObject *source, *target;
        Py_ssize_t left;
    } *passes;
    Py_ssize_t pass_count;
    Table deep; /* untracked tuples and dictionaries that were looked into */
    int look_deep;
    PyObject **todo; /* those still to be looked into */
    Py_ssize_t todo_count, todo_capacity;
    Edge *edges;
    Py_ssize_t edge_count, edge_capacity;
    PyObject *source;
    int explaining; /* the source is ours, or a stuck frame */
    int source_ignored;
    long long visited, limit;
    int64_t deadline_ns;
    int failed; /* 1: no memory; 2: a limit was hit */
#if PY_VERSION_HEX < 0x030B0000
    HiddenCall hidden[HIDDEN_LIMIT];
    struct {
        PyObject *method; /* borrowed while the GIL is held */
        int hidden;
    } methods[HIDDEN_LIMIT];
    int hidden_count, method_count; /* method_count is HIDDEN_LIMIT if there were too many */
#endif
    uint64_t bloom[BLOOM_BITS / 64];
} Look;

/* _core_reach.c */
Py_ssize_t Table_add(Table *self, PyObject *key, Py_ssize_t value);
void Table_clear(Table *self);
void Look_add_edge(Look *self, PyObject *source, Node *node, int kind);

/* _core_heap.c */
void Look_into(Look *self, PyObject *object);
void Look_at_heap(Look *self);
void each_tracked(int (*function)(PyObject *, void *), void *arg);

/* _core_stuck.c */
int Look_explain_thread(Look *self, PyObject *thread, PyObject *args);

static inline size_t
hash_of(PyObject *key)
{
    uint64_t bits = (uint64_t)(uintptr_t)key >> 4;
    return (size_t)((bits * 0x9E3779B97F4A7C15ull) >> 20);
}

static inline Py_ssize_t
Table_get(const Table *self, PyObject *key)
{
    if (self->size == 0) {
        return 0;
    }
    for (size_t i = hash_of(key) & (self->size - 1);; i = (i + 1) & (self->size - 1)) {
        if (self->keys[i] == key) {
            return self->values[i];
        }
        if (self->keys[i] == NULL) {
            return 0;
        }
    }
}

static inline Node *
Look_find(Look *self, PyObject *object)
{
    size_t bit = hash_of(object) & (BLOOM_BITS - 1);
    if (LIKELY(!(self->bloom[bit / 64] >> (bit % 64) & 1))) {
        return NULL;
    }
    Py_ssize_t at = Table_get(&self->table, object);
    return at > 0 ? &self->nodes[at - 1] : NULL;
}

#if defined(__GNUC__)
#  pragma GCC visibility pop
#endif

#endif
