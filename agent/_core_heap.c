/* The objects that the collector knows, and what each refers to.
 *
 * No object is made and no Python code run, or the lists that are walked would change.  What the collector does not
 * know is looked into where it is met.
 */
#include "_core_reach.h"

#if PY_VERSION_HEX < 0x030C0000
#  define Py_BUILD_CORE 1
#  undef _PyGC_FINALIZED /* pycore_gc.h has its own */
#  include "internal/pycore_gc.h"
#  include "internal/pycore_interp.h"
#  undef Py_BUILD_CORE
#endif

#define CLOCK_EVERY 1024

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
        Look_add_edge(self, self->source, node, KEEPS);
    }
    else if (node->last_source != self->source) {
        node->last_source = self->source;
        Look_add_edge(self, self->source, node, STRONG);
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

void
Look_into(Look *self, PyObject *object)
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
    Look_into(self, object);
    self->source_ignored = 0;
#if PY_VERSION_HEX >= 0x030E0000
    uncount_borrowed(self, object);
#endif
    while (self->todo_count > 0 && !self->failed) {
        PyObject *inner = self->todo[--self->todo_count];
        if (Table_get(&self->mine, inner) == 0) {
            self->source_ignored = self->pass_count > 0 && Table_get(&self->ignored, inner) > 0;
            Look_into(self, inner);
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
void
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
                Look_add_edge(self, (PyObject *)one, node, WEAK);
            }
        }
    }
}

/* Look at everything that the collector knows. */
void
Look_at_heap(Look *self)
{
    each_tracked(look_at, self);
#if PY_VERSION_HEX < 0x030B0000
    explain_hidden(self);
#endif
    look_at_weak_references(self);
}
