/* Where the caller is, read without making a frame object.
 *
 * CPython has no public call for "code object and instruction offset of the running Python function" that is cheap
 * enough for a lock (PyThreadState_GetFrame allocates).  So this header, and nothing else in the project, knows how
 * each version keeps its frames; an unknown version does not compile, and the Python core is used there.
 *
 *   3.10        tstate->frame, a PyFrameObject
 *   3.11, 3.12  tstate->cframe->current_frame, an _PyInterpreterFrame
 *   3.13        tstate->current_frame; the code is f_executable
 *   3.14, 3.15  the same, f_executable is a tagged reference
 *
 * Frames that the interpreter makes for itself (entry shims) have no Python code and are skipped.
 */
#ifndef CONCAGENT_CORE_FRAME_H
#define CONCAGENT_CORE_FRAME_H

#ifdef PYPY_VERSION
#  error "the C core knows CPython only; the Python core is used elsewhere"
#endif
#ifdef Py_GIL_DISABLED
#  error "the C core relies on the GIL; free-threaded builds use the Python core"
#endif
#if PY_VERSION_HEX < 0x030A0000 || PY_VERSION_HEX >= 0x03100000
#  error "the C core knows the frames of CPython 3.10 to 3.15; other versions use the Python core"
#endif

#if PY_VERSION_HEX < 0x030B0000
#  include <frameobject.h>
#else
/* These headers are CPython's own and not written for -Wextra. */
#  if defined(__GNUC__)
#    pragma GCC diagnostic push
#    pragma GCC diagnostic ignored "-Wextra"
#    pragma GCC diagnostic ignored "-Wunused-parameter"
#    pragma GCC diagnostic ignored "-Wsign-compare"
#    pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#    pragma GCC diagnostic ignored "-Wcast-function-type"
#  endif
#  define Py_BUILD_CORE 1
#  if PY_VERSION_HEX >= 0x030E0000
#    include "internal/pycore_frame.h"
#    include "internal/pycore_interpframe.h"
#    include "internal/pycore_interpframe_structs.h"
#  else
#    include "internal/pycore_frame.h"
#  endif
#  undef Py_BUILD_CORE
#  if defined(__GNUC__)
#    pragma GCC diagnostic pop
#  endif
#endif

/* The calling thread's state.  Not kept in the record: a native thread that calls into Python now and again has a new
 * state each time, and the old one is freed memory. */
static inline PyThreadState *
Thread_state(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

typedef struct {
    PyCodeObject *code; /* borrowed: the frame keeps it; NULL where no Python function runs */
    int lasti;          /* byte offset, as frame.f_lasti */
    uint64_t below;     /* a mark of what is below: the calling function and the depth of the stack */
} Site;

#if PY_VERSION_HEX < 0x030B0000

typedef PyFrameObject *FramePtr;

static inline FramePtr
Frame_current(PyThreadState *tstate)
{
    return tstate->frame;
}

static inline FramePtr
Frame_back(FramePtr frame)
{
    return frame->f_back;
}

static inline PyCodeObject *
Frame_code(FramePtr frame)
{
    return frame->f_code;
}

/* The first argument, NULL if it is gone or in a cell; borrowed: the frame keeps it. */
static inline PyObject *
Frame_first_local(FramePtr frame)
{
    PyObject *value = frame->f_code->co_nlocals > 0 ? frame->f_localsplus[0] : NULL;
    return value != NULL && PyCell_Check(value) ? NULL : value;
}

static inline int
Frame_lasti(FramePtr frame)
{
    return frame->f_lasti < 0 ? -1 : frame->f_lasti * (int)sizeof(_Py_CODEUNIT);
}

static inline uint64_t
Frame_below(PyThreadState *tstate, FramePtr frame)
{
    uintptr_t caller = frame->f_back != NULL ? (uintptr_t)frame->f_back->f_code : 0;
    return (uint64_t)caller ^ (uint64_t)tstate->recursion_depth << 40;
}

/* The i-th argument, borrowed; NULL if it is unbound or in a cell. */
static inline PyObject *
Frame_argument(FramePtr frame, int i)
{
    return frame->f_localsplus[i];
}

#else

typedef struct _PyInterpreterFrame *FramePtr;

static inline PyCodeObject *
Frame_code(FramePtr frame)
{
#  if PY_VERSION_HEX >= 0x030E0000
    PyObject *code = PyStackRef_AsPyObjectBorrow(frame->f_executable);
    return PyCode_Check(code) ? (PyCodeObject *)code : NULL;
#  elif PY_VERSION_HEX >= 0x030D0000
    PyObject *code = frame->f_executable;
    return code != NULL && PyCode_Check(code) ? (PyCodeObject *)code : NULL;
#  else
    return frame->f_code;
#  endif
}

static inline int
Frame_is_shim(FramePtr frame)
{
#  if PY_VERSION_HEX >= 0x030E0000
    return frame->owner >= FRAME_OWNED_BY_INTERPRETER;
#  elif PY_VERSION_HEX >= 0x030C0000
    return frame->owner == FRAME_OWNED_BY_CSTACK;
#  else
    (void)frame;
    return 0;
#  endif
}

static inline FramePtr
Frame_python(FramePtr frame)
{
    while (frame != NULL && Frame_is_shim(frame)) {
        frame = frame->previous;
    }
    return frame;
}

static inline FramePtr
Frame_current(PyThreadState *tstate)
{
#  if PY_VERSION_HEX >= 0x030D0000
    return Frame_python(tstate->current_frame);
#  else
    return Frame_python(tstate->cframe->current_frame);
#  endif
}

static inline FramePtr
Frame_back(FramePtr frame)
{
    return Frame_python(frame->previous);
}

/* The first argument, NULL if it is gone or in a cell; borrowed: the frame keeps it. */
static inline PyObject *
Frame_first_local(FramePtr frame)
{
    PyCodeObject *code = Frame_code(frame);
    if (code == NULL || code->co_nlocals < 1) {
        return NULL;
    }
#  if PY_VERSION_HEX >= 0x030E0000
    PyObject *value =
        PyStackRef_IsNull(frame->localsplus[0]) ? NULL : PyStackRef_AsPyObjectBorrow(frame->localsplus[0]);
#  else
    PyObject *value = frame->localsplus[0];
#  endif
    return value != NULL && PyCell_Check(value) ? NULL : value;
}

static inline int
Frame_lasti(FramePtr frame)
{
    return _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT);
}

/* Not asked whether the frame below is a shim: then it is one that the interpreter made for a call from C. */
static inline uint64_t
Frame_below(PyThreadState *tstate, FramePtr frame)
{
    FramePtr back = frame->previous;
#  if PY_VERSION_HEX >= 0x030E0000
    uintptr_t caller = back != NULL ? (uintptr_t)back->f_executable.bits : 0;
#  elif PY_VERSION_HEX >= 0x030D0000
    uintptr_t caller = back != NULL ? (uintptr_t)back->f_executable : 0;
#  else
    uintptr_t caller = back != NULL ? (uintptr_t)back->f_code : 0;
#  endif
#  if PY_VERSION_HEX >= 0x030C0000
    return (uint64_t)caller ^ (uint64_t)tstate->py_recursion_remaining << 40;
#  else
    return (uint64_t)caller ^ (uint64_t)tstate->recursion_remaining << 40;
#  endif
}

/* The i-th argument, borrowed, out of its cell if it is in one; NULL if it is unbound. */
static inline PyObject *
Frame_argument(FramePtr frame, int i)
{
#  if PY_VERSION_HEX >= 0x030E0000
    _PyStackRef ref = frame->localsplus[i];
    PyObject *value = PyStackRef_IsNull(ref) || PyStackRef_IsTaggedInt(ref) ? NULL : PyStackRef_AsPyObjectBorrow(ref);
#  else
    PyObject *value = frame->localsplus[i];
#  endif
    return value != NULL && PyCell_Check(value) ? PyCell_GET(value) : value;
}

#endif

/* The counted references of a frame that is running: what the collector does not see, slot by slot.
 *
 * Locals, cells and free variables are exact.  How deep the evaluation stack is stands in the frame only while it has
 * called a Python function (3.11+) or anything (3.14+); else the caller derives it.  References that a slot has only
 * borrowed (3.14+) are NULL here. */
typedef struct {
    FramePtr frame;
    int locals;      /* slots of locals, cells and free variables; the evaluation stack follows */
    int first;       /* first of these that the collector does not see */
    int stack;       /* depth of the evaluation stack, -1: not stored */
    int stack_limit; /* slots that it has */
    int extra_count;
    PyObject *extra[4];
} FrameRefs;

#if PY_VERSION_HEX < 0x030B0000

static inline int
Frame_local_count(FramePtr frame)
{
    PyCodeObject *code = frame->f_code;
    return code->co_nlocals + (int)PyTuple_GET_SIZE(code->co_cellvars) + (int)PyTuple_GET_SIZE(code->co_freevars);
}

static inline PyObject *
Frame_local(FramePtr frame, int slot)
{
    return frame->f_localsplus[slot];
}

/* `inner`: a frame was called from here, and refers to this one.  0: somebody else has this frame, too. */
static inline int
FrameRefs_init(FrameRefs *self, FramePtr frame, int inner)
{
    int tracked = PyObject_GC_IsTracked((PyObject *)frame); /* of a generator: the collector sees the locals */
    self->frame = frame;
    self->locals = Frame_local_count(frame);
    self->first = tracked ? self->locals : 0;
    self->stack = -1;
    self->stack_limit = frame->f_code->co_stacksize;
    self->extra_count = 0;
    if (!tracked) {
        self->extra[self->extra_count++] = frame->f_locals;
        self->extra[self->extra_count++] = (PyObject *)frame->f_back;
    }
    return Py_REFCNT(frame) <= 1 + (inner != 0);
}

static inline PyObject *
FrameRefs_get(FrameRefs *self, int slot)
{
    return self->frame->f_localsplus[slot];
}

#else

static inline int
Frame_local_count(FramePtr frame)
{
    PyCodeObject *code = Frame_code(frame);
    return code == NULL ? 0 : code->co_nlocalsplus;
}

static inline PyObject *
Frame_local(FramePtr frame, int slot)
{
#  if PY_VERSION_HEX >= 0x030E0000
    _PyStackRef ref = frame->localsplus[slot];
    return PyStackRef_IsNull(ref) || PyStackRef_IsTaggedInt(ref) ? NULL : PyStackRef_AsPyObjectBorrow(ref);
#  else
    return frame->localsplus[slot];
#  endif
}

static inline PyObject *
FrameRefs_get(FrameRefs *self, int slot)
{
#  if PY_VERSION_HEX >= 0x030E0000
    _PyStackRef ref = self->frame->localsplus[slot];
    if (!PyStackRef_IsNull(ref) && !PyStackRef_IsTaggedInt(ref) && !PyStackRef_RefcountOnObject(ref)) {
        return NULL; /* borrowed */
    }
#  endif
    return Frame_local(self->frame, slot);
}

static inline int
FrameRefs_init(FrameRefs *self, FramePtr frame, int inner)
{
    (void)inner;
    PyCodeObject *code = Frame_code(frame);
    if (code == NULL || (frame->frame_obj != NULL && Py_REFCNT(frame->frame_obj) > 1)) {
        return 0;
    }
    self->frame = frame;
    self->locals = code->co_nlocalsplus;
    self->stack_limit = code->co_stacksize;
    self->first = 0;
    self->extra_count = 0;
#  if PY_VERSION_HEX >= 0x030E0000
    self->stack = frame->stackpointer == NULL ? -1 : (int)(frame->stackpointer - frame->localsplus) - self->locals;
#  else
    self->stack = frame->stacktop < 0 ? -1 : frame->stacktop - self->locals;
#  endif
    if (frame->owner == FRAME_OWNED_BY_GENERATOR) {
        /* The collector goes through the generator: it sees all if the depth is stored, else no local and no stack. */
        if (self->stack >= 0) {
            self->first = self->locals;
            self->stack = 0;
        }
        return 1;
    }
#  if PY_VERSION_HEX >= 0x030E0000
    if (!PyStackRef_IsNull(frame->f_funcobj) && PyStackRef_RefcountOnObject(frame->f_funcobj)) {
        self->extra[self->extra_count++] = PyStackRef_AsPyObjectBorrow(frame->f_funcobj);
    }
#  elif PY_VERSION_HEX >= 0x030C0000
    self->extra[self->extra_count++] = frame->f_funcobj;
#  else
    self->extra[self->extra_count++] = (PyObject *)frame->f_func;
#  endif
    self->extra[self->extra_count++] = frame->f_locals;
    return 1;
}

#  if PY_VERSION_HEX >= 0x030E0000
/* The frame that the collector goes through when it visits a generator or frame object, NULL: none.  It visits borrowed
 * references like others, and skips them only when it counts. */
static inline FramePtr
Frame_visited_with(PyObject *object)
{
    FramePtr frame = NULL;
    if (PyGen_Check(object) || PyCoro_CheckExact(object) || PyAsyncGen_CheckExact(object)) {
        PyGenObject *generator = (PyGenObject *)object;
        frame = generator->gi_frame_state == FRAME_CLEARED ? NULL : &generator->gi_iframe;
    }
    else if (PyFrame_Check(object) && ((PyFrameObject *)object)->f_frame->owner == FRAME_OWNED_BY_FRAME_OBJECT) {
        frame = ((PyFrameObject *)object)->f_frame;
    }
    return frame == NULL || frame->stackpointer == NULL ? NULL : frame;
}

/* What a slot has only borrowed, else NULL. */
static inline PyObject *
Ref_borrowed(_PyStackRef ref)
{
    int counted = PyStackRef_IsNull(ref) || PyStackRef_IsTaggedInt(ref) || PyStackRef_RefcountOnObject(ref);
    return counted ? NULL : PyStackRef_AsPyObjectBorrow(ref);
}
#  endif

#endif
#endif
