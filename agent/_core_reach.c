/* One look at the heap: who refers to these objects, and which of their references nobody can explain.
 *
 * The twin of _pyreach.py; the argument is in reach.py.  All of it happens with the GIL held and without running Python
 * code, so the counts of one call belong to one moment.  Addresses that were found in an earlier look are numbers: only
 * what this look has come across (or what the caller keeps alive) is read.
 *
 *   Node.explained   references that were seen: from the heap, from the frames of stuck threads, from our own
 *   Node.kept        among these is one from a stuck frame, which never drops it
 *   Edge.kind        STRONG; WEAK, which holds nothing but leads there; KEEPS, from a stuck actor that does not use it
 */
#include "_core.h"

#if PY_VERSION_HEX < 0x030B0000
#  include <opcode.h>
#endif
#if PY_VERSION_HEX < 0x030C0000
#  define Py_BUILD_CORE 1
#  undef _PyGC_FINALIZED /* pycore_gc.h has its own */
#  include "internal/pycore_gc.h"
#  include "internal/pycore_interp.h"
#  undef Py_BUILD_CORE
#endif

enum { STRONG = 0, WEAK = 1, KEEPS = 2 };
enum { FINALIZER = 1, KEPT = 2, SOURCE_FORCED = 4 };

#define MASK_SLOTS 64 /* of an evaluation stack; deeper ones are not looked at */
#define BLOOM_BITS (1u << 16)
#define CLOCK_EVERY 1024

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

/* ------------------------------------------------------------------------------------------------ tables */

static inline size_t
hash_of(PyObject *key)
{
    uint64_t bits = (uint64_t)(uintptr_t)key >> 4;
    return (size_t)((bits * 0x9E3779B97F4A7C15ull) >> 20);
}

static Py_ssize_t
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

/* Return the value that is there, 0 if the given one was put in, -1 without memory. */
static Py_ssize_t
Table_add(Table *self, PyObject *key, Py_ssize_t value)
{
    if ((self->used + 1) * 2 > self->size) {
        Table bigger = {NULL, NULL, self->size == 0 ? 64 : self->size * 2, 0};
        bigger.keys = PyMem_RawCalloc(bigger.size, sizeof(PyObject *));
        bigger.values = PyMem_RawCalloc(bigger.size, sizeof(Py_ssize_t));
        if (bigger.keys == NULL || bigger.values == NULL) {
            PyMem_RawFree(bigger.keys);
            PyMem_RawFree(bigger.values);
            return -1;
        }
        for (size_t i = 0; i < self->size; i++) {
            if (self->keys[i] != NULL) {
                Table_add(&bigger, self->keys[i], self->values[i]);
            }
        }
        PyMem_RawFree(self->keys);
        PyMem_RawFree(self->values);
        *self = bigger;
    }
    size_t i = hash_of(key) & (self->size - 1);
    while (self->keys[i] != NULL) {
        if (self->keys[i] == key) {
            return self->values[i];
        }
        i = (i + 1) & (self->size - 1);
    }
    self->keys[i] = key;
    self->values[i] = value;
    self->used++;
    return 0;
}

static void
Table_clear(Table *self)
{
    PyMem_RawFree(self->keys);
    PyMem_RawFree(self->values);
}

static void
Look_clear(Look *self)
{
    PyMem_RawFree(self->nodes);
    PyMem_RawFree(self->edges);
    PyMem_RawFree(self->todo);
    PyMem_RawFree(self->passes);
    Table_clear(&self->table);
    Table_clear(&self->mine);
    Table_clear(&self->ignored);
    Table_clear(&self->deep);
    PyMem_RawFree(self);
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

static void
add_edge(Look *self, PyObject *source, Node *node, int kind)
{
    if (self->edge_count == self->edge_capacity) {
        Py_ssize_t capacity = self->edge_capacity == 0 ? 256 : self->edge_capacity * 2;
        Edge *edges = PyMem_RawRealloc(self->edges, (size_t)capacity * sizeof(Edge));
        if (edges == NULL) {
            self->failed = 1;
            return;
        }
        self->edges = edges;
        self->edge_capacity = capacity;
    }
    self->edges[self->edge_count++] = (Edge){source, node - self->nodes, kind};
}

/* ------------------------------------------------------------------------------------------------ the heap */

/* Tuples and dictionaries of nothing but atoms are not known to the collector, and a lock of ours is an atom to it. */
static void
note_untracked(Look *self, PyObject *object)
{
    if ((!PyTuple_CheckExact(object) && !PyDict_CheckExact(object)) || PyObject_GC_IsTracked(object) ||
        Table_add(&self->deep, object, 1) != 0) {
        return;
    }
    if (self->todo_count == self->todo_capacity) {
        Py_ssize_t capacity = self->todo_capacity == 0 ? 256 : self->todo_capacity * 2;
        PyObject **todo = PyMem_RawRealloc(self->todo, (size_t)capacity * sizeof(PyObject *));
        if (todo == NULL) {
            self->failed = 1;
            return;
        }
        self->todo = todo;
        self->todo_capacity = capacity;
    }
    self->todo[self->todo_count++] = object;
}

/* Return 1 if this reference is one that only a stuck actor itself will ever use. */
static int
is_passed_over(Look *self, PyObject *target)
{
    for (Py_ssize_t i = 0; i < self->pass_count; i++) {
        if (self->passes[i].source == self->source && self->passes[i].target == target && self->passes[i].left > 0) {
            self->passes[i].left--;
            return 1;
        }
    }
    return 0;
}

static int
visit(PyObject *object, void *arg)
{
    Look *self = arg;
    Node *node = Look_find(self, object);
    if (self->look_deep && object != NULL) {
        note_untracked(self, object);
    }
    if (LIKELY(node == NULL)) {
        return 0;
    }
    node->seen = 1;
    node->explained++;
    if (self->explaining) {
        return 0;
    }
    if (self->source_ignored && is_passed_over(self, object)) {
        add_edge(self, self->source, node, KEEPS);
    }
    else if (node->last_source != self->source) {
        node->last_source = self->source;
        add_edge(self, self->source, node, STRONG);
    }
    return self->failed;
}

#if PY_VERSION_HEX >= 0x030E0000
static void
uncount(Look *self, PyObject *object)
{
    Node *node = object == NULL ? NULL : Look_find(self, object);
    if (node != NULL) {
        node->explained--;
    }
}

/* Since 3.14 a frame's stack has borrowed references among others: they lead there, but count for nothing. */
static void
uncount_borrowed(Look *self, PyObject *object)
{
    FramePtr frame = Frame_visited_with(object);
    if (frame != NULL) {
        uncount(self, Ref_borrowed(frame->f_funcobj));
        for (_PyStackRef *ref = frame->localsplus; ref < frame->stackpointer; ref++) {
            uncount(self, Ref_borrowed(*ref));
        }
    }
}
#endif

static void
look_into(Look *self, PyObject *object)
{
    traverseproc traverse = Py_TYPE(object)->tp_traverse;
    if (traverse != NULL) {
        self->source = object;
        traverse(object, visit, self);
    }
}

#if PY_VERSION_HEX < 0x030B0000
/* Remember a bound method that may be one of the hidden ones. */
static void
note_method(Look *self, PyObject *object)
{
    PyObject *function = PyMethod_GET_FUNCTION(object);
    for (int i = 0; i < self->hidden_count && PyFunction_Check(function); i++) {
        HiddenCall *call = &self->hidden[i];
        if (call->self == PyMethod_GET_SELF(object) && call->code == PyFunction_GET_CODE(function) &&
            self->method_count < HIDDEN_LIMIT) {
            self->methods[self->method_count].method = object;
            self->methods[self->method_count++].hidden = i;
        }
    }
}

/* Count the references of C variables to the hidden methods, where just as many methods lack one as are called. */
static void
explain_hidden(Look *self)
{
    for (int counting = 1; counting >= 0 && self->method_count < HIDDEN_LIMIT; counting--) {
        for (int i = 0; i < self->method_count; i++) {
            HiddenCall *call = &self->hidden[self->methods[i].hidden];
            Node *node = Look_find(self, self->methods[i].method);
            int lacks = node == NULL || Py_REFCNT(node->object) > node->explained;
            if (counting) {
                call->found += lacks;
            }
            else if (lacks && node != NULL && call->found == call->times) {
                node->explained++;
                node->kept = 1;
            }
        }
    }
}
#endif

/* Look at one object that the collector knows; 0 to stop. */
static int
look_at(PyObject *object, void *arg)
{
    Look *self = arg;
    if (++self->visited > self->limit || (self->visited % CLOCK_EVERY == 0 && now_ns() > self->deadline_ns)) {
        self->failed = 2;
    }
    if (self->failed) {
        return 0;
    }
    Node *node = Look_find(self, object);
    if (node != NULL) {
        node->seen = 1;
    }
    if (UNLIKELY(Table_get(&self->mine, object) > 0)) {
        return 1;
    }
#if PY_VERSION_HEX < 0x030B0000
    if (self->hidden_count > 0 && Py_TYPE(object) == &PyMethod_Type) {
        note_method(self, object);
    }
#endif
    Py_ssize_t before = self->edge_count;
    self->source_ignored = self->pass_count > 0 && Table_get(&self->ignored, object) > 0;
    look_into(self, object);
    self->source_ignored = 0;
#if PY_VERSION_HEX >= 0x030E0000
    uncount_borrowed(self, object);
#endif
    while (self->todo_count > 0 && !self->failed) {
        PyObject *inner = self->todo[--self->todo_count];
        if (Table_get(&self->mine, inner) == 0) {
            self->source_ignored = self->pass_count > 0 && Table_get(&self->ignored, inner) > 0;
            look_into(self, inner);
            self->source_ignored = 0;
        }
    }
    if (UNLIKELY(self->edge_count > before) && PyWeakref_Check(object)) {
        PyWeakReference *reference = (PyWeakReference *)object;
        if (reference->wr_callback != NULL && reference->wr_object != Py_None) {
            self->edges[before].kind |= SOURCE_FORCED; /* the callback is called when its object dies */
        }
    }
    return !self->failed;
}

/* Call a function, which makes no objects, for each object that the collector knows, until it returns 0. */
static void
each_tracked(int (*function)(PyObject *, void *), void *arg)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyUnstable_GC_VisitObjects(function, arg);
#else
    struct _gc_runtime_state *state = &PyInterpreterState_Get()->gc;
    for (int i = 0; i < NUM_GENERATIONS; i++) {
        PyGC_Head *head = &state->generations[i].head;
        for (PyGC_Head *at = _PyGCHead_NEXT(head); at != head; at = _PyGCHead_NEXT(at)) {
            if (!function((PyObject *)(at + 1), arg)) {
                return;
            }
        }
    }
#endif
}

/* A weak reference keeps nothing, but who has it can get at the object. */
static void
look_at_weak_references(Look *self)
{
    for (Py_ssize_t i = 0; i < self->node_count && !self->failed; i++) {
        Node *node = &self->nodes[i];
        Py_ssize_t offset = node->seen ? Py_TYPE(node->object)->tp_weaklistoffset : 0;
        if (offset == 0) {
            continue;
        }
        PyWeakReference *one = *(PyWeakReference **)((char *)node->object + offset);
        for (; one != NULL; one = one->wr_next) {
            if (Table_get(&self->mine, (PyObject *)one) == 0) {
                add_edge(self, (PyObject *)one, node, WEAK);
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------------ frames */

static void
explain(Look *self, PyObject *object)
{
    Node *node = object == NULL ? NULL : Look_find(self, object);
    if (node != NULL) {
        node->seen = 1;
        node->explained++;
        node->kept = 1;
    }
}

static PyThreadState *
find_thread_state(unsigned long ident)
{
    PyThreadState *tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (tstate != NULL && tstate->thread_id != ident) {
        tstate = PyThreadState_Next(tstate);
    }
    return tstate;
}

/* Return whether a slot of the evaluation stack is one of ours to count.  The argument tuple of `f(*args)` may have
 * been replaced inside of the instruction, and the slot be stale: then it must be found elsewhere, as a tuple. */
static int
is_sure(FrameRefs *refs, PyObject *args, int slot, uint64_t mask, int star)
{
    if (slot >= MASK_SLOTS || !(mask >> slot & 1)) {
        return 0;
    }
    if (slot != star) {
        return 1;
    }
    PyObject *value = FrameRefs_get(refs, refs->locals + slot);
    for (int i = 0; i < refs->locals; i++) {
        if (value != NULL && FrameRefs_get(refs, i) == value) {
            return PyTuple_CheckExact(value);
        }
    }
    for (Py_ssize_t i = 0; value != NULL && i < PyList_GET_SIZE(args); i++) {
        if (PyList_GET_ITEM(args, i) == value) {
            return PyTuple_CheckExact(value);
        }
    }
    return 0;
}

#if PY_VERSION_HEX < 0x030B0000
/* Return the slot whose reference is borrowed because a bound method is being called from it, -1 if there is none.
 *
 * `method_vectorcall` puts the method's `self` in the place of the method for the time of the call, and keeps the
 * method in a variable of its own.  A callee that cannot be called was put there so; where it can, nobody knows.
 */
static int
hidden_slot(Look *self, FramePtr frame, FramePtr callee, FrameRefs *refs, uint64_t mask)
{
    const _Py_CODEUNIT *at = (const _Py_CODEUNIT *)PyBytes_AS_STRING(frame->f_code->co_code) + frame->f_lasti;
    if (frame->f_lasti < 1 || _Py_OPCODE(at[-1]) == EXTENDED_ARG) {
        return -1;
    }
    int opcode = _Py_OPCODE(*at), is_call = opcode == CALL_FUNCTION || opcode == CALL_METHOD;
    if (!is_call && opcode != CALL_FUNCTION_KW) {
        return -1;
    }
    int slot = __builtin_popcountll(mask) - (is_call ? 1 : 2) - _Py_OPARG(*at);
    PyObject *value = slot < 0 ? NULL : FrameRefs_get(refs, refs->locals + slot);
    if (value == NULL || PyCallable_Check(value) ||
        (opcode == CALL_METHOD && (slot < 1 || FrameRefs_get(refs, refs->locals + slot - 1) != NULL))) {
        return -1;
    }
    PyObject *code = (PyObject *)Frame_code(callee);
    int i = 0;
    while (i < self->hidden_count && (self->hidden[i].self != value || self->hidden[i].code != code)) {
        i++;
    }
    if (i < HIDDEN_LIMIT) {
        self->hidden_count += i == self->hidden_count;
        self->hidden[i].self = value;
        self->hidden[i].code = code;
        self->hidden[i].times++;
    }
    return slot;
}
#else
#  define hidden_slot(self, frame, callee, refs, mask) (-1)
#endif

/* Count what a frame refers to.  `callee`: the frame that was called from here, or NULL. */
static void
explain_frame(Look *self, FramePtr frame, FramePtr callee, PyObject *args, uint64_t mask, int star)
{
    FrameRefs refs;
    if (!FrameRefs_init(&refs, frame, callee != NULL)) {
        return;
    }
    int hidden = callee != NULL ? hidden_slot(self, frame, callee, &refs, mask) : -1;
    for (int i = 0; i < refs.extra_count; i++) {
        explain(self, refs.extra[i]);
    }
    for (int i = refs.first; i < refs.locals; i++) {
        explain(self, FrameRefs_get(&refs, i));
    }
    /* Since 3.14 the depth is stored whatever is called; only a call of Python is certain to have taken what it uses.
     */
    int stored = refs.stack >= 0 && PY_VERSION_HEX < 0x030E0000;
    int depth = refs.stack >= 0 ? refs.stack : refs.stack_limit;
    for (int i = 0; i < depth; i++) {
        if (i != hidden && (stored || is_sure(&refs, args, i, mask, star))) {
            explain(self, FrameRefs_get(&refs, refs.locals + i));
        }
    }
}

/* A wait of ours holds the lock that it is for, and is no object that the collector knows. */
static void
explain_waits(Look *self, PyObject *ident)
{
    Record *record = core.by_ident == NULL ? NULL : (Record *)PyDict_GetItemWithError(core.by_ident, ident);
    for (Py_ssize_t i = 0; record != NULL && i < PyList_GET_SIZE(record->waits); i++) {
        PyObject *wait = PyList_GET_ITEM(record->waits, i);
        if (Py_TYPE(wait) == WaitType) {
            explain(self, ((Wait *)wait)->user);
        }
    }
}

/* Count the references of one thread's frames: (ident, [(code or None, lasti, mask, star slot), ...]), innermost first.
 * They must still be where they were when the masks were made; only for the caller's own thread there may be more. */
static int
explain_thread(Look *self, PyObject *thread, PyObject *args)
{
    PyObject *ident, *frames;
    if (!PyArg_ParseTuple(thread, "O!O!", &PyLong_Type, &ident, &PyList_Type, &frames)) {
        return -1;
    }
    unsigned long number = PyLong_AsUnsignedLong(ident);
    PyThreadState *tstate = PyErr_Occurred() ? NULL : find_thread_state(number);
    if (tstate == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    int own = tstate == Thread_state();
    for (int counting = 0; counting < 2; counting++) {
        FramePtr frame = Frame_current(tstate), callee = NULL;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(frames); i++) {
            PyObject *code;
            int lasti, star;
            unsigned long long mask;
            if (!PyArg_ParseTuple(PyList_GET_ITEM(frames, i), "OiKi", &code, &lasti, &mask, &star)) {
                return -1;
            }
            if (frame == NULL || (code != Py_None && (PyObject *)Frame_code(frame) != code) ||
                (Frame_lasti(frame) != lasti && !(own && i == 0))) {
                return 0; /* the thread has moved: nothing of it is known */
            }
            if (counting) {
                explain_frame(self, frame, callee, args, own && i == 0 ? 0 : mask, star);
            }
            callee = frame;
            frame = Frame_back(frame);
        }
        if (frame != NULL && !own) {
            return 0;
        }
    }
    if (!own) {
        explain_waits(self, ident);
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------ the module's */

static int
take_addresses(Look *self, PyObject *addresses)
{
    Py_ssize_t count = PyList_GET_SIZE(addresses);
    self->nodes = PyMem_RawCalloc((size_t)count + 1, sizeof(Node));
    if (self->nodes == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *object = PyLong_AsVoidPtr(PyList_GET_ITEM(addresses, i));
        if (object == NULL) {
            return PyErr_Occurred() ? -1 : (PyErr_SetString(PyExc_ValueError, "no object is at 0"), -1);
        }
        Py_ssize_t was = Table_add(&self->table, object, self->node_count + 1);
        if (was < 0) {
            PyErr_NoMemory();
            return -1;
        }
        if (was == 0) {
            self->nodes[self->node_count++].object = object;
            size_t bit = hash_of(object) & (BLOOM_BITS - 1);
            self->bloom[bit / 64] |= (uint64_t)1 << (bit % 64);
        }
    }
    return 0;
}

static int
take_passes(Look *self, PyObject *passes)
{
    self->pass_count = PyList_GET_SIZE(passes);
    self->passes = PyMem_RawCalloc((size_t)self->pass_count + 1, sizeof(*self->passes));
    if (self->passes == NULL) {
        self->pass_count = 0;
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < self->pass_count; i++) {
        PyObject *source, *target;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(passes, i), "O!O!n", &PyLong_Type, &source, &PyLong_Type, &target,
                              &self->passes[i].left)) {
            return -1;
        }
        self->passes[i].source = PyLong_AsVoidPtr(source);
        self->passes[i].target = PyLong_AsVoidPtr(target);
        if (PyErr_Occurred() || Table_add(&self->ignored, self->passes[i].source, 1) < 0) {
            return PyErr_Occurred() ? -1 : (PyErr_NoMemory(), -1);
        }
    }
    return 0;
}

/* Return whether an object has a meaningful number of references. */
static int
is_counted(PyObject *object)
{
#if PY_VERSION_HEX >= 0x030C0000
    return !_Py_IsImmortal(object);
#else
    (void)object;
    return 1;
#endif
}

static PyObject *
give_nodes(Look *self)
{
    PyObject *nodes = PyDict_New();
    for (Py_ssize_t i = 0; nodes != NULL && i < self->node_count; i++) {
        Node *node = &self->nodes[i];
        if (!node->seen) {
            continue;
        }
        /* Read before anything is made for the answer could refer to it: the answer has numbers only. */
        Py_ssize_t missing = is_counted(node->object) ? Py_REFCNT(node->object) - node->explained : 1;
        PyTypeObject *type = Py_TYPE(node->object);
        int flags = (type->tp_finalize != NULL || type->tp_del != NULL ? FINALIZER : 0) | (node->kept ? KEPT : 0);
        PyObject *key = PyLong_FromVoidPtr(node->object);
        PyObject *value = key == NULL ? NULL : Py_BuildValue("ni", missing, flags);
        if (value == NULL || PyDict_SetItem(nodes, key, value) < 0) {
            Py_CLEAR(nodes);
        }
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return nodes;
}

static PyObject *
give_edges(Look *self)
{
    PyObject *edges = PyList_New(self->edge_count);
    for (Py_ssize_t i = 0; edges != NULL && i < self->edge_count; i++) {
        Edge *edge = &self->edges[i];
        PyObject *source = PyLong_FromVoidPtr(edge->source);
        PyObject *target = PyLong_FromVoidPtr(self->nodes[edge->target].object);
        PyObject *row = source == NULL || target == NULL ? NULL : Py_BuildValue("OOi", source, target, edge->kind);
        Py_XDECREF(source);
        Py_XDECREF(target);
        if (row == NULL) {
            Py_CLEAR(edges);
            break;
        }
        PyList_SET_ITEM(edges, i, row);
    }
    return edges;
}

/* reach_look(addresses, pinned, threads, args, own, passes, limit, seconds); see reach.Look. */
PyObject *
core_reach_look(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *addresses, *pinned, *threads, *args, *own, *passes, *result = NULL;
    long long limit;
    double seconds;
    if (!PyArg_ParseTuple(arguments, "O!O!O!O!O!O!Ld", &PyList_Type, &addresses, &PyList_Type, &pinned, &PyList_Type,
                          &threads, &PyList_Type, &args, &PyList_Type, &own, &PyList_Type, &passes, &limit, &seconds)) {
        return NULL;
    }
    Look *self = PyMem_RawCalloc(1, sizeof(Look));
    if (self == NULL) {
        return PyErr_NoMemory();
    }
    self->limit = limit;
    self->deadline_ns = now_ns() + (int64_t)(seconds * 1e9);
    int gc = PyGC_Disable();
    if (take_addresses(self, addresses) < 0 || take_passes(self, passes) < 0) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pinned); i++) {
        PyObject *address = PyList_GET_ITEM(pinned, i);
        Node *node = Look_find(self, PyLong_AsVoidPtr(address));
        if (node != NULL) {
            node->seen = 1;
            self->look_deep |= !PyObject_IS_GC(node->object);
        }
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(own); i++) {
        if (Table_add(&self->mine, PyList_GET_ITEM(own, i), 1) < 0) {
            PyErr_NoMemory();
            goto done;
        }
    }
    if (PyErr_Occurred()) {
        goto done;
    }
    self->explaining = 1;
    int deep = self->look_deep;
    self->look_deep = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(own); i++) {
        look_into(self, PyList_GET_ITEM(own, i));
    }
    look_into(self, own);
    look_into(self, args);
    if (Table_add(&self->mine, own, 1) < 0 || Table_add(&self->mine, args, 1) < 0) {
        PyErr_NoMemory();
        goto done;
    }
    self->explaining = 0;
    self->look_deep = deep;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(threads); i++) {
        if (explain_thread(self, PyList_GET_ITEM(threads, i), args) < 0) {
            goto done;
        }
    }
    each_tracked(look_at, self);
#if PY_VERSION_HEX < 0x030B0000
    explain_hidden(self);
#endif
    look_at_weak_references(self);
    if (self->failed == 1) {
        PyErr_NoMemory();
    }
    else if (self->failed == 2) {
        result = Py_NewRef(Py_None);
    }
    else {
        PyObject *nodes = give_nodes(self);
        PyObject *edges = nodes == NULL ? NULL : give_edges(self);
        result = edges == NULL ? NULL : Py_BuildValue("OOL", nodes, edges, self->visited);
        Py_XDECREF(nodes);
        Py_XDECREF(edges);
    }
done:
    Look_clear(self);
    if (gc) {
        PyGC_Enable();
    }
    return result;
}

/* reach_frames(ident): [(code or None, lasti), ...] of a thread, innermost first; None if there is no such thread. */
PyObject *
core_reach_frames(PyObject *Py_UNUSED(module), PyObject *ident)
{
    unsigned long number = PyLong_AsUnsignedLong(ident);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyObject *rows = PyList_New(0);
    PyThreadState *tstate = rows == NULL ? NULL : find_thread_state(number);
    if (tstate == NULL) {
        Py_XDECREF(rows);
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    int gc = PyGC_Disable();
    for (FramePtr frame = Frame_current(tstate); frame != NULL; frame = Frame_back(frame)) {
        PyCodeObject *code = Frame_code(frame);
        /* CPython's own little helpers are half made: no names, no file. */
        int whole = code != NULL && code->co_filename != NULL && code->co_name != NULL && code->co_linetable != NULL;
        PyObject *row = Py_BuildValue("Oi", whole ? (PyObject *)code : Py_None, Frame_lasti(frame));
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_XDECREF(row);
            Py_CLEAR(rows);
            break;
        }
        Py_DECREF(row);
    }
    if (gc) {
        PyGC_Enable();
    }
    return rows;
}

/* reach_locals(ident): [(code, [(name, address), ...]), ...] of a thread, innermost first: words for a report. */
PyObject *
core_reach_locals(PyObject *Py_UNUSED(module), PyObject *ident)
{
    unsigned long number = PyLong_AsUnsignedLong(ident);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyObject *rows = PyList_New(0);
    PyThreadState *tstate = rows == NULL ? NULL : find_thread_state(number);
    int gc = PyGC_Disable();
    for (FramePtr frame = tstate == NULL ? NULL : Frame_current(tstate); rows != NULL && frame != NULL;
         frame = Frame_back(frame)) {
        PyCodeObject *code = Frame_code(frame);
        PyObject *values = PyList_New(0);
        int count = code == NULL || values == NULL || code->co_filename == NULL ? 0 : Frame_local_count(frame);
        for (int i = 0; i < count; i++) {
            PyObject *address = PyLong_FromVoidPtr(Frame_local(frame, i));
            if (address == NULL || PyList_Append(values, address) < 0) {
                Py_XDECREF(address);
                Py_CLEAR(values);
                break;
            }
            Py_DECREF(address);
        }
        PyObject *row = values == NULL ? NULL : Py_BuildValue("OO", count ? (PyObject *)code : Py_None, values);
        if (row == NULL || PyList_Append(rows, row) < 0) {
            Py_CLEAR(rows);
        }
        Py_XDECREF(values);
        Py_XDECREF(row);
    }
    if (gc) {
        PyGC_Enable();
    }
    return rows;
}

typedef struct {
    Table wanted;
    PyObject *found;
} Search;

static int
take_if_wanted(PyObject *object, void *arg)
{
    Search *self = arg;
    Py_ssize_t at = Table_get(&self->wanted, object);
    if (at > 0) {
        PyList_SET_ITEM(self->found, at - 1, Py_NewRef(object));
    }
    return 1;
}

/* reach_objects(addresses): the tracked objects at these addresses, None where there is none (any more). */
PyObject *
core_reach_objects(PyObject *Py_UNUSED(module), PyObject *addresses)
{
    if (!PyList_Check(addresses)) {
        PyErr_SetString(PyExc_TypeError, "addresses must be a list");
        return NULL;
    }
    Search self = {{NULL, NULL, 0, 0}, PyList_New(PyList_GET_SIZE(addresses))};
    int gc = PyGC_Disable();
    for (Py_ssize_t i = 0; self.found != NULL && i < PyList_GET_SIZE(addresses); i++) {
        PyObject *object = PyLong_AsVoidPtr(PyList_GET_ITEM(addresses, i));
        if (object != NULL && Table_add(&self.wanted, object, i + 1) < 0) {
            PyErr_NoMemory();
        }
        if (PyErr_Occurred()) {
            Py_CLEAR(self.found);
        }
    }
    if (self.found != NULL) {
        each_tracked(take_if_wanted, &self);
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self.found); i++) {
            if (PyList_GET_ITEM(self.found, i) == NULL) {
                PyList_SET_ITEM(self.found, i, Py_NewRef(Py_None));
            }
        }
    }
    Table_clear(&self.wanted);
    if (gc) {
        PyGC_Enable();
    }
    return self.found;
}
