"""What is true of ``open`` is true of ours: results, errors, warnings, and how it can be looked at and passed on.

Both twins are asked: `hooks.files.Open`, and the function that the C core has for it.  Scripts run twice, once plain and
once with the hook put in by ``sitecustomize``, and must print the same.
"""

# ruff: noqa: SIM115, ARG001  files are opened and dropped on purpose; the fixture is asked for its effect

from __future__ import annotations

import builtins
import copy
import gc
import inspect
import io
import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from concagent import _real, core
from concagent.hooks import files
from concagent.hooks.patching import PatchSet
from concagent.openings import Openings, UnclosedEvent

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

HOOK = """
import atexit
from concagent.hooks import files
from concagent.hooks.patching import PatchSet
from concagent.openings import Openings
openings = Openings()
patches = PatchSet()
patches.add(*files.patches(openings, lambda border, error: print("ERROR OF OURS", border, repr(error)), fast=FAST))
patches.apply()
"""
TWINS = ["python", "c"] if core.NAME == "c" else ["python"]


class Recording:
    """The hook in place, with its table and the errors that it had."""

    def __init__(self, twin: str) -> None:
        self.twin = twin
        self.errors: list[BaseException] = []
        self.ignoring = False
        self.openings = Openings()
        self.patches = PatchSet()
        steps = files.patches(
            self.openings, lambda _border, error: self.errors.append(error), self.is_ignored, fast=twin == "c"
        )
        self.patches.add(*steps)

    def is_ignored(self) -> bool:
        """Return whether openings are to be left out."""
        return self.ignoring

    def unclosed(self) -> list[UnclosedEvent]:
        """Return what was collected unclosed of the files that this file opened."""
        return [event for event in self.openings.take_unclosed() if event.site.file == __file__]

    def open_here(self) -> int:
        """Return how many files opened by this file are open."""
        return sum(figures.open for figures in self.openings.statistics() if figures.site.file == __file__)


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> str:
    """The name of each twin that there is."""
    return str(request.param)


@pytest.fixture
def recording(twin: str) -> Iterator[Recording]:
    made = Recording(twin)
    made.patches.apply()
    yield made
    made.patches.restore()
    assert made.errors == []
    assert made.patches.foreign == ()


@pytest.fixture
def path(tmp_path: Path) -> str:
    name = tmp_path / "data.txt"
    name.write_text("one\ntwo\n", encoding="utf-8")
    return str(name)


def stand_in(twin: str, openings: Openings, on_error: Callable[[str, BaseException], object]) -> Any:
    """Return what stands in for ``open``, recording."""
    hook = files.Open(_real.open_file, openings, on_error)
    hook.start()
    return hook.replacement() if twin == "c" else hook


class Node:
    """Something that can refer to itself and to a file."""

    file: Any
    me: Any


# The results are real files.


@pytest.mark.parametrize(
    ("arguments", "type_"),
    [
        (("r",), io.TextIOWrapper),
        (("w",), io.TextIOWrapper),
        (("rb",), io.BufferedReader),
        (("wb",), io.BufferedWriter),
        (("r+b",), io.BufferedRandom),
        (("rb", 0), io.FileIO),
    ],
)
def test_results_have_the_types_of_the_original(
    recording: Recording, path: str, arguments: tuple[Any, ...], type_: type
) -> None:
    with open(path, *arguments) as file:
        assert type(file) is type_

    assert recording.unclosed() == []


def test_a_file_reads_and_writes_as_ever(recording: Recording, path: str) -> None:
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write("three\n")

    with open(file=path, encoding="utf-8") as file:
        assert [line.strip() for line in file] == ["one", "two", "three"]
    assert recording.open_here() == 0


def test_the_file_itself_shows_nothing_of_us(recording: Recording, path: str) -> None:
    with _real.open_file(path) as plain, open(path) as ours:
        assert vars(ours) == vars(plain)
        assert vars(ours.buffer) == vars(plain.buffer)
        assert repr(ours) == repr(plain)


def test_a_closed_file_keeps_only_the_entry_that_costs_nothing(recording: Recording, path: str) -> None:
    file: Any = open(path)
    file.close()

    assert set(vars(file.buffer.raw)) - {"name", "__IOBase_closed"} == {"_dealloc_warn"}


def test_explicit_flush_works_and_still_fails_when_closed(recording: Recording, path: str) -> None:
    file = open(path, "rb", buffering=0)
    file.flush()
    file.close()

    with pytest.raises(ValueError, match="closed file"):
        file.flush()


# ``open`` looks like the original.


def test_open_looks_like_the_original(recording: Recording) -> None:
    original = _real.open_file

    assert open is not original
    assert open is io.open
    for name in ("__name__", "__qualname__", "__doc__", "__text_signature__", "__self__"):
        assert getattr(open, name) == getattr(original, name)
    # From 3.12 on the original's is `_io`, where pickle would find the original and refuse ours.
    assert open.__module__ == ("io" if recording.twin == "c" else original.__module__)
    assert (type(open) is type(original)) == (recording.twin == "c")
    assert repr(open) == repr(original)
    assert inspect.signature(open) == inspect.signature(original)
    assert inspect.isbuiltin(open)
    assert isinstance(open, types.BuiltinFunctionType)
    assert dir(open) == dir(original)
    assert not hasattr(open, "__get__")
    assert not hasattr(open, "__dict__")
    assert not hasattr(open, "nothing")


def test_open_pickles_and_copies_by_name(recording: Recording) -> None:
    assert pickle.loads(pickle.dumps(open)) is open
    assert copy.copy(open) is open
    assert copy.deepcopy([open]) == [open]


def test_a_pickled_open_loads_as_the_plain_one_without_us(twin: str) -> None:
    made = Recording(twin)
    made.patches.apply()
    data = pickle.dumps(open)
    made.patches.restore()

    assert pickle.loads(data) is _real.open_file


def test_open_in_a_class_body_is_no_method(recording: Recording, path: str) -> None:
    class Reader:
        opener: Any = open

    with Reader().opener(path) as file:
        assert file.read() == "one\ntwo\n"


@pytest.mark.parametrize(
    "call",
    [
        lambda open_: open_(),
        lambda open_: open_("/no/such/file/anywhere"),
        lambda open_: open_(os.curdir),
        lambda open_: open_(os.devnull, "q"),
        lambda open_: open_(os.devnull, "rb", encoding="utf-8"),
        lambda open_: open_(os.devnull, nonsense=1),
        lambda open_: open_(os.devnull, self=1),
        lambda open_: open_(1.5),
        lambda open_: open_(-1),
        lambda open_: open_(10**6),
        lambda open_: open_(os.devnull, opener=lambda *_: 1 / 0),
        lambda open_: open_(os.devnull, closefd=False),
    ],
)
def test_errors_are_those_of_the_original(recording: Recording, call: Callable[[Any], Any]) -> None:
    with pytest.raises(Exception) as plain:
        call(_real.open_file)
    with pytest.raises(Exception) as ours:
        call(open)

    assert type(ours.value) is type(plain.value)
    assert ours.value.args == plain.value.args
    assert (ours.value.__cause__, ours.value.__context__) == (None, None)
    shown = [(e.frame.code.path, e.frame.code.name) for e in ours.traceback if Path(e.path).name != "files.py"]
    assert shown == [(e.frame.code.path, e.frame.code.name) for e in plain.traceback]
    assert len(ours.traceback) - len(plain.traceback) <= (recording.twin == "python")


# What is noticed, and what is not (K11, K13).


def test_k13_files_that_are_closed_are_silent(recording: Recording, path: str) -> None:
    file = open(path)
    file.close()
    with open(path, "rb") as file_of_with:
        file_of_with.read()
    try:
        with open(path, "wb", 0):
            raise KeyError  # noqa: TRY301
    except KeyError:
        pass
    closer = open(path)
    try:
        int("x")
    except ValueError:
        closer.close()
    del file, file_of_with, closer
    gc.collect()

    assert recording.unclosed() == []
    assert recording.open_here() == 0


def test_k11_of_ten_thousand_files_the_hundred_unclosed_are_found(recording: Recording) -> None:
    for number in range(10_000):
        file = open(os.devnull)
        if number % 100:
            file.close()
        del file

    found = recording.unclosed()

    assert [(event.site.function.split(".")[-1], event.count) for event in found] == [
        ("test_k11_of_ten_thousand_files_the_hundred_unclosed_are_found", 100)
    ]
    figures = next(f for f in recording.openings.statistics() if f.site == found[0].site)
    assert (figures.opened, figures.closed, figures.open, figures.collected_unclosed) == (10_000, 9_900, 0, 100)


@pytest.mark.parametrize("arguments", [("r",), ("w",), ("rb",), ("wb",), ("r+b",), ("rb", 0)])
def test_a_dropped_file_is_found_in_every_mode(recording: Recording, path: str, arguments: tuple[Any, ...]) -> None:
    open(path, *arguments)

    assert [event.count for event in recording.unclosed()] == [1]


@pytest.mark.parametrize("arguments", [("r",), ("w",), ("rb",), ("wb",), ("r+b",), ("rb", 0)])
def test_a_file_in_a_reference_cycle_is_found(recording: Recording, path: str, arguments: tuple[Any, ...]) -> None:
    node = Node()
    node.me, node.file = node, open(path, *arguments)
    del node
    gc.collect()

    assert [event.count for event in recording.unclosed()] == [1]


def test_a_file_that_refers_to_itself_is_found(recording: Recording, path: str) -> None:
    file: Any = open(path)
    file.me = file
    del file
    gc.collect()

    assert [event.count for event in recording.unclosed()] == [1]


@pytest.mark.parametrize("part", ["buffer", "detach"])
def test_a_buffer_that_outlives_its_text_file_is_found(recording: Recording, path: str, part: str) -> None:
    file = open(path)
    buffer = file.buffer if part == "buffer" else file.detach()
    del file, buffer

    assert [event.count for event in recording.unclosed()] == [1]


def test_a_cycle_whose_destructor_closes_the_file_is_silent(recording: Recording, path: str) -> None:
    class Owner:
        def __init__(self) -> None:
            self.me = self
            self.file = open(path)

        def __del__(self) -> None:
            self.file.close()

    Owner()
    gc.collect()

    assert recording.unclosed() == []


def test_a_generator_collected_inside_its_with_block_is_silent(recording: Recording, path: str) -> None:
    def lines() -> Iterator[Any]:
        box: list[Any] = []
        with open(path) as file:
            box.append((yield file))

    generator = lines()
    next(generator)
    cycle: list[Any] = [generator]
    cycle.append(cycle)
    del generator, cycle
    gc.collect()

    assert recording.unclosed() == []


def test_a_closed_file_in_a_cycle_is_silent(recording: Recording, path: str) -> None:
    for arguments in [("r",), ("wb",), ("rb", 0)]:
        node = Node()
        node.me, node.file = node, open(path, *arguments)  # type: ignore[call-overload]
        node.file.close()
        del node
    gc.collect()

    assert recording.unclosed() == []


def test_a_file_closed_in_another_thread_is_silent(recording: Recording, path: str) -> None:
    file = open(path)
    closer = threading.Thread(target=file.close)
    closer.start()
    closer.join()
    del file, closer
    gc.collect()

    assert recording.unclosed() == []


def test_a_borrowed_descriptor_is_nobodys_leak(recording: Recording, path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    open(descriptor, closefd=False)
    os.close(descriptor)

    assert recording.unclosed() == []
    assert recording.open_here() == 0


def test_an_owned_descriptor_and_fdopen_are_found(recording: Recording, path: str) -> None:
    open(os.open(path, os.O_RDONLY), "rb")
    os.fdopen(os.open(path, os.O_RDONLY))

    assert [event.count for event in recording.unclosed()] == [1, 1]


def test_temporary_files_close_themselves_in_silence(recording: Recording) -> None:
    tempfile.NamedTemporaryFile()
    gc.collect()

    assert recording.unclosed() == []


def test_a_dropped_nameless_temporary_file_is_found_as_the_interpreter_says(recording: Recording) -> None:
    tempfile.TemporaryFile()
    gc.collect()

    assert [event.count for event in recording.unclosed()] == [1]


def test_a_file_opened_through_the_standard_library_has_the_line_of_the_program(
    recording: Recording, path: str
) -> None:
    file = pathlib.Path(path).open()

    sites = [
        f.site.function.split(".")[-1] for f in recording.openings.statistics() if f.site.file == __file__ and f.open
    ]
    file.close()

    assert sites == ["test_a_file_opened_through_the_standard_library_has_the_line_of_the_program"]


def test_open_files_are_counted_while_they_are_open(recording: Recording, path: str) -> None:
    kept = [open(path) for _ in range(5)]

    before = recording.open_here()
    kept[0].close()
    after = recording.open_here()
    for file in kept:
        file.close()

    assert (before, after, recording.open_here()) == (5, 4, 0)


def test_nothing_keeps_an_open_file_alive(recording: Recording, path: str) -> None:
    descriptor = open(path).fileno()

    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)


def test_ignored_openings_are_not_recorded(recording: Recording, path: str) -> None:
    recording.ignoring = True

    with open(path):
        assert recording.open_here() == 0


def test_replacements_that_survive_the_restore_are_plain(twin: str, path: str) -> None:
    made = Recording(twin)
    made.patches.apply()
    kept = builtins.open
    made.patches.restore()

    kept(path)

    assert builtins.open is _real.open_file
    assert made.openings.statistics() == ()


def test_a_file_opened_before_the_restore_and_dropped_after_it_counts_for_nothing(twin: str, path: str) -> None:
    made = Recording(twin)
    made.patches.apply()
    file = open(path)
    made.patches.restore()

    del file

    assert made.unclosed() == []
    assert made.errors == []


def test_an_error_of_ours_is_counted_and_the_file_is_the_users(twin: str, path: str) -> None:
    class Broken(Openings):
        def record_at(self, *_: Any) -> Any:
            raise RuntimeError("ours")

        def collected_unclosed(self, *_: Any) -> Any:
            raise RuntimeError("ours")

    errors: list[str] = []

    def on_error(border: str, error: BaseException) -> None:
        errors.append(f"{border} {error}")
        raise RuntimeError("even here")

    openings = Broken()
    replacement = stand_in(twin, openings, on_error)

    with replacement(path) as file:
        assert file.read() == "one\ntwo\n"
    openings.stop()
    assert errors == ["files ours"]


@pytest.mark.parametrize("arguments", [("r",), ("rb", 0)])
def test_an_error_of_ours_in_a_finalizer_is_counted(twin: str, path: str, arguments: tuple[Any, ...]) -> None:
    class Broken(Openings):
        def collected_unclosed(self, *_: Any) -> Any:
            raise RuntimeError("ours")

    errors: list[str] = []
    openings = Broken()
    replacement = stand_in(twin, openings, lambda border, error: errors.append(f"{border} {error}"))

    replacement(path, *arguments)
    openings.stop()

    assert errors == ["files ours"]


def test_the_result_of_a_foreign_open_is_passed_on_untouched() -> None:
    foreign = object()
    openings = Openings()
    hook = files.Open(lambda *_: foreign, openings, lambda *_: None)
    hook.start()
    replacement = hook.replacement()

    assert replacement is hook  # also where the core has a function: that one stands in for one that it knows
    assert replacement("x") is foreign
    openings.stop()
    assert openings.statistics() == ()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_child_of_a_fork_does_not_count_the_parents_files(recording: Recording, path: str) -> None:
    file: Any = open(path)
    child = os.fork()
    if child == 0:
        recording.openings.after_fork_in_child()
        del file
        os._exit(len(recording.unclosed()) + recording.open_here())
    _, status = os.waitpid(child, 0)
    file.close()

    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_child_of_a_fork_counts_what_it_opens_at_a_line_that_the_parent_knew(
    recording: Recording, path: str
) -> None:
    def opened() -> Any:
        return open(path)

    file = opened()
    child = os.fork()
    if child == 0:
        recording.openings.after_fork_in_child()
        kept = opened()
        opened()
        os._exit(10 * len(recording.unclosed()) + recording.open_here() + kept.closed)
    _, status = os.waitpid(child, 0)
    file.close()

    assert os.waitstatus_to_exitcode(status) == 11


def test_a_profiler_sees_one_call_of_open(recording: Recording, path: str) -> None:
    seen: list[str] = []

    def profile(_frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            seen.append(argument.__qualname__)

    def call() -> None:
        sys.setprofile(profile)
        open(path).close()
        sys.setprofile(None)

    for _ in range(20):  # also when the interpreter has learned what is called here
        seen.clear()
        call()

        assert seen.count("open") == 1


def test_one_line_is_one_site_also_when_the_interpreter_has_learned_what_it_calls(
    recording: Recording, path: str
) -> None:
    for _ in range(1000):
        open(path, "rb").close()

    here = [figures for figures in recording.openings.statistics() if "learned" in figures.site.function]

    assert [(figures.opened, figures.closed) for figures in here] == [(1000, 1000)]


def test_what_is_closed_leaves_nothing_behind(recording: Recording, path: str) -> None:
    def many(times: int) -> None:
        for _ in range(times):
            open(path).close()
            open(path, "rb", buffering=0).close()

    many(100)
    gc.collect()
    before = sys.getallocatedblocks()
    many(2000)
    gc.collect()

    assert sys.getallocatedblocks() - before < 1000
    assert recording.open_here() == 0


def test_a_mark_that_somebody_kept_is_harmless(recording: Recording, path: str) -> None:
    file: Any = open(path)
    mark = vars(file.buffer.raw)["_dealloc_warn"]
    was_open = mark.is_open()
    references = weakref.getweakrefs(file.buffer.raw)
    file.close()
    del file

    assert (was_open, mark.is_open()) == (True, False)
    assert mark() is None
    assert mark(object()) is None
    assert mark(*references) is None
    assert recording.unclosed() == []


def test_the_callback_of_a_mark_can_be_called_by_anybody(recording: Recording, path: str) -> None:
    file: Any = open(path)
    for reference in weakref.getweakrefs(file.buffer.raw):
        vars(file.buffer.raw)["_dealloc_warn"](reference)

    assert file.read() == "one\ntwo\n"
    file.close()
    assert recording.open_here() == 0


@pytest.mark.parametrize("arguments", [("r",), ("rb", 0)])
def test_a_file_that_a_destructor_brings_back_is_closed_and_found_once(
    recording: Recording, path: str, arguments: tuple[Any, ...]
) -> None:
    kept: list[Any] = []

    class Owner:
        def __init__(self) -> None:
            self.me = self
            self.file = open(path, *arguments)

        def __del__(self) -> None:
            kept.append(self.file)

    Owner()
    gc.collect()

    assert [file.closed for file in kept] == [True]
    kept.clear()
    gc.collect()
    assert [event.count for event in recording.unclosed()] == [1]


def test_files_of_many_threads_are_counted_one_by_one(recording: Recording, path: str) -> None:
    def work() -> None:
        for number in range(200):
            file = open(path, "rb")
            if number % 10:
                file.close()
            del file

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [event.count for event in recording.unclosed()] == [80]
    figures = [f for f in recording.openings.statistics() if f.site.function.split(".")[-1] == "work"]
    assert [(f.opened, f.closed, f.open) for f in figures] == [(800, 720, 0)]


def test_who_cannot_say_whether_to_ignore_does_not_cost_the_user_the_file(twin: str, path: str) -> None:
    def broken() -> bool:
        raise RuntimeError("ours")

    errors: list[str] = []
    openings = Openings()
    hook = files.Open(_real.open_file, openings, lambda border, error: errors.append(f"{border} {error}"), broken)
    hook.start()
    replacement = hook.replacement() if twin == "c" else hook

    with replacement(path) as file:
        assert file.read() == "one\ntwo\n"
    openings.stop()
    assert errors == ["files ours"]


def test_an_interruption_of_the_program_inside_of_us_is_the_programs(twin: str, path: str) -> None:
    def interrupted() -> bool:
        raise KeyboardInterrupt

    openings = Openings()
    hook = files.Open(_real.open_file, openings, lambda *_: None, interrupted)
    hook.start()
    replacement = hook.replacement() if twin == "c" else hook

    with pytest.raises(KeyboardInterrupt):
        replacement(path)
    openings.stop()


# Warnings and tracebacks of whole programs.

DROP = """\
import gc, sys
class Node: pass
def drop(*arguments):
    open(*arguments)
for arguments in [("r",), ("rb",), ("rb", 0), ("r",)]:
    drop(sys.argv[1], *arguments)
for arguments in [("r",), ("rb",), ("rb", 0)]:
    node = Node(); node.me = node; node.file = open(sys.argv[1], *arguments); del node
    gc.collect()
box = open(sys.argv[1]).buffer
del box
registry = globals().get("__warningregistry__", {})
print(sorted(key[2] for key in registry if key != "version"))
"""
AT_EXIT = """\
import sys
file = open(sys.argv[1])
class Owner:
    def __init__(self):
        self.me = self
        self.file = open(sys.argv[1], "rb")
owner = Owner()
kept = [open(sys.argv[1], "rb", 0) for _ in range(3)]
"""
ENCODING = """\
import sys, pathlib, io
open(sys.argv[1]).close()
io.open(sys.argv[1], mode="r").close()
pathlib.Path(sys.argv[1]).open().close()
pathlib.Path(sys.argv[1]).read_text()
def helper(): return open(sys.argv[1], "rb")
helper().close()
open(sys.argv[1], encoding="utf-8").close()
"""
ARGUMENTS = """\
import sys
open(sys.argv[1], "rb", 1).close()
open(sys.argv[1], "rb", buffering=1).close()
try:
    open(sys.argv[1], "rU").close()
except ValueError as error:
    print(error)
import os
os.close(0); os.open(sys.argv[1], os.O_RDONLY)
open(False, "rb").close()
"""
LOCATION = """\
import sys, types
module = types.ModuleType("other")
code = compile("def drop(path):\\n    open(path)\\n", "other.py", "exec")
exec(code, module.__dict__)
module.drop(sys.argv[1])
module.drop(sys.argv[1])
print(sorted(k[2] for k in module.__warningregistry__ if k != "version"))
"""
HOOKED = """\
import sys
def hook(unraisable):
    print(type(unraisable.exc_value).__name__, unraisable.exc_value, unraisable.object, unraisable.err_msg)
sys.unraisablehook = hook
def drop(*arguments):
    open(*arguments)
drop(sys.argv[1]); drop(sys.argv[1], "rb"); drop(sys.argv[1], "rb", 0)
"""
SOURCE = """\
import sys, warnings
def show(message, category, filename, lineno, file=None, line=None): print(message, category.__name__, filename, lineno)
warnings.showwarning = show
def show_message(message): print(message.message, message.filename, message.lineno, type(message.source).__name__)
warnings._showwarnmsg_impl = show_message
def drop(): open(sys.argv[1])
drop()
"""
LATE = """\
import sys, weakref
class Late:
    def __del__(self, open=open, path=sys.argv[1], print=print):
        file = open(path)
        print(file.read())
        open(path, "rb").close()
        open(path, "rb", 0)
        try:
            open(path + ".none")
        except OSError as error:
            print(error.errno)
sys.late = Late()
late = Late()
"""
FAIL = """\
import sys
def helper(path):
    return open(
        path,
        "r",
    )
helper(sys.argv[1] + ".none")
"""
PROFILE = """\
import cProfile, pstats, sys, io
profile = cProfile.Profile()
profile.enable()
open(sys.argv[1]).close()
profile.disable()
print(sorted(key[2].replace("_io", "io") for key in pstats.Stats(profile).stats if "open" in key[2]))
"""
AUDIT = """\
import sys
sys.addaudithook(lambda event, args: print(event, args) if event == "open" and args[0] == sys.argv[1] else None)
open(sys.argv[1]).close()
open(file=sys.argv[1], mode="rb", buffering=0).close()
"""
THREAD = """\
import sys, threading, _thread, time
def work():
    local.file = open(sys.argv[1])
local = threading.local()
thread = threading.Thread(target=work); thread.start(); thread.join()
"""


@pytest.mark.parametrize(
    ("options", "script"),
    [
        pytest.param(["-Wdefault"], DROP, id="dropped"),
        pytest.param(["-Walways"], DROP, id="dropped-always"),
        pytest.param(["-Werror"], DROP, id="dropped-error"),
        pytest.param(["-Xdev"], DROP, id="dropped-dev"),
        pytest.param([], DROP, id="dropped-no-options"),
        pytest.param(["-Walways", "-Xtracemalloc=1"], DROP, id="dropped-tracemalloc"),
        pytest.param(["-Wdefault"], AT_EXIT, id="at-exit"),
        pytest.param(["-Werror"], AT_EXIT, id="at-exit-error"),
        pytest.param(["-Xwarn_default_encoding"], ENCODING, id="encoding"),
        pytest.param(
            ["-Xwarn_default_encoding", "-Werror::EncodingWarning"],
            "import sys\nopen(sys.argv[1])\n",
            id="encoding-error",
        ),
        pytest.param(["-Walways"], ARGUMENTS, id="arguments"),
        pytest.param(["-Wdefault"], LOCATION, id="location"),
        pytest.param(["-Werror::ResourceWarning:other"], LOCATION.replace("print", "# print"), id="module-filter"),
        pytest.param(["-Werror"], HOOKED, id="unraisable-hook"),
        pytest.param(["-Walways"], SOURCE, id="source"),
        pytest.param(["-Walways"], THREAD, id="thread-without-frames"),
        pytest.param(["-Wdefault"], LATE, id="opened-while-the-interpreter-ends"),
        pytest.param([], FAIL, id="traceback"),
        pytest.param([], PROFILE, id="profile"),
        pytest.param([], AUDIT, id="audit"),
    ],
)
def test_a_program_prints_the_same_with_and_without_the_hook(
    tmp_path: Path, twin: str, path: str, options: list[str], script: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(script, encoding="utf-8")
    hook, none = tmp_path / "hook", tmp_path / "none"
    hooked = HOOK.replace("FAST", str(twin == "c"))
    for folder, text in ((hook, hooked), (none, "from concagent.hooks import files\n")):
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(text, encoding="utf-8")

    ours, plain = (_run(folder, options, program, path) for folder in (hook, none))

    assert "ERROR OF OURS" not in ours
    if twin == "c":
        assert ours == plain
    assert _without_our_frames(ours) == _without_our_frames(plain)


def _run(folder: Path, options: list[str], program: Path, path: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *options, str(program), path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return f"{done.stdout}\n--\n{done.stderr}\n--\n{done.returncode}"


def _without_our_frames(text: str) -> str:
    """Drop the entries of tracebacks that are ours: the hook's, and its double of the caller's line; and all carets."""
    text = re.sub(r'Traceback \(most recent call last\):\n  File "<?sys>?", line \d, in sys\n', "", text)
    kept: list[str] = []
    skipping = double = False
    for line in text.splitlines():
        if line.startswith('  File "'):
            skipping = double or "hooks/files.py" in line
            double = "hooks/files.py" in line
        elif not line.startswith("    "):
            skipping = double = False
        if not skipping and (set(line) - set(" ^~") or not line):
            kept.append(line)
    return "\n".join(kept)
