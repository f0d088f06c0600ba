/* The cell of a lock that processes share, and the board that is in use; see shared.py and board.py. */
#include "_core_board.h"

PyTypeObject *SharedCellType;
Board board;
static uint64_t nowhere[CELL_WORDS]; /* the place of a lock that is not on the board; nobody reads it */

PyObject *
core_share(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *words;
    unsigned long long start;
    if (!PyArg_ParseTuple(args, "OK", &words, &start)) {
        return NULL;
    }
    board.start = start;
    if (words != Py_None) {
        Py_buffer view; /* never given back: the board stays mapped */
        if (PyObject_GetBuffer(words, &view, PyBUF_WRITABLE) < 0) {
            return NULL;
        }
        board.words = view.buf;
        board.length = (uint64_t)view.len / sizeof(uint64_t);
    }
    Py_RETURN_NONE;
}

static PyObject *
SharedCell_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    SharedCell *self = (SharedCell *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->words = nowhere;
    }
    return (PyObject *)self;
}

static PyObject *
SharedCell_get_place(SharedCell *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->place);
}

static int
SharedCell_set_place(SharedCell *self, PyObject *value, void *Py_UNUSED(closure))
{
    uint64_t place = value == NULL ? 0 : PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred()) {
        return -1;
    }
    int fits = place != 0 && board.words != NULL && place < board.length && board.length - place >= CELL_WORDS;
    self->words = fits ? board.words + place : nowhere;
    self->bound = fits ? self->key : 0;
    self->place = place;
    return 0;
}

/* (record, code, offset, entered): the same tuple for the whole hold, since readings compare identity. */
static PyObject *
SharedCell_get_hold(SharedCell *self, void *Py_UNUSED(closure))
{
    if (!self->held) {
        Py_RETURN_NONE;
    }
    if (self->hold == NULL) {
        int gc = gc_pause(); /* a finalizer could end the hold */
        PyObject *hold = Py_BuildValue("(OOiO)", self->record, self->code != NULL ? (PyObject *)self->code : Py_None,
                                       self->lasti, self->entered ? Py_True : Py_False);
        gc_resume(gc);
        if (hold == NULL) {
            return NULL;
        }
        self->hold = hold;
    }
    return Py_NewRef(self->hold);
}

/* None: it is held by nobody here.  A tuple: by whom, where the methods are those of Python. */
static int
SharedCell_set_hold(SharedCell *self, PyObject *value, void *Py_UNUSED(closure))
{
    PyObject *record = NULL, *code = NULL;
    int lasti = 0, entered = 0, held = value != NULL && value != Py_None;
    if (held &&
        (!PyTuple_Check(value) || !PyArg_ParseTuple(value, "O!Oip", RecordType, &record, &code, &lasti, &entered))) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "a hold is (record, code, offset, entered)");
        }
        return -1;
    }
    PyObject *old_record = (PyObject *)self->record, *old_code = (PyObject *)self->code, *old_hold = self->hold;
    self->record = (Record *)Py_XNewRef(record);
    self->code = code != NULL && PyCode_Check(code) ? (PyCodeObject *)Py_NewRef(code) : NULL;
    self->hold = held ? Py_NewRef(value) : NULL;
    self->lasti = lasti;
    self->entered = (char)entered;
    self->held = (char)held;
    Py_XDECREF(old_record);
    Py_XDECREF(old_code);
    Py_XDECREF(old_hold);
    return 0;
}

static void
SharedCell_dealloc(SharedCell *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(self->record);
    Py_CLEAR(self->code);
    Py_CLEAR(self->hold);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyGetSetDef SharedCell_getset[] = {
    {"place", (getter)SharedCell_get_place, (setter)SharedCell_set_place,
     "Its cell on the board, 0 for none; set after the key.", NULL},
    {"hold", (getter)SharedCell_get_hold, (setter)SharedCell_set_hold,
     "(record, code, offset, entered) of the hold by a thread of this process, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMemberDef SharedCell_members[] = {
    {"key", T_ULONGLONG, offsetof(SharedCell, key), 0, "The lock's identity in all processes."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot SharedCell_slots[] = {
    {Py_tp_new, SharedCell_new},
    {Py_tp_dealloc, SharedCell_dealloc},
    {Py_tp_getset, SharedCell_getset},
    {Py_tp_members, SharedCell_members},
    {0, NULL},
};
static PyType_Spec SharedCell_spec = {
    .name = "concagent._core.SharedCell",
    .basicsize = sizeof(SharedCell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = SharedCell_slots,
};

int
SharedCell_init(PyObject *module)
{
    SharedCellType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &SharedCell_spec, NULL);
    return SharedCellType == NULL ? -1 : 0;
}
