/* The held stack of a thread, and the chains of lock classes in it: in which order were they taken?
 *
 * A chain is a node of a tree (parent, class), so that none can be taken for another.  The fast path finds it in the
 * record's cache (_core_hold.h) and comes here for the rest.
 */
#include "_core.h"

/* Double the held stack; it is on the heap then. */
COLD int
Record_grow(Record *self)
{
    Py_ssize_t capacity = self->held_capacity * 2;
    Lock **held = PyMem_Malloc(sizeof(Lock *) * (size_t)capacity);
    Chain **chains = PyMem_Malloc(sizeof(Chain *) * (size_t)capacity);
    if (held == NULL || chains == NULL) {
        PyMem_Free(held);
        PyMem_Free(chains);
        PyErr_NoMemory();
        return -1;
    }
    memcpy(held, self->held, sizeof(Lock *) * (size_t)self->held_count);
    memcpy(chains, self->chains, sizeof(Chain *) * (size_t)self->held_count);
    if (self->held != self->held_inline) {
        PyMem_Free(self->held);
        PyMem_Free(self->chains);
    }
    else {
        core.held_overflows++;
    }
    self->held = held;
    self->chains = chains;
    self->held_capacity = capacity;
    return 0;
}

/* Return the chain parent -> class, made if need be; NULL if the table is full.
 *
 * A chain that was found moves to the front of its siblings: of thousands of locks that are taken inside of one, few
 * are in use at a time. */
static Chain *
chain_of(Chain *parent, LockClass *cls)
{
    for (Chain **link = &parent->children; *link != NULL; link = &(*link)->sibling) {
        Chain *child = *link;
        if (child->cls == cls) {
            *link = child->sibling;
            child->sibling = parent->children;
            parent->children = child;
            return child;
        }
    }
    Chain *chain = core.chains >= (1 << 20) ? NULL : PyMem_RawCalloc(1, sizeof(Chain));
    if (chain != NULL) {
        chain->parent = parent;
        chain->cls = cls;
        chain->sibling = parent->children;
        parent->children = chain;
        core.chains++;
    }
    return chain;
}

/* Put "cls, inside of all that is held" into the order ring.  Called amid an acquisition: no Python code may run. */
static void
tell_order(Record *self, LockClass *cls, Site site, int blocking)
{
    if (PyList_GET_SIZE(core.order_ring) >= ORDER_RING) {
        core.order_dropped++;
        return;
    }
    int gc = gc_pause();
    PyObject *outer = PyTuple_New(self->held_count);
    for (Py_ssize_t i = 0; outer != NULL && i < self->held_count; i++) {
        PyObject *serial = PyLong_FromUnsignedLongLong(self->held[i]->cls->serial);
        if (serial == NULL) {
            Py_CLEAR(outer);
            break;
        }
        PyTuple_SET_ITEM(outer, i, serial);
    }
    PyObject *row = outer == NULL ? NULL
                                  : Py_BuildValue("(NKOiKi)", outer, (unsigned long long)cls->serial,
                                                  site.code != NULL ? (PyObject *)site.code : Py_None, site.lasti,
                                                  (unsigned long long)self->serial, blocking);
    if (row == NULL || PyList_Append(core.order_ring, row) < 0) {
        PyErr_Clear();
        core.order_dropped++;
    }
    Py_XDECREF(row);
    gc_resume(gc);
}

/* Return the chain of what is held and this lock; one that the order ring has not had goes there.  NULL if the table is
 * full.
 *
 * An acquisition that only tries is no order, so a chain known from trying is told again when somebody waits. */
COLD Chain *
Record_find_chain(Record *self, Chain *parent, Lock *lock, Site site, int blocking)
{
    Chain *chain = parent == NULL ? NULL : chain_of(parent, lock->cls);
    if (chain == NULL) {
        core.order_dropped++;
        return NULL;
    }
    if (core.recording && !self->agent && !chain->told && (blocking || !chain->told_tried)) {
        if (blocking) {
            chain->told = 1;
        }
        else {
            chain->told_tried = 1;
        }
        tell_order(self, lock->cls, site, blocking);
    }
    return chain;
}

/* Forget all that the threads know of chains: some that were taken while nobody listened are still to be told. */
void
Record_forget_caches(void)
{
    PyObject *key, *record;
    Py_ssize_t at = 0;
    while (PyDict_Next(core.records, &at, &key, &record)) {
        memset(((Record *)record)->cache, 0, sizeof((Record *)record)->cache);
    }
}

/* Make the chains anew from `from` on.  An order that comes about by releasing out of turn is not told: the locks were
 * taken in another one, which was told then. */
static void
rechain(Record *self, Py_ssize_t from)
{
    for (Py_ssize_t i = from; i < self->held_count; i++) {
        LockClass *cls = self->held[i]->cls;
        self->chains[i] = i == 0 ? &cls->root : self->chains[i - 1] == NULL ? NULL : chain_of(self->chains[i - 1], cls);
    }
}

/* Take a lock out of the held stack: the last one nearly always, any other in hand-over-hand code. */
COLD void
Record_remove(Record *self, Lock *lock)
{
    for (Py_ssize_t i = self->held_count - 1; i >= 0; i--) {
        if (self->held[i] == lock) {
            memmove(&self->held[i], &self->held[i + 1], sizeof(Lock *) * (size_t)(self->held_count - i - 1));
            self->held_count--;
            rechain(self, i);
            break;
        }
    }
    if (UNLIKELY(self->ended)) {
        Record_forget_if_empty(self);
    }
}
