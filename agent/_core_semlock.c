/* The fast half of multiprocessing's lock: taken and given back when nobody is in the way.
 *
 * The type is made by hooks/semlock.py, derived from the original, which keeps the semaphore, its name and its end; the
 * methods here are put into it.  They do what the original's do, on the same semaphore and the same counters (last_tid,
 * count), and note who holds it: in the cell of this process, and on the board that all processes see.  Whatever is
 * unusual, and whoever has to wait, goes on through Python and the original.
 *
 * What is written on the board, and in which order, is in _core_board.h.
 *
 * Assumes    the original's fields lie as in CPython 3.10 to 3.15; their offsets are compared, and where they differ
 * the methods of Python stay.
 */
#include "_core_board.h"

#if defined(__linux__)
#  include <errno.h>
#  include <semaphore.h>

#  define RECURSIVE 0
#  define LIBRARY UINT32_MAX /* a site that counts as its caller's */

/* The original's object. */
typedef struct {
    PyObject_HEAD sem_t *handle;
    unsigned long last_tid;
    int count;
    int maxvalue;
    int kind;
    char *name;
} SemLock;

static struct {
    Py_ssize_t cell_offset;
    PyTypeObject *type;      /* owned, as what follows */
    PyTypeObject *cell_type; /* exactly this one has the fields */
    PyObject *plain_acquire; /* the original's methods */
    PyObject *plain_release;
    PyObject *wait;    /* (lock, cell, timeout) -> taken */
    PyObject *drop;    /* (cell): given back by somebody who does not hold it */
    PyObject *resolve; /* (code, offset, entered) -> number of the site, -1 for the library's own code */
    PyObject *moved;   /* (cell): its place on the board was given to another lock */
    PyObject *noted;   /* (cell): who waited for it has signed */
    PyObject *enter_name;
    struct {
        PyCodeObject *code; /* owned */
        uint32_t at;        /* the offset, and whether the lock is entered */
        uint32_t site;
    } sites[SITE_SLOTS];
} shared;

/* -- where -- */

static COLD uint32_t
ask_site(PyCodeObject *code, int lasti, int entered, size_t slot)
{
    if (shared.resolve == NULL || is_finalizing()) {
        return 0;
    }
    PyObject *answer =
        PyObject_CallFunction(shared.resolve, "OiO", (PyObject *)code, lasti, entered ? Py_True : Py_False);
    long number = answer == NULL ? 0 : PyLong_AsLong(answer);
    Py_XDECREF(answer);
    if (PyErr_Occurred()) {
        swallow_error();
        return 0;
    }
    PyCodeObject *old = shared.sites[slot].code;
    shared.sites[slot].code = (PyCodeObject *)Py_NewRef((PyObject *)code);
    shared.sites[slot].at = (uint32_t)lasti << 1 | (uint32_t)entered;
    shared.sites[slot].site = number < 0 ? LIBRARY : (uint32_t)number;
    Py_XDECREF(old);
    return number < 0 ? LIBRARY : (uint32_t)number;
}

static inline uint32_t
find_site(PyCodeObject *code, int lasti, int entered)
{
    uint32_t at = (uint32_t)lasti << 1 | (uint32_t)entered;
    size_t slot = ((size_t)code >> 5 ^ at) % SITE_SLOTS;
    if (LIKELY(shared.sites[slot].code == code && shared.sites[slot].at == at)) {
        return shared.sites[slot].site;
    }
    return ask_site(code, lasti, entered, slot);
}

/* The program's line, behind the library's functions.  May run Python code. */
static inline Where
find_where(int entered)
{
    Where where = {NULL, 0, entered, 0};
    FramePtr frame = Frame_current(Thread_state());
    while (LIKELY(frame != NULL)) {
        PyCodeObject *code = Frame_code(frame);
        if (UNLIKELY(code == NULL)) {
            break;
        }
        int lasti = Frame_lasti(frame);
        uint32_t site = find_site(code, lasti, where.entered);
        FramePtr back = UNLIKELY(site == 0) ? NULL : Frame_back(frame);
        if (LIKELY(site != LIBRARY) || back == NULL) {
            where.code = code;
            where.lasti = lasti;
            where.site = site == LIBRARY ? 0 : site;
            break;
        }
        where.entered = code->co_name == shared.enter_name;
        frame = back;
    }
    return where;
}

/* -- the methods -- */

static inline SharedCell *
cell_of(SemLock *self)
{
    PyObject *cell = *(PyObject **)((char *)self + shared.cell_offset);
    return LIKELY(cell != NULL && Py_TYPE(cell) == shared.cell_type) ? (SharedCell *)cell : NULL;
}

static inline int
is_mine(SemLock *self)
{
    return self->count > 0 && self->last_tid == PyThread_get_thread_ident();
}

static COLD PyObject *
acquire_plainly(SemLock *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    PyObject *all[8];
    if (count + named > 7) {
        PyErr_SetString(PyExc_TypeError, "acquire() takes at most 2 arguments");
        return NULL;
    }
    all[0] = (PyObject *)self;
    for (Py_ssize_t i = 0; i < count + named; i++) {
        all[i + 1] = args[i];
    }
    return PyObject_Vectorcall(shared.plain_acquire, all, (size_t)count + 1, names);
}

/* Whoever has to wait does so in Python; what comes back is whether he has the lock. */
static COLD int
wait_for(SemLock *self, SharedCell *cell, PyObject *timeout)
{
    PyObject *kept = Py_NewRef((PyObject *)cell); /* over what runs meanwhile */
    PyObject *answer = PyObject_CallFunctionObjArgs(shared.wait, (PyObject *)self, kept, timeout, NULL);
    int got = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    Py_DECREF(kept);
    return got;
}

static COLD void
tell(PyObject *function, SharedCell *cell)
{
    if (function != NULL && !is_finalizing()) {
        Py_XDECREF(PyObject_CallOneArg(function, (PyObject *)cell));
        swallow_error();
    }
}

/* Take it; `timeout` is None for ever: 1 taken, 0 not, -1 exception. */
static inline int
acquire(SemLock *self, SharedCell *cell, int block, PyObject *timeout, int entered)
{
    if (self->kind == RECURSIVE && is_mine(self)) {
        ++self->count;
        return 1;
    }
    int waited = 0;
    int noted = self->maxvalue == 1; /* else a semaphore: anybody may post it */
    Where where = {NULL, 0, entered, 0};
    Record *record = NULL;
    if (LIKELY(noted)) {
        record = current_record();
        if (UNLIKELY(record == NULL)) {
            swallow_error();
            noted = 0;
        }
        else {
            where = find_where(entered); /* before the lock is ours: Python code may run */
            if (UNLIKELY(cell->words[KEY] != cell->bound)) {
                tell(shared.moved, cell);
            }
            say_trying(cell, record);
        }
    }
    if (UNLIKELY(sem_trywait(self->handle) < 0)) {
        if (noted) {
            say_done(cell, record);
        }
        if (!block) {
            return 0;
        }
        int got = wait_for(self, cell, timeout); /* counts through the original */
        if (got <= 0) {
            return got;
        }
        waited = 1;
    }
    else {
        ++self->count;
        unsigned long ident = LIKELY(record != NULL) ? record->ident : PyThread_get_thread_ident();
        if (self->last_tid != ident) {
            self->last_tid = ident;
        }
    }
    if (LIKELY(noted)) {
        took(cell, record, where);
        if (UNLIKELY(waited)) {
            tell(shared.noted, cell);
        }
    }
    return 1;
}

/* The arguments that programs give: 1; others: 0; they are the original's. */
static inline int
parse(PyObject *const *args, Py_ssize_t count, PyObject *names, int *block, PyObject **timeout)
{
    PyObject *given = count > 0 ? args[0] : NULL, *limit = count > 1 ? args[1] : NULL;
    if (count > 2) {
        return 0;
    }
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (limit == NULL && PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            limit = args[count + i];
        }
        else if (given == NULL && PyUnicode_CompareWithASCIIString(name, "block") == 0) {
            given = args[count + i];
        }
        else {
            return 0;
        }
    }
    if (given != NULL && given != Py_True && given != Py_False) {
        if (!PyLong_CheckExact(given)) {
            return 0;
        }
        *block = PyObject_IsTrue(given);
    }
    else {
        *block = given != Py_False;
    }
    *timeout = limit == NULL ? Py_None : limit;
    if (*timeout == Py_None || PyFloat_CheckExact(*timeout)) {
        return 1;
    }
    int overflow = 1;
    if (PyLong_CheckExact(*timeout)) {
        PyLong_AsLongAndOverflow(*timeout, &overflow);
    }
    return !overflow;
}

static PyObject *
SemLock_acquire(SemLock *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    int block = 1;
    PyObject *timeout = Py_None;
    SharedCell *cell = cell_of(self);
    if (UNLIKELY(cell == NULL || !core.recording) ||
        (UNLIKELY(count > 0 || names != NULL) && !parse(args, count, names, &block, &timeout))) {
        return acquire_plainly(self, args, count, names);
    }
    int got = acquire(self, cell, block, timeout, 0);
    return UNLIKELY(got < 0) ? NULL : Py_NewRef(LIKELY(got) ? Py_True : Py_False);
}

static PyObject *
SemLock_enter(SemLock *self, PyObject *Py_UNUSED(none))
{
    SharedCell *cell = cell_of(self);
    if (UNLIKELY(cell == NULL || !core.recording)) {
        return acquire_plainly(self, NULL, 0, NULL);
    }
    int got = acquire(self, cell, 1, Py_None, 1);
    return UNLIKELY(got < 0) ? NULL : Py_NewRef(LIKELY(got) ? Py_True : Py_False);
}

static inline int
is_free(SemLock *self)
{
#  if defined(__GLIBC__) && __SIZEOF_POINTER__ == 8 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    /* The permits are the low half of the first word, which processes with different C libraries share. */
    if (LIKELY(__atomic_load_n((uint32_t *)(void *)self->handle, __ATOMIC_RELAXED) == 0)) {
        return 0;
    }
#  endif
    int value;
    return sem_getvalue(self->handle, &value) == 0 && value >= self->maxvalue;
}

/* Everything but the last release of a lock by its holder. */
static COLD PyObject *
release_oddly(SemLock *self, SharedCell *cell)
{
    if (cell != NULL && self->maxvalue == 1) {
        int drops = self->kind == RECURSIVE ? self->count == 1 && is_mine(self) : cell->held || !is_free(self);
        if (drops) {
            tell(shared.drop, cell);
        }
    }
    return PyObject_CallOneArg(shared.plain_release, (PyObject *)self);
}

static PyObject *
SemLock_release(SemLock *self, PyObject *Py_UNUSED(none))
{
    SharedCell *cell = cell_of(self);
    if (UNLIKELY(cell == NULL)) {
        return release_oddly(self, cell);
    }
    if (LIKELY(self->maxvalue == 1)) {
        if (UNLIKELY(!cell->held || cell->record != tls_record)) {
            return release_oddly(self, cell);
        }
        if (self->kind == RECURSIVE) {
            if (!is_mine(self)) {
                return release_oddly(self, cell);
            }
            if (self->count > 1) {
                --self->count;
                Py_RETURN_NONE;
            }
        }
        else if (UNLIKELY(is_free(self))) { /* given back by somebody else meanwhile: an error */
            return release_oddly(self, cell);
        }
        let_go(cell);
    }
    else if (is_free(self)) {
        return release_oddly(self, cell);
    }
    if (UNLIKELY(sem_post(self->handle) < 0)) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    --self->count;
    if (LIKELY(self->maxvalue == 1)) {
        say_done(cell, cell->record);
    }
    Py_RETURN_NONE;
}

static PyObject *
SemLock_exit(SemLock *self, PyObject *const *Py_UNUSED(args), Py_ssize_t count)
{
    if (count > 3) {
        return PyErr_Format(PyExc_TypeError, "__exit__ expected at most 3 arguments, got %zd", count);
    }
    return SemLock_release(self, NULL);
}

static PyMethodDef SemLock_methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))SemLock_acquire, METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, /, block=True, timeout=None)\n--\n\nAcquire the semaphore/lock."},
    {"release", (PyCFunction)SemLock_release, METH_NOARGS, "release($self, /)\n--\n\nRelease the semaphore/lock."},
    {"__enter__", (PyCFunction)SemLock_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nEnter the semaphore/lock."},
    {"__exit__", (PyCFunction)(void (*)(void))SemLock_exit, METH_FASTCALL,
     "__exit__($self, exc_type=None, exc_value=None, exc_tb=None, /)\n--\n\nExit the semaphore/lock."},
    {NULL, NULL, 0, NULL},
};

/* -- set-up -- */

static Py_ssize_t
offset_of(PyObject *type, const char *name)
{
    PyObject *member = PyObject_GetAttrString(type, name);
    Py_ssize_t offset = -1;
    if (member != NULL && Py_IS_TYPE(member, &PyMemberDescr_Type)) {
        offset = ((PyMemberDescrObject *)member)->d_member->offset;
    }
    Py_XDECREF(member);
    PyErr_Clear();
    return offset;
}

/* The four that can be asked leave room for the other two in one way only. */
static int
has_known_layout(PyObject *original)
{
    return offset_of(original, "handle") == offsetof(SemLock, handle) &&
           offset_of(original, "maxvalue") == offsetof(SemLock, maxvalue) &&
           offset_of(original, "kind") == offsetof(SemLock, kind) &&
           offset_of(original, "name") == offsetof(SemLock, name) &&
           ((PyTypeObject *)original)->tp_basicsize == sizeof(SemLock);
}

PyObject *
core_hasten_semlock(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *type, *original, *cell_type, *wait, *drop, *resolve, *moved, *noted;
    if (!PyArg_ParseTuple(args, "O!O!O!OOOOO", &PyType_Type, &type, &PyType_Type, &original, &PyType_Type, &cell_type,
                          &wait, &drop, &resolve, &moved, &noted)) {
        return NULL;
    }
    Py_ssize_t cell_offset = offset_of(type, "cell");
    if (!has_known_layout(original) || cell_offset < (Py_ssize_t)sizeof(SemLock) ||
        !PyType_IsSubtype((PyTypeObject *)type, (PyTypeObject *)original) ||
        !PyType_IsSubtype((PyTypeObject *)cell_type, SharedCellType)) {
        Py_RETURN_FALSE;
    }
    PyObject *plain_acquire = PyObject_GetAttrString(original, "acquire");
    PyObject *plain_release = plain_acquire == NULL ? NULL : PyObject_GetAttrString(original, "release");
    if (plain_release == NULL ||
        (shared.enter_name == NULL && (shared.enter_name = PyUnicode_InternFromString("__enter__")) == NULL)) {
        Py_XDECREF(plain_acquire);
        Py_XDECREF(plain_release);
        return NULL;
    }
    for (PyMethodDef *each = SemLock_methods; each->ml_name != NULL; each++) {
        PyObject *method = PyDescr_NewMethod((PyTypeObject *)type, each);
        if (method == NULL || PyObject_SetAttrString(type, each->ml_name, method) < 0) {
            Py_XDECREF(method);
            Py_DECREF(plain_acquire);
            Py_DECREF(plain_release);
            return NULL;
        }
        Py_DECREF(method);
    }
    shared.cell_offset = cell_offset;
    Py_XSETREF(shared.plain_acquire, plain_acquire);
    Py_XSETREF(shared.plain_release, plain_release);
    Py_XSETREF(shared.cell_type, (PyTypeObject *)Py_NewRef(cell_type));
    Py_XSETREF(shared.wait, Py_NewRef(wait));
    Py_XSETREF(shared.drop, Py_NewRef(drop));
    Py_XSETREF(shared.resolve, Py_NewRef(resolve));
    Py_XSETREF(shared.moved, Py_NewRef(moved));
    Py_XSETREF(shared.noted, Py_NewRef(noted));
    Py_RETURN_TRUE;
}

#else

PyObject *
core_hasten_semlock(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    Py_RETURN_FALSE;
}

#endif
