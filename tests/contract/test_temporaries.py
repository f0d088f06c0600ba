"""Which of the files that nobody closes are leaks, and which are temporaries that their own statement consumes.

Each row is a program; it runs as a module and as a function, and is silent or reported in both.
"""

from __future__ import annotations

import gc
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from concagent.hooks import files
from concagent.hooks.patching import PatchSet
from concagent.openings import Openings
from concagent.temporaries import instruction_at, temporary_ends

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

HEAD = """
import collections, contextlib, csv, gc, io, itertools, json, pathlib, threading
def keep(file):
    kept.append(file)
def last(file):
    global newest
    newest = file
def itself(file):
    return file
class Owner:
    def __init__(self, file):
        self.file = file
    def read(self):
        return self.file.read()
class Cycle(Owner):
    def __init__(self, file):
        self.file, self.me = file, self
kept = []
newest = None
"""

SILENT = {
    "method": "text = open(p).read()",
    "method-unused": "open(p).read()",
    "method-written": "open(w, 'w').write('x')",
    "binary": "data = open(p, 'rb').read()",
    "raw": "data = open(p, 'rb', 0).read()",
    "argument": "data = json.load(open(p))",
    "argument-of-c": "n = len(list(open(p)))",
    "argument-among-others": "json.dump([1], open(w, 'w'), indent=1)",
    "argument-by-name": "print('x', file=open(w, 'w'))",
    "argument-by-stars": "n = max(*open(p))",
    "argument-of-python": "x = itself(open(p)).read()",
    "argument-deep": "x = sum(map(len, map(str.strip, open(p))))",
    "two": "x = open(p).read() + open(q).read()",
    "two-arguments": "x = list(zip(open(p), open(q)))",
    "two-lists": "x = [*open(p), *open(q)]",
    "many-lines": """
        x = json.load(
            open(
                p,
                encoding="utf-8",
            )
        )
    """,
    "chain-of-lines": """
        x = (
            open(p)
            .read()
            .strip()
        )
    """,
    "dict": "x = {'a': open(p).read(), 'b': [open(q).read()]}",
    "attribute": "x = open(p).name",
    "compare": "x = open(p).read() == open(q).read()",
    "contains": "x = 'x' in open(p)",
    "condition": "if open(p).read(): pass",
    "conditional-expression": "x = open(p).read() if p else ''",
    "or": "x = (open(p) or None).read()",
    "assert": "assert open(p).readline()",
    "f-string": "x = f'{open(p).read()!r}'",
    "unpack": "a, b = open(p)",
    "unpack-star": "a, *b = open(p)",
    "wrapped": "x = list(csv.reader(open(p)))",
    "wrapped-in-owner": "x = Owner(open(p)).read()",
    "loop": "for line in open(p): x = line",
    "loop-break": """
        for line in open(p):
            if line: break
    """,
    "loop-break-in-handler": """
        for line in open(p):
            try:
                int(line)
            except ValueError:
                break
    """,
    "loop-raise": """
        try:
            for line in open(p): int(line)
        except ValueError:
            pass
    """,
    "loop-in-with": """
        with threading.Lock():
            for line in open(p):
                with threading.Lock():
                    x = line
    """,
    "loop-wrapped": "for number, line in enumerate(open(p)): pass",
    "loop-else": """
        for line in open(p): continue
        else: x = 1
    """,
    "loop-twice": """
        for _ in range(2):
            for line in open(p): pass
    """,
    "in-a-loop": "for name in (p, q): x = open(name).read()",
    "in-a-try": """
        try: x = open(p).read()
        finally: pass
    """,
    "raises-on-the-way": """
        try: x = int(open(p).read())
        except ValueError: pass
    """,
    "list-comprehension": "x = [open(name).read() for name in (p, q)]",
    "list-comprehension-over": "x = [line for line in open(p)]",
    "list-comprehension-nested": "x = [line for name in (p, q) for line in open(name)]",
    "dict-comprehension": "x = {name: open(name).read() for name in (p, q)}",
    "generator": "x = sum(len(open(name).readlines()) for name in (p, q))",
    "generator-over": "x = sum(1 for line in open(p))",
    "generator-nested": "x = list(line for name in (p, q) for line in open(name))",
    "generator-function": """
        def lines():
            for line in open(p): yield line
        x = list(lines())
    """,
    "yield-from": """
        def lines():
            yield from open(p)
        x = list(lines())
    """,
    "return": """
        def read():
            return open(p).read()
        read()
    """,
    "return-in-a-loop": """
        def first():
            for line in open(p):
                return line
        first()
    """,
    "lambda": "(lambda name: open(name).read())(p)",
    "path": "x = pathlib.Path(p).open().read()",
    "path-loop": "for line in pathlib.Path(p).open(): pass",
    "io": "x = io.open(p).read()",
    "thread": """
        threads = [threading.Thread(target=lambda: [json.load(open(p)) for _ in range(20)]) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """,
    "with-closing": "with contextlib.closing(open(p)): pass",
}

REPORTED = {
    "unused": "open(p)",
    "variable": """
        def work():
            f = open(p)
            return f.read()
        work()
    """,
    "variable-deleted": "f = open(p); del f",
    "variable-rebound": "for name in (p, q): f = open(name); f.read()",
    "variable-rebound-to-none": "f = open(p); x = f.read(); f = None",
    "variable-of-wrapper": """
        f = csv.reader(open(p))
        f = None
    """,
    "variable-of-wrapper-rebound": "for name in (p, q): f = Owner(open(name))",
    "variables-of-one-statement": "for name in (p, q): f, g = open(name), 1",
    "variable-and-chain": "f = g = open(p); f = g = None",
    "walrus": """
        for name in (p, q): x = (f := open(name)).read()
    """,
    "walrus-in-call": "x = itself((f := open(p))).read(); del f",
    "method-kept": "read = open(p).read; x = read(); del read",
    "loop-variable": "for f in (open(name) for name in (p, q)): x = f.read()",
    "loop-over-variable": """
        f = open(p)
        for line in f: pass
        f = None
    """,
    "append": "kept.append(open(p)); kept.clear()",
    "append-by-function": "keep(open(p)); kept.clear()",
    "global-of-function": "for name in (p, q): last(open(name))",
    "item": "d = {}; d[1] = open(p); d.clear()",
    "item-replaced": """
        d = {}
        for name in (p, q): d[1] = open(name)
    """,
    "comprehension": "x = len([open(name) for name in (p, q)])",
    "set-comprehension": "x = len({open(name) for name in (p, q)})",
    "dict-comprehension": "x = len({1: open(name) for name in (p, q)})",
    "bounded-queue": """
        recent = collections.deque(maxlen=1)
        for name in (p, q): recent.append(open(name))
    """,
    "attribute": "o = Owner(open(p)); o.read(); del o",
    "attribute-replaced": """
        o = Owner(None)
        for name in (p, q): o.file = open(name)
    """,
    "owner-unused": "Owner(open(p))",
    "cycle": "Cycle(open(p)); gc.collect()",
    "cycle-in-one-statement": "x = Cycle(open(p)).read(), gc.collect()",
    "yielded": """
        def files():
            yield open(p)
        for f in files(): x = f.read()
        f = None
    """,
    "returned": """
        def get():
            return open(p)
        x = get().read()
    """,
    "other-thread": """
        box = []
        def work():
            box.pop().read()
        for _ in range(1):
            box.append(open(p))
        thread = threading.Thread(target=work); thread.start(); thread.join()
    """,
    "recursion": """
        def down(n):
            f = Owner(open(p)) if n else None
            return down(n - 1) if n else f
        down(2)
    """,
    "recursion-in-one-statement": """
        def down(n):
            if n: f = (Owner(open(p)), down(n - 1))
        down(2)
    """,
    "traceback": """
        def parse(file): raise ValueError
        try: parse(open(p))
        except ValueError: pass
    """,
    "path-variable": "f = pathlib.Path(p).open(); f = None",
}


@pytest.fixture
def openings() -> Iterator[Openings]:
    made, errors, patches = Openings(), [], PatchSet()
    patches.add(*files.patches(made, lambda _border, error: errors.append(error)))
    patches.apply()
    yield made
    patches.restore()
    assert errors == []


def run(openings: Openings, program: str, tmp_path: Path, shape: str) -> tuple[int, int]:
    """Return how many files the program leaked, and how many temporaries it used."""
    names = {}
    for name in "pqw":
        names[name] = str(tmp_path / name)
        Path(names[name]).write_text("1\n2\n" if "json" not in program else "1", encoding="utf-8")
    if "int(" in program:
        Path(names["p"]).write_text("x\ny\n", encoding="utf-8")
    body = textwrap.dedent(program).strip("\n")
    if shape == "function":
        body = "def main():\n" + textwrap.indent(body, "    ") + "\nmain()"
    file = str(tmp_path / "program.py")
    namespace: dict[str, Any] = {"__name__": "program", **names}
    exec(compile(HEAD + body + "\n", file, "exec"), namespace)
    for kept in ("x", "f", "newest", "recent", "d", "o"):
        namespace[kept] = None
    gc.collect()
    leaked = sum(event.count for event in openings.take_unclosed() if event.site.file == file)
    figures = [figures for figures in openings.statistics() if figures.site.file == file]
    assert sum(f.opened for f in figures) == sum(f.closed + f.collected_unclosed + f.open for f in figures)
    assert sum(f.collected_unclosed for f in figures) == leaked
    return leaked, sum(f.temporaries for f in figures)


SHAPES = pytest.mark.parametrize("shape", ["module", "function"])


@SHAPES
@pytest.mark.parametrize("program", SILENT.values(), ids=SILENT)
def test_a_temporary_is_silent_and_counted(openings: Openings, tmp_path: Path, program: str, shape: str) -> None:
    leaked, temporaries = run(openings, program, tmp_path, shape)

    assert leaked == 0
    assert temporaries >= 1 or "closing" in program


@SHAPES
@pytest.mark.parametrize("program", REPORTED.values(), ids=REPORTED)
def test_what_was_kept_and_dropped_is_a_leak(openings: Openings, tmp_path: Path, program: str, shape: str) -> None:
    leaked, temporaries = run(openings, program, tmp_path, shape)

    assert leaked >= 1
    assert temporaries == 0


def test_with_tracemalloc_it_is_the_same(openings: Openings, tmp_path: Path) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        silent = run(openings, "x = json.load(open(p))", tmp_path, "function")
        reported = run(openings, "open(p)", tmp_path, "function")
    finally:
        tracemalloc.stop()

    assert silent == (0, 1)
    assert reported == (1, 1)  # the one of before is still in the figures


def test_where_all_lines_are_one_it_is_the_same(openings: Openings, tmp_path: Path) -> None:
    leaked, temporaries = run(openings, "f = open(p); x = f.read(); f = None; x = open(q).read()", tmp_path, "module")

    assert (leaked, temporaries) == (1, 1)


def test_many_temporaries_wake_the_reader_once() -> None:
    told: list[int] = []
    openings, patches = Openings(on_unclosed=lambda: told.append(1)), PatchSet()
    patches.add(*files.patches(openings, lambda *_: None))
    patches.apply()
    try:
        for _ in range(100):
            open(__file__, "rb").read(1)  # noqa: SIM115
            openings.take_unclosed()
    finally:
        patches.restore()

    assert len(told) <= 2  # on 3.11 a specialised call has another offset


def test_a_long_function_is_followed_over_extended_jumps() -> None:
    body = "\n".join(f"        x{number} = line, {number}.5" for number in range(2000))
    namespace: dict[str, Any] = {}
    exec(f"def long(p):\n    for line in open(p):\n{body}\n    return 1\n", namespace)
    code = namespace["long"].__code__
    opened = instruction_at(code, _first_call(code))

    ends = temporary_ends(code, opened)

    assert max(ends) > 8000
    assert opened not in ends


def test_an_instruction_that_is_never_reached_has_no_ends() -> None:
    assert temporary_ends((lambda: None).__code__, 10_000) == frozenset()


def _first_call(code: Any) -> int:
    import dis

    return next(ins.offset for ins in dis.get_instructions(code) if ins.opname in ("CALL", "CALL_FUNCTION"))
