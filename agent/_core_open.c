/* The line that opened a file, noted with no Python code: the C twin of `Open` and `FileMark` in hooks/files.py.
 *
 * The replacement of `open` is a builtin function like the original, made of the original's own name and text, and
 * calls the original's C function: no frame and no object of another type is in between, so warnings, tracebacks,
 * profilers and tracemalloc see what they saw before.  Builtin functions have no room for a state, so there is one for
 * the process, as there is one of everything in this core; a copy of the function that somebody kept follows it.
 *
 * A mark is the callback of the weak reference that it owns, and lies in the raw file's dictionary as `_dealloc_warn`.
 * The weak reference of a living file holds its mark, and the file's end cuts that.  Neither a mark nor a site is known
 * to the garbage collector: all that they refer to is found by other ways, too, and the dictionary of a file that holds
 * no more than its name and a mark stays invisible to the collector, as ever.
 *
 * Unlike the twin's, our marks leave `flush` alone as long as they can: only when the collector comes for a file, or
 * for a raw file that has no buffer around it to ask for `_dealloc_warn`, there is an entry `flush`.  The collector has
 * cleared the weak reference by then; but in its callback the file is still there (its finalizers come later), and in
 * no other moment is the borrowed pointer used.
 */
#include "_core.h"

#define OPEN_SITES 512 /* of the cache; what falls out is asked for again */

typedef PyObject *(*OpenCall)(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);

/* An instruction at which files are opened. */
typedef struct {
    PyObject_HEAD PyObject *code; /* owned */
    int lasti;
    char passes_on; /* the real site is the caller's */
    char is_ours;
    PyObject *record; /* owned: its SiteRecord */
    PyObject *alive;  /* owned: the record's dict */
    PyObject *opened; /* owned: the record's counter */
} OpenSite;

typedef struct {
    PyObject_HEAD vectorcallfunc call;
    OpenSite *site; /* owned */
    PyObject *hook; /* owned */
    PyObject *ref;  /* owned: weak reference to the raw file; NULL while it is made */
    PyObject *raw;  /* borrowed; NULL once the weak reference was cleared */
    int64_t since_ns;
    FramePtr frame;     /* that opened; only compared */
    FramePtr end_frame; /* in which the collection runs that came for the file; only compared */
    int end_lasti;
    char counted;
} FileMark;

/* A part of a file object: where it is kept, or how it is called. */
typedef struct {
    PyTypeObject *type; /* owned */
    PyObject *name;     /* borrowed: interned below */
    Py_ssize_t offset;  /* 0: to be asked for by name */
} Part;

static PyTypeObject *OpenSiteType, *FileMarkType;
static PyObject *s_buffer, *s_raw, *s_closefd, *s_closed, *s_finalizing, *s_flush, *s_dealloc_warn, *s_failed,
    *s_record_at, *s_record_of_none, *s_count_unclosed;

/* What stands in for `open`; kept for ever, since a copy of the function may be. */
static struct {
    OpenCall call;
    PyMethodDef method;
    PyObject *original;             /* owned */
    PyObject *function;             /* owned */
    PyObject *hook;                 /* owned; NULL: nothing is noted */
    PyObject *ignore;               /* owned or NULL */
    PyObject *flush, *dealloc_warn; /* owned: the originals */
    PyTypeObject *file;             /* owned */
    Part text, buffered[3];
    OpenSite *sites[OPEN_SITES]; /* owned */
    char asks_by_name;           /* the interpreter calls what lies in the raw file's dictionary */
} opening;

/* Give an error of ours to the hook, which counts it; -1: it is the program's, and still set. */
static int
tell_failed(PyObject *hook)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    PyObject *told = PyObject_CallMethodOneArg(hook, s_failed, error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    Py_XDECREF(told);
    if (told == NULL && !PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyErr_Clear();
    return 0;
}

/* -- sites -- */

static int
is_set(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name);
    int result = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return result;
}

/* Make the site of a record; takes the reference to the record, which may be NULL. */
static OpenSite *
OpenSite_new(PyObject *record, PyCodeObject *code, int lasti)
{
    int passes_on = record == NULL ? -1 : is_set(record, "passes_on");
    int is_ours = passes_on < 0 ? -1 : is_set(record, "ours");
    PyObject *alive = is_ours < 0 ? NULL : PyObject_GetAttrString(record, "alive");
    PyObject *opened = alive == NULL ? NULL : PyObject_GetAttrString(record, "opened");
    OpenSite *self = NULL;
    if (opened != NULL && (!PyDict_CheckExact(alive) || !PyIter_Check(opened))) {
        PyErr_SetString(PyExc_TypeError, "a record has a dict and a counter");
    }
    else if (opened != NULL) {
        self = PyObject_New(OpenSite, OpenSiteType);
    }
    if (self == NULL) {
        Py_XDECREF(record);
        Py_XDECREF(alive);
        Py_XDECREF(opened);
        return NULL;
    }
    self->code = Py_XNewRef((PyObject *)code);
    self->lasti = lasti;
    self->passes_on = (char)passes_on;
    self->is_ours = (char)is_ours;
    self->record = record;
    self->alive = alive;
    self->opened = opened;
    return self;
}

static void
OpenSite_dealloc(OpenSite *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->code);
    Py_DECREF(self->record);
    Py_DECREF(self->alive);
    Py_DECREF(self->opened);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Ask the table for an instruction's record; a new reference. */
static COLD OpenSite *
ask_site(PyObject *hook, PyCodeObject *code, int lasti, size_t slot)
{
    PyObject *number = PyLong_FromLong(lasti);
    PyObject *record =
        number == NULL ? NULL : PyObject_CallMethodObjArgs(hook, s_record_at, (PyObject *)code, number, NULL);
    Py_XDECREF(number);
    OpenSite *site = OpenSite_new(record, code, lasti);
    if (site != NULL && opening.hook == hook) { /* Python code ran: another may have come */
        OpenSite *old = opening.sites[slot];
        opening.sites[slot] = (OpenSite *)Py_NewRef((PyObject *)site);
        Py_XDECREF((PyObject *)old);
    }
    return site;
}

static OpenSite *
find_site(PyObject *hook, PyCodeObject *code, int lasti)
{
    size_t slot = (((size_t)code >> 5) ^ (size_t)lasti) % OPEN_SITES;
    OpenSite *site = opening.sites[slot];
    if (LIKELY(site != NULL && site->code == (PyObject *)code && site->lasti == lasti)) {
        return (OpenSite *)Py_NewRef((PyObject *)site);
    }
    return ask_site(hook, code, lasti, slot);
}

/* Return the site of the innermost frame that does not merely pass the opening on, and that frame; see
 * `Openings.record_of`.  A new reference; NULL with an exception set. */
static OpenSite *
find_opener(PyObject *hook, FramePtr *opener)
{
    OpenSite *innermost = NULL;
    *opener = NULL;
    for (FramePtr frame = Frame_current(Thread_state()); frame != NULL; frame = Frame_back(frame)) {
        PyCodeObject *code = Frame_code(frame);
        if (code == NULL) {
            continue;
        }
        OpenSite *site = find_site(hook, code, Frame_lasti(frame));
        if (site == NULL || site->is_ours) {
            if (site == NULL) {
                Py_CLEAR(innermost);
                return NULL;
            }
            Py_DECREF((PyObject *)site);
            break;
        }
        if (!site->passes_on) {
            Py_XDECREF((PyObject *)innermost);
            *opener = frame;
            return site;
        }
        if (innermost == NULL) {
            innermost = site;
            *opener = frame;
        }
        else {
            Py_DECREF((PyObject *)site);
        }
    }
    return innermost != NULL ? innermost : OpenSite_new(PyObject_CallMethodNoArgs(hook, s_record_of_none), NULL, 0);
}

/* -- marks -- */

static PyObject *
referent(PyObject *ref)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *object = NULL;
    if (ref != NULL && PyWeakref_GetRef(ref, &object) < 0) {
        PyErr_Clear();
    }
    return object;
#else
    PyObject *object = ref == NULL ? Py_None : PyWeakref_GET_OBJECT(ref);
    return object == Py_None ? NULL : Py_NewRef(object);
#endif
}

/* Return what an attribute says, `otherwise` if it says nothing. */
static int
flag_of(PyObject *object, PyObject *name, int otherwise)
{
    PyObject *value = PyObject_GetAttr(object, name);
    int result = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    if (result < 0) {
        PyErr_Clear();
        result = otherwise;
    }
    return result;
}

/* Return the raw file in a file, a new reference, NULL if there is none. */
static PyObject *
raw_of(PyObject *file)
{
    PyObject *inner = Py_NewRef(file);
    for (int i = 0; i < 3 && inner != NULL; i++) {
        if (PyObject_TypeCheck(inner, opening.file)) {
            return inner;
        }
        PyObject *next = PyObject_GetAttr(inner, s_buffer);
        if (next == NULL || next == Py_None) {
            PyErr_Clear();
            Py_XDECREF(next);
            next = PyObject_GetAttr(inner, s_raw);
        }
        PyErr_Clear();
        Py_SETREF(inner, next);
    }
    Py_XDECREF(inner);
    return NULL;
}

/* The weak reference was cleared: the file is gone, or the collector has come for it. */
static void
Mark_gone(FileMark *self)
{
    PyObject *raw = self->raw;
    self->raw = NULL;
    if (PyDict_DelItem(self->site->alive, (PyObject *)self) < 0) {
        PyErr_Clear();
    }
    if (raw == NULL || Py_REFCNT(raw) == 0 || self->counted || !opening.asks_by_name || is_finalizing()) {
        return;
    }
    self->end_frame = Frame_current(Thread_state());
    self->end_lasti = self->end_frame == NULL ? 0 : Frame_lasti(self->end_frame);
    if (PyObject_GenericSetAttr(raw, s_flush, (PyObject *)self) < 0) {
        PyErr_Clear();
    }
}

/* Count the file as collected unclosed; -1: an exception of the program. */
static COLD int
count_unclosed(FileMark *self, FramePtr dropped_by)
{
    int is_opener = dropped_by != NULL && dropped_by == self->frame && self->site->code != NULL &&
                    (PyObject *)Frame_code(dropped_by) == self->site->code;
    PyObject *at = PyLong_FromLong(is_opener ? Frame_lasti(dropped_by) : -1);
    self->counted = 1;
    PyObject *done =
        at == NULL ? NULL : PyObject_CallMethodObjArgs(self->hook, s_count_unclosed, (PyObject *)self, at, NULL);
    Py_XDECREF(at);
    Py_XDECREF(done);
    return done != NULL ? 0 : tell_failed(self->hook);
}

/* Called with the weak reference it is that one's callback, with another source it is `_dealloc_warn`, without `flush`.
 */
static PyObject *
mark_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    FileMark *self = (FileMark *)callable;
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    if (count > 1 || (names != NULL && PyTuple_GET_SIZE(names) > 0)) {
        PyErr_SetString(PyExc_TypeError, "takes one argument or none");
        return NULL;
    }
    if (count == 1 && args[0] == self->ref) {
        Mark_gone(self);
        Py_RETURN_NONE;
    }
    PyObject *raw = referent(self->ref);
    PyObject *result = NULL;
    if (count == 0 && raw != NULL && !flag_of(raw, s_finalizing, 0)) {
        /* Somebody closes it, or flushes it by hand; we cannot tell and need not. */
        if (PyObject_GenericSetAttr(raw, s_flush, NULL) < 0) {
            PyErr_Clear();
        }
        result = PyObject_CallOneArg(opening.flush, raw);
        Py_DECREF(raw);
        return result;
    }
    FramePtr caller = Frame_current(Thread_state());
    int collected = raw == NULL;
    int unclosed = 1;
    if (count == 1) {
        raw = raw != NULL ? raw : raw_of(args[0]);
        unclosed = raw != NULL && flag_of(raw, s_closefd, 0) && !flag_of(raw, s_closed, 1);
    }
    else if (collected) {
        unclosed = caller != NULL && caller == self->end_frame && Frame_lasti(caller) == self->end_lasti;
    }
    Py_INCREF(self);
    if (unclosed && !self->counted && !is_finalizing() && count_unclosed(self, collected ? NULL : caller) < 0) {
        result = NULL;
    }
    else if (raw == NULL) {
        result = Py_NewRef(Py_None);
    }
    else if (count == 1) {
        PyObject *both[2] = {raw, args[0]};
        result = PyObject_Vectorcall(opening.dealloc_warn, both, 2, NULL);
    }
    else {
        result = PyObject_CallOneArg(opening.flush, raw);
    }
    Py_XDECREF(raw);
    Py_DECREF(self);
    return result;
}

static void
FileMark_dealloc(FileMark *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->ref);
    Py_DECREF((PyObject *)self->site);
    Py_DECREF(self->hook);
    type->tp_free(self);
    Py_DECREF(type);
}

/* No other thread runs in between, so the file is held for no moment. */
static PyObject *
FileMark_is_open(FileMark *self, PyObject *Py_UNUSED(none))
{
    PyObject *raw = referent(self->ref);
    int is_open = raw != NULL && !flag_of(raw, s_closed, 1);
    Py_XDECREF(raw);
    return PyBool_FromLong(is_open);
}

static PyObject *
FileMark_record(FileMark *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->site->record);
}

static PyObject *
FileMark_frame_id(FileMark *self, void *Py_UNUSED(closure))
{
    return PyLong_FromVoidPtr((void *)self->frame);
}

static PyMemberDef FileMark_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(FileMark, call), READONLY, NULL},
    {"since_ns", T_LONGLONG, offsetof(FileMark, since_ns), READONLY, "Monotonic time of the opening."},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef FileMark_getset[] = {
    {"record", (getter)FileMark_record, NULL, "The SiteRecord.", NULL},
    {"frame_id", (getter)FileMark_frame_id, NULL, "What tells the frame that opened from others that run.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef FileMark_methods[] = {
    {"is_open", (PyCFunction)FileMark_is_open, METH_NOARGS, "Return whether the file is open."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot FileMark_slots[] = {
    {Py_tp_dealloc, FileMark_dealloc}, {Py_tp_call, PyVectorcall_Call},   {Py_tp_members, FileMark_members},
    {Py_tp_getset, FileMark_getset},   {Py_tp_methods, FileMark_methods}, {0, NULL},
};
static PyType_Spec FileMark_spec = {
    .name = "concagent._core.FileMark",
    .basicsize = sizeof(FileMark),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = FileMark_slots,
};
static PyType_Slot OpenSite_slots[] = {{Py_tp_dealloc, OpenSite_dealloc}, {0, NULL}};
static PyType_Spec OpenSite_spec = {
    .name = "concagent._core.OpenSite",
    .basicsize = sizeof(OpenSite),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = OpenSite_slots,
};

/* -- open -- */

/* Return a part of a file, borrowed from it; NULL: there is none. */
static PyObject *
part_of(PyObject *file, const Part *part)
{
    if (LIKELY(part->offset > 0)) {
        return *(PyObject **)((char *)file + part->offset);
    }
    PyObject *value = PyObject_GetAttr(file, part->name);
    if (value == NULL) {
        PyErr_Clear();
        return NULL;
    }
    int is_kept = Py_REFCNT(value) > 1;
    Py_DECREF(value);
    return is_kept ? value : NULL;
}

/* Return the raw file that `open` has made, borrowed; NULL if it is something else. */
static PyObject *
raw_in(PyObject *file)
{
    if (Py_TYPE(file) == opening.text.type) {
        file = part_of(file, &opening.text);
    }
    for (int i = 0; file != NULL && i < 3; i++) {
        if (Py_TYPE(file) == opening.buffered[i].type) {
            file = part_of(file, &opening.buffered[i]);
            break;
        }
    }
    return file != NULL && Py_TYPE(file) == opening.file ? file : NULL;
}

/* Return whether the file may have been told to leave its descriptor open. */
static int
may_borrow(Py_ssize_t count, PyObject *names)
{
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (name == s_closefd || PyUnicode_Compare(name, s_closefd) == 0) {
            return 1;
        }
    }
    return count > 6;
}

/* Lay a mark into a raw file; -1 with an exception set.  `is_bare`: the program has the raw file itself. */
static int
mark_file(PyObject *hook, PyObject *raw, int is_bare)
{
    FramePtr opener;
    OpenSite *site = find_opener(hook, &opener);
    FileMark *mark = site == NULL ? NULL : PyObject_New(FileMark, FileMarkType);
    if (mark == NULL) {
        Py_XDECREF((PyObject *)site);
        return -1;
    }
    mark->call = mark_call;
    mark->site = site;
    mark->hook = Py_NewRef(hook);
    mark->ref = NULL;
    mark->raw = raw;
    mark->since_ns = now_ns();
    mark->frame = opener;
    mark->end_frame = NULL;
    mark->end_lasti = 0;
    mark->counted = 0;
    mark->ref = PyWeakref_NewRef(raw, (PyObject *)mark);
    int result = mark->ref == NULL ? -1 : 0;
    if (result == 0 && opening.asks_by_name) {
        result = PyObject_GenericSetAttr(raw, s_dealloc_warn, (PyObject *)mark);
        if (result == 0 && is_bare) {
            result = PyObject_GenericSetAttr(raw, s_flush, (PyObject *)mark);
        }
    }
    if (result == 0) {
        PyObject *number = Py_TYPE(site->opened)->tp_iternext(site->opened);
        result = number == NULL ? -1 : PyDict_SetItem(site->alive, (PyObject *)mark, Py_None);
        Py_XDECREF(number);
    }
    Py_DECREF((PyObject *)mark);
    return result;
}

/* Note a file; -1: an exception of the program is set. */
static int
note(PyObject *file, Py_ssize_t count, PyObject *names)
{
    PyObject *hook = Py_NewRef(opening.hook);
    int result = 0;
    if (opening.ignore != NULL) {
        PyObject *ignore = Py_NewRef(opening.ignore);
        PyObject *answer = PyObject_CallNoArgs(ignore);
        result = answer == NULL ? -1 : PyObject_IsTrue(answer);
        Py_XDECREF(answer);
        Py_DECREF(ignore);
    }
    PyObject *raw = result != 0 ? NULL : raw_in(file);
    if (raw != NULL && (!may_borrow(count, names) || flag_of(raw, s_closefd, 0))) {
        Py_INCREF(raw);
        result = mark_file(hook, raw, raw == file);
        Py_DECREF(raw);
    }
    if (result < 0) {
        result = tell_failed(hook);
    }
    Py_DECREF(hook);
    return result;
}

static PyObject *
open_call(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *file = opening.call(module, args, count, names);
    if (LIKELY(file != NULL && opening.hook != NULL) && (tls_record == NULL || !tls_record->agent) &&
        note(file, count, names) < 0) {
        Py_CLEAR(file);
    }
    return file;
}

/* -- seen from Python -- */

/* Find out where a type keeps a part of its objects; -1 with an exception set. */
static int
Part_init(Part *self, PyObject *type, PyObject *name)
{
    PyObject *member = PyObject_GetAttr(type, name);
    if (member == NULL) {
        return -1;
    }
    self->offset = 0;
    if (Py_TYPE(member) == &PyMemberDescr_Type) {
        PyMemberDef *found = ((PyMemberDescrObject *)member)->d_member;
        if (found->type == T_OBJECT || found->type == T_OBJECT_EX) {
            self->offset = found->offset;
        }
    }
    Py_DECREF(member);
    self->name = name;
    Py_XSETREF(self->type, (PyTypeObject *)Py_NewRef(type));
    return 0;
}

static void
forget_sites(void)
{
    for (int i = 0; i < OPEN_SITES; i++) {
        Py_CLEAR(opening.sites[i]);
    }
}

/* Return the function that stands in for `open`; None where the original is not what we know. */
PyObject *
core_open_function(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *original, *file, *text, *buffered[3];
    if (!PyArg_ParseTuple(args, "OO!O!O!O!O!:open_function", &original, &PyType_Type, &file, &PyType_Type, &text,
                          &PyType_Type, &buffered[0], &PyType_Type, &buffered[1], &PyType_Type, &buffered[2])) {
        return NULL;
    }
    if (opening.original == original) {
        return Py_NewRef(opening.function);
    }
    if (!PyCFunction_CheckExact(original) || PyCFunction_GET_FLAGS(original) != (METH_FASTCALL | METH_KEYWORDS) ||
        PyCFunction_GET_SELF(original) == NULL || opening.original != NULL) {
        Py_RETURN_NONE;
    }
    PyMethodDef *method = ((PyCFunctionObject *)original)->m_ml;
    if (Part_init(&opening.text, text, s_buffer) < 0 || Part_init(&opening.buffered[0], buffered[0], s_raw) < 0 ||
        Part_init(&opening.buffered[1], buffered[1], s_raw) < 0 ||
        Part_init(&opening.buffered[2], buffered[2], s_raw) < 0) {
        return NULL;
    }
    Py_XSETREF(opening.flush, PyObject_GetAttr(file, s_flush));
    Py_XSETREF(opening.dealloc_warn, PyObject_GetAttr(file, s_dealloc_warn));
    Py_XSETREF(opening.file, (PyTypeObject *)Py_NewRef(file));
    if (opening.flush == NULL || opening.dealloc_warn == NULL) {
        return NULL;
    }
    /* Pickled by name: the module has to be the one where the name leads to us. */
    PyObject *name = PyUnicode_InternFromString("io");
    opening.method = *method;
    opening.method.ml_meth = (PyCFunction)(void (*)(void))open_call;
    opening.call = (OpenCall)(void (*)(void))method->ml_meth;
    opening.function = name == NULL ? NULL : PyCFunction_NewEx(&opening.method, PyCFunction_GET_SELF(original), name);
    Py_XDECREF(name);
    if (opening.function == NULL) {
        return NULL;
    }
    opening.original = Py_NewRef(original);
    return Py_NewRef(opening.function);
}

/* Let what `open_function` has returned note for a hook. */
PyObject *
core_record_openings(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *hook, *ignore;
    int asks_by_name;
    if (!PyArg_ParseTuple(args, "OOp:record_openings", &hook, &ignore, &asks_by_name)) {
        return NULL;
    }
    Py_CLEAR(opening.hook); /* whatever runs when the sites of the last one go, is not noted at them */
    forget_sites();
    opening.asks_by_name = (char)asks_by_name;
    Py_XSETREF(opening.ignore, ignore == Py_None ? NULL : Py_NewRef(ignore));
    Py_XSETREF(opening.hook, Py_NewRef(hook));
    Py_RETURN_NONE;
}

/* Note nothing more for a hook; another one that came since stays. */
PyObject *
core_ignore_openings(PyObject *Py_UNUSED(module), PyObject *hook)
{
    if (opening.hook == hook) {
        Py_CLEAR(opening.hook);
        Py_CLEAR(opening.ignore);
        forget_sites();
    }
    Py_RETURN_NONE;
}

/* The table of sites was emptied. */
PyObject *
core_forget_openings(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    forget_sites();
    Py_RETURN_NONE;
}

int
Open_init(PyObject *module)
{
    static const struct {
        PyObject **place;
        const char *text;
    } names[] = {
        {&s_buffer, "buffer"},
        {&s_raw, "raw"},
        {&s_closefd, "closefd"},
        {&s_closed, "closed"},
        {&s_finalizing, "_finalizing"},
        {&s_flush, "flush"},
        {&s_dealloc_warn, "_dealloc_warn"},
        {&s_failed, "failed"},
        {&s_record_at, "record_at"},
        {&s_record_of_none, "record_of_none"},
        {&s_count_unclosed, "count_unclosed"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        *names[i].place = PyUnicode_InternFromString(names[i].text);
        if (*names[i].place == NULL) {
            return -1;
        }
    }
    OpenSiteType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &OpenSite_spec, NULL);
    FileMarkType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &FileMark_spec, NULL);
    return OpenSiteType == NULL || FileMarkType == NULL ? -1 : 0;
}
