/* One look at the heap: who refers to these objects, and which of their references nobody can explain.
 *
 * The twin of _pyreach.py; the argument is in reach.py.  All of it happens with the GIL held and without running Python
 * code, so the counts of one call belong to one moment.  Addresses that were found in an earlier look are numbers: only
 * what this look has come across (or what the caller keeps alive) is read.
 */
#include "_core_reach.h"

/* ------------------------------------------------------------------------------------------------ tables */

/* Return the value that is there, 0 if the given one was put in, -1 without memory. */
Py_ssize_t
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

void
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

void
Look_add_edge(Look *self, PyObject *source, Node *node, int kind)
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

/* ------------------------------------------------------------------------------------------------ question, answer */

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
        Look_into(self, PyList_GET_ITEM(own, i));
    }
    Look_into(self, own);
    Look_into(self, args);
    if (Table_add(&self->mine, own, 1) < 0 || Table_add(&self->mine, args, 1) < 0) {
        PyErr_NoMemory();
        goto done;
    }
    self->explaining = 0;
    self->look_deep = deep;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(threads); i++) {
        if (Look_explain_thread(self, PyList_GET_ITEM(threads, i), args) < 0) {
            goto done;
        }
    }
    Look_at_heap(self);
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
