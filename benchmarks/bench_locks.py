"""What our Lock and RLock cost where nobody waits, to CPython's own and to a C context manager that does nothing.

The agent is installed, so locks record holder, site, held stack and order.  The lock is a local of the timed function.
An empty context manager is what no lock type written in C can beat: the difference to it is all that locking and recording
cost together.  It is compiled on the spot; without a compiler those rows are left out.

    python benchmarks/bench_locks.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

from typing import Any

import _harness

EMPTY = r"""
#define PY_SSIZE_T_CLEAN
#include <Python.h>
static PyObject *enter(PyObject *self, PyObject *unused) { Py_INCREF(Py_True); return Py_True; }
static PyObject *leave(PyObject *self, PyObject *const *args, Py_ssize_t count) { Py_INCREF(Py_None); return Py_None; }
static PyMethodDef methods[] = {
    {"__enter__", enter, METH_NOARGS, ""},
    {"__exit__", (PyCFunction)(void (*)(void))leave, METH_FASTCALL, ""},
    {"acquire", (PyCFunction)(void (*)(void))leave, METH_FASTCALL, ""},
    {"release", enter, METH_NOARGS, ""},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {{Py_tp_methods, methods}, {0, NULL}};
static PyType_Spec spec = {"bench_empty.Empty", sizeof(PyObject), 0, Py_TPFLAGS_DEFAULT, slots};
static int fill(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    return type == NULL ? -1 : PyModule_AddObject(module, "Empty", type);
}
static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "bench_empty", "", 0, NULL, module_slots, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit_bench_empty(void) { return PyModuleDef_Init(&definition); }
"""
CASES = {
    "with": "with lock:\n    pass",
    "acquire+release": "lock.acquire(); lock.release()",
    "acquire(False)+release": "lock.acquire(False); lock.release()",
    "three nested": "with outer:\n    with lock:\n        with inner:\n            pass",
    "create": "make()",
}
ROUNDS = 120


def names(make: Any) -> dict[str, Any]:
    """Return what the statements refer to."""
    return {"make": make, "lock": make(), "outer": make(), "inner": make()}


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    from concagent import _real, core

    _harness.install()
    rounds = report.effort.rounds(ROUNDS)
    ours_of = {"Lock": core.Lock if core.INSTANTIABLE else core.allocate_lock, "RLock": core.RLock}
    stock_of = {"Lock": _real.allocate_lock, "RLock": _real.RLockType}
    for kind, make in ours_of.items():
        for label, code in CASES.items():
            if report.wants(f"{kind} {label}"):
                variants = [_harness.statement(code, names(m)) for m in (stock_of[kind], make, stock_of[kind])]
                report.add(_harness.compare(f"{kind} {label}", *variants, rounds=rounds))
    if report.wants("RLock re-entered"):
        variants = []
        for make in (_real.RLockType, core.RLock, _real.RLockType):
            bound = names(make)
            bound["lock"].acquire()
            variants.append(_harness.statement(CASES["with"], bound))
        report.add(_harness.compare("RLock re-entered", *variants, rounds=rounds))
    if report.wants("to empty"):
        measure_empty(report, ours_of, rounds)
    report.close()


def measure_empty(report: _harness.Report, ours_of: dict[str, Any], rounds: int) -> None:
    """Compare with a context manager that does nothing; in these rows it is what is called stock."""
    try:
        empty = _harness.build_extension("bench_empty", EMPTY).Empty
    except ImportError as error:
        report.skip(f"rows 'to empty': {error}")
        return
    for kind, make in ours_of.items():
        for label in ("with", "acquire+release"):
            variants = [_harness.statement(CASES[label], {"lock": m()}) for m in (empty, make, empty)]
            report.add(_harness.compare(f"{kind} {label} to empty", *variants, rounds=rounds))


if __name__ == "__main__":
    main()
