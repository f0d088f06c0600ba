/* Lock classes (locks made by one line) and cells (what reports refer to when they mean a lock).
 *
 * Classes are never freed: locks, chains and records point to them without counting.  Their number is bounded by
 * core.class_limit; what comes after is counted as one class of an unknown site.
 */
#include "_core.h"

static const uint64_t bucket_bounds[BUCKETS - 1] = {
    10000, 100000, 1000000, 10000000, 100000000, 1000000000, 10000000000ULL, 60000000000ULL,
};

void
count_bucket(uint64_t *buckets, uint64_t ns)
{
    int i = 0;
    while (i < BUCKETS - 1 && ns > bucket_bounds[i]) {
        i++;
    }
    buckets[i]++;
}

COLD int
Code_ask_transparent(PyCodeObject *code, size_t slot)
{
    int known = PySet_Contains(core.transparent, code->co_filename);
    if (known < 0) {
        PyErr_Clear();
        return 0;
    }
    PyCodeObject *old = core.transparent_cache[slot].code;
    Py_INCREF(code);
    core.transparent_cache[slot].code = code;
    core.transparent_cache[slot].is_transparent = (char)known;
    Py_XDECREF(old);
    return known;
}

/* The caller is the creator of what `threading` makes, and of defaults made by a dataclass's __init__. */
static int
is_skipped_at_creation(PyCodeObject *code)
{
    return Code_is_transparent(code) ||
           (PyUnicode_GET_LENGTH(code->co_filename) == 8 && /* "<string>": most names end the question here */
            PyUnicode_CompareWithASCIIString(code->co_filename, "<string>") == 0 &&
            PyUnicode_CompareWithASCIIString(code->co_name, "__init__") == 0);
}

static LockClass *
new_class(int kind, PyCodeObject *code, int lasti)
{
    LockClass *cls = (LockClass *)ClassType->tp_alloc(ClassType, 0);
    if (cls != NULL) {
        cls->serial = ++core.class_serial;
        cls->kind = kind;
        cls->code = Py_XNewRef((PyObject *)code);
        cls->lasti = lasti;
        cls->root.cls = cls;
    }
    return cls;
}

/* A site seen for the first time: two calls on one line are one class. */
static COLD LockClass *
class_of_new_site(PyObject *key, int kind, PyCodeObject *code, int lasti)
{
    PyObject *line = NULL;
    LockClass *cls = NULL;
    if (PyDict_GET_SIZE(core.classes) >= core.class_limit) {
        code = NULL;
        lasti = 0;
    }
    line = code != NULL ? Py_BuildValue("(iOi)", kind, code->co_filename, PyCode_Addr2Line(code, lasti))
                        : Py_BuildValue("(iOi)", kind, Py_None, 0);
    if (line == NULL) {
        return NULL;
    }
    cls = (LockClass *)PyDict_GetItemWithError(core.lines, line);
    if (cls == NULL && !PyErr_Occurred()) {
        cls = new_class(kind, code, lasti);
        if (cls == NULL || PyDict_SetItem(core.lines, line, (PyObject *)cls) < 0) {
            Py_CLEAR(cls);
        }
        else {
            Py_DECREF(cls); /* the table keeps it, for ever */
        }
    }
    if (cls != NULL && code != NULL && PyDict_SetItem(core.classes, key, (PyObject *)cls) < 0) {
        cls = NULL;
    }
    Py_DECREF(line);
    return cls;
}

/* The class of a site that the cache does not know; a borrowed reference, NULL with an exception.
 *
 * The table is keyed by the code object's identity: by value it would be hashed over its whole bytecode.  So a code
 * object whose address is a key is never freed; *is_stable says whether it is one. */
static COLD LockClass *
class_of_site(int kind, PyCodeObject *code, int lasti, int *is_stable)
{
    PyObject *key = Py_BuildValue("(ini)", kind, (Py_ssize_t)(intptr_t)code, lasti);
    if (key == NULL) {
        return NULL;
    }
    LockClass *cls = (LockClass *)PyDict_GetItemWithError(core.classes, key);
    *is_stable = cls != NULL;
    if (cls == NULL && !PyErr_Occurred()) {
        Py_ssize_t known = PyDict_GET_SIZE(core.classes);
        cls = class_of_new_site(key, kind, code, lasti);
        if (PyDict_GET_SIZE(core.classes) > known) {
            Py_XINCREF(code);
            *is_stable = 1;
        }
    }
    Py_DECREF(key);
    return cls;
}

/* Return the class of the line that makes a lock in this frame; a borrowed reference, NULL with an exception. */
LockClass *
LockClass_of_site(int kind, FramePtr frame)
{
    FramePtr at = frame;
    while (at != NULL && (Frame_code(at) == NULL || is_skipped_at_creation(Frame_code(at)))) {
        at = Frame_back(at);
    }
    if (at == NULL) {
        at = frame;
    }
    PyCodeObject *code = at != NULL ? Frame_code(at) : NULL;
    int lasti = code != NULL ? Frame_lasti(at) : 0;
    size_t slot = (((size_t)code >> 5) ^ (size_t)lasti ^ (size_t)kind) % SITE_SLOTS;
    if (LIKELY(core.sites[slot].code == code && core.sites[slot].lasti == lasti && core.sites[slot].cls != NULL &&
               core.sites[slot].cls->kind == kind)) {
        return core.sites[slot].cls;
    }
    int is_stable = 0;
    LockClass *cls = class_of_site(kind, code, lasti, &is_stable);
    if (cls != NULL && is_stable) {
        core.sites[slot].code = code;
        core.sites[slot].lasti = lasti;
        core.sites[slot].cls = cls;
    }
    return cls;
}

static PyObject *
LockClass_get(LockClass *self, void *closure)
{
    switch ((int)(intptr_t)closure) {
    case 0:
        return PyLong_FromUnsignedLongLong(self->serial);
    case 1:
        return PyUnicode_FromString(self->kind == KIND_RLOCK ? "rlock" : "lock");
    case 2:
        return PyLong_FromLong(self->lasti);
    case 3:
        return Py_NewRef(self->code != NULL ? self->code : Py_None);
    case 4:
        return PyBool_FromLong(self->is_signal);
    case 5:
        return PyLong_FromUnsignedLongLong(self->alive);
    case 6:
        return Py_NewRef(self->name != NULL ? self->name : Py_None);
    default:
        return PyLong_FromUnsignedLongLong(self->acquisitions);
    }
}

static int
LockClass_set_signal(LockClass *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "signal cannot be deleted");
        return -1;
    }
    int truth = PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    self->is_signal = (char)truth;
    return 0;
}

static PyGetSetDef LockClass_getset[] = {
    {"serial", (getter)LockClass_get, NULL, NULL, (void *)0},
    {"kind", (getter)LockClass_get, NULL, "`lock` or `rlock`.", (void *)1},
    {"lasti", (getter)LockClass_get, NULL, NULL, (void *)2},
    {"code", (getter)LockClass_get, NULL, NULL, (void *)3},
    {"signal", (getter)LockClass_get, (setter)LockClass_set_signal, "Set once by a foreign release.", (void *)4},
    {"alive", (getter)LockClass_get, NULL, "Locks of this class that exist.", (void *)5},
    {"name", (getter)LockClass_get, NULL, "The name last given to one of them, or None.", (void *)6},
    {"acquisitions", (getter)LockClass_get, NULL, NULL, (void *)7},
    {NULL, NULL, NULL, NULL, NULL},
};

static void
LockClass_dealloc(LockClass *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(self->code);
    Py_CLEAR(self->name);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot LockClass_slots[] = {
    {Py_tp_dealloc, LockClass_dealloc},
    {Py_tp_getset, LockClass_getset},
    {0, NULL},
};
PyType_Spec LockClass_spec = {
    .name = "concagent._core.LockClass",
    .basicsize = sizeof(LockClass),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = LockClass_slots,
};

/* -- cells -- */

/* Return the lock's cell, made on first need; a borrowed reference, NULL with an exception. */
LockCell *
Lock_cell(Lock *self)
{
    if (self->cell == NULL) {
        LockCell *cell = (LockCell *)CellType->tp_alloc(CellType, 0);
        if (cell == NULL) {
            return NULL;
        }
        cell->lock = self;
        cell->cls = self->cls;
        cell->serial = self->serial;
        cell->hold_generation = self->generation - 1;
        self->cell = cell;
    }
    return self->cell;
}

/* Return (record, code or None, offset, entered) of the present hold, None if there is none; a new reference.  One
 * tuple for the whole hold, since readings compare identity. */
PyObject *
LockCell_hold(LockCell *self)
{
    Lock *lock = self->lock;
    if (lock == NULL || lock->holder == NULL) {
        Py_RETURN_NONE;
    }
    if (self->hold == NULL || self->hold_generation != lock->generation) {
        int gc = gc_pause(); /* a finalizer could free the lock, or end the hold */
        PyObject *hold = Py_BuildValue("(OOiO)", lock->holder, lock->code != NULL ? (PyObject *)lock->code : Py_None,
                                       lock->lasti, lock->entered ? Py_True : Py_False);
        gc_resume(gc);
        if (hold == NULL) {
            return NULL;
        }
        PyObject *old = self->hold;
        self->hold = Py_NewRef(hold);
        self->hold_generation = lock->generation;
        Py_XDECREF(old);
        return hold;
    }
    return Py_NewRef(self->hold);
}

void
LockCell_lock_gone(LockCell *self)
{
    self->lock = NULL;
    Py_CLEAR(self->hold);
}

static PyObject *
LockCell_get_hold(LockCell *self, void *Py_UNUSED(closure))
{
    return LockCell_hold(self);
}

PyObject *
LockCell_hold_seen_by(LockCell *self, PyObject *Py_UNUSED(wait))
{
    if (self->cls->is_signal) {
        Py_RETURN_NONE;
    }
    return LockCell_hold(self);
}

static PyObject *
LockCell_get(LockCell *self, void *closure)
{
    Lock *lock = self->lock;
    switch ((int)(intptr_t)closure) {
    case 0:
        return PyLong_FromUnsignedLongLong(self->serial);
    case 1:
        return PyUnicode_FromString(self->cls->kind == KIND_RLOCK ? "rlock" : "lock");
    case 2:
        return Py_NewRef((PyObject *)self->cls);
    case 3:
        return PyLong_FromUnsignedLong(lock == NULL || lock->locked != LOCKED ? 0 : lock->depth);
    case 4:
        return PyLong_FromLongLong(lock == NULL ? 0 : lock->since_ns);
    case 5:
        return PyBool_FromLong(lock != NULL && lock->waiters != NULL);
    case 7:
        return PyBool_FromLong(lock != NULL);
    default:
        return Py_NewRef(self->name != NULL ? self->name : Py_None);
    }
}

static int
LockCell_set_name(LockCell *self, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL || !(value == Py_None || PyUnicode_Check(value))) {
        PyErr_SetString(PyExc_TypeError, "the name of a lock is a str or None");
        return -1;
    }
    Py_XSETREF(self->name, value == Py_None ? NULL : Py_NewRef(value));
    Py_XSETREF(self->cls->name, value == Py_None ? NULL : Py_NewRef(value));
    return 0;
}

static PyGetSetDef LockCell_getset[] = {
    {"serial", (getter)LockCell_get, NULL, NULL, (void *)0},
    {"kind", (getter)LockCell_get, NULL, "`lock` or `rlock`.", (void *)1},
    {"cls", (getter)LockCell_get, NULL, "The lock's class.", (void *)2},
    {"depth", (getter)LockCell_get, NULL, "Re-entries of an RLock.", (void *)3},
    {"since_ns", (getter)LockCell_get, NULL, "When the present hold began; to a second where it was not timed.",
     (void *)4},
    {"alive", (getter)LockCell_get, NULL, "Whether the lock exists.", (void *)7},
    {"waited_for", (getter)LockCell_get, NULL, "Whether anybody waits.", (void *)5},
    {"name", (getter)LockCell_get, (setter)LockCell_set_name, "The name given, or None.", (void *)6},
    {"hold", (getter)LockCell_get_hold, NULL, "(record, code, offset, entered) of the present hold, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef LockCell_methods[] = {
    {"hold_seen_by", (PyCFunction)LockCell_hold_seen_by, METH_O, "Return the hold that a waiter waits for, or None."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef LockCell_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(LockCell, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static void
LockCell_dealloc(LockCell *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    Py_CLEAR(self->name);
    Py_CLEAR(self->hold);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot LockCell_slots[] = {
    {Py_tp_dealloc, LockCell_dealloc},
    {Py_tp_getset, LockCell_getset},
    {Py_tp_methods, LockCell_methods},
    {Py_tp_members, LockCell_members},
    {0, NULL},
};
PyType_Spec LockCell_spec = {
    .name = "concagent._core.LockCell",
    .basicsize = sizeof(LockCell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = LockCell_slots,
};
