"""Golden files of the text report: ``UPDATE_GOLDEN=1 pytest tests/unit/test_text.py`` writes them anew; read the diff."""

from __future__ import annotations

import linecache
import os
import time
from pathlib import Path

import pytest

from concagent.exporters import _scene
from concagent.exporters.text import read_source_line, render_finding, render_report
from concagent.model import (
    KINDS,
    Actor,
    AgentStats,
    AssignmentEdge,
    CallSite,
    ClassStatistics,
    Finding,
    FindingActor,
    FindingResource,
    Holder,
    Report,
    RequestEdge,
    Resource,
    Snapshot,
    StackFrame,
)

GOLDEN = Path(__file__).parent / "golden"
NOW = 1732270000.123
BANK = "/srv/shop/bank.py"
LONG = "/usr/local/lib/python3.11/site-packages/urllib3/connectionpool.py"
SOURCES = {
    (BANK, 12): "self.orders = threading.Lock()",
    (BANK, 13): "self.cache = threading.Lock()",
    (BANK, 14): "self.audit = threading.Lock()",
    (BANK, 20): "self.ready = threading.Event()",
    (BANK, 30): "with self.orders:",
    (BANK, 31): "with self.cache:",
    (BANK, 40): "with self.cache:",
    (BANK, 41): "with self.orders:",
    (BANK, 50): "with self.audit:",
    (BANK, 60): "self.ready.wait()",
    (BANK, 70): "self.orders.release()",
    (BANK, 80): 'self.journal = open("journal.log", "a")',
    (BANK, 90): "self.total += amount",
    (BANK, 91): "if self.total > limit:",
    (BANK, 95): "worker = threading.Thread(target=self.transfer)",
    (LONG, 300): "self.pool = queue.LifoQueue(maxsize)",
}


def source_line(file: str, line: int) -> str:
    return SOURCES.get((file, line), "")


def site(line: int, function: str, file: str = BANK) -> CallSite:
    return CallSite(file, line, function)


def stack(line: int, function: str) -> tuple[StackFrame, ...]:
    threading = "/usr/lib/python3.11/threading.py"
    return (
        StackFrame(threading, 1002, "_bootstrap", "self._bootstrap_inner()"),
        StackFrame(threading, 982, "run", "self._target(*self._args, **self._kwargs)"),
        StackFrame(BANK, line, function, SOURCES.get((BANK, line), "")),
    )


def actor(
    number: int,
    name: str,
    waits: str | None = None,
    holds: tuple[str, ...] = (),
    role: str = "member",
    where: tuple[StackFrame, ...] = (),
    waited: float = 12.3,
    daemon: bool = False,
    timed: bool = False,
) -> FindingActor:
    since = NOW - waited if waits else None
    return FindingActor(
        f"4711/t{number}", "thread", 4711, 4711 + number, name, daemon, waits, since, timed, holds, role, where
    )


def lock(number: int, name: str | None, made: int, holder: int | None, taken: int = 30, function: str = "transfer",
         kind: str = "lock") -> FindingResource:  # fmt: skip
    held = (Holder(f"4711/t{holder}", site(taken, function), NOW - 12.4),) if holder is not None else ()
    return FindingResource(f"r{number}", kind, name, site(made, "Bank.__init__"), held)


def finding(kind: str, title: str, **fields: object) -> Finding:
    values: dict[str, object] = {
        "kind": kind, "resource_kind": "lock", "confidence": "proven", "id": "4711-1",
        "fingerprint": "3f2a9c01d4e57b68", "time": NOW, "pid": 4711, "title": title,
    }  # fmt: skip
    return Finding(**{**values, **fields})  # type: ignore[arg-type]


ORDERS = lock(1, "orders", 12, 1)
CACHE = lock(2, "cache", 13, 2, 40, "refresh")
RING_OF_TWO = finding(
    "deadlock",
    'worker-1 and worker-2 wait for each other: worker-1 holds "orders" and wants "cache", worker-2 the reverse',
    actors=(
        actor(1, "worker-1", "r2", ("r1",), where=stack(31, "transfer")),
        actor(2, "worker-2", "r1", ("r2",), where=stack(41, "refresh"), waited=0.0002, daemon=True),
    ),
    resources=(ORDERS, CACHE),
    edges=(("4711/t1", "waits", "r2"), ("r2", "held-by", "4711/t2"),
           ("4711/t2", "waits", "r1"), ("r1", "held-by", "4711/t1")),
    advice="Take the locks in one order everywhere, for example orders before cache.",
    suppress='deadlock "orders" reason=...',
)  # fmt: skip
RING_OF_THREE = finding(
    "deadlock",
    "worker-1, worker-2 and worker-3 wait for each other in a ring; 2 more are stuck behind them",
    actors=(
        actor(1, "worker-1", "r2", ("r1",), where=stack(31, "transfer")),
        actor(2, "worker-2", "r3", ("r2",), "victim", where=stack(50, "refresh"), waited=3723.0),
        actor(3, "worker-3", "r1", ("r3",), where=stack(41, "check"), waited=0.25),
        actor(4, "web-1", "r1", role="behind", where=stack(41, "page"), waited=75.0),
        actor(5, "web-2", "r1", role="behind", where=stack(41, "page"), waited=2.0, timed=True),
    ),
    resources=(ORDERS, CACHE, lock(3, "audit", 14, 3, 50, "check")),
    count=4,
    advice="Take the locks in one order everywhere.\nHold no lock while calling code that takes another.",
    suppress='deadlock "orders" reason=...',
)
CASES = {
    "deadlock": RING_OF_TWO,
    "deadlock_of_three_with_two_behind": RING_OF_THREE,
    "deadlock_with_itself": finding(
        "deadlock",
        'MainThread waits for lock "orders", which it holds itself',
        actors=(actor(1, "MainThread", "r1", ("r1",), where=stack(41, "transfer")),),
        resources=(ORDERS,),
        advice="Use an RLock, or do not call a function that takes the lock while holding it.",
        suppress='deadlock "orders" reason=...',
    ),
    "deadlock_through_join": finding(
        "deadlock",
        "MainThread joins worker-1 while it holds the lock that worker-1 wants",
        confidence="suspected",
        resource_kind="thread",
        reason='Lock "orders" is a plain Lock, and the code does not show that its holder alone releases it.',
        actors=(
            actor(0, "MainThread", "r9", ("r1",), where=stack(60, "stop")),
            actor(1, "worker-1", "r1", ("r9",), where=stack(41, "transfer")),
        ),
        resources=(
            lock(1, "orders", 12, 0, 30, "stop"),
            FindingResource("r9", "thread", None, site(95, "start"), (Holder("4711/t1", None, None),)),
        ),
    ),
    "stall": finding(
        "stall",
        'reader-1 waits for event "ready", and nobody who could set it is left',
        resource_kind="event",
        actors=(actor(1, "reader-1", "r1", where=stack(60, "read")),),
        resources=(FindingResource("r1", "event", "ready", site(20, "Bank.__init__")),),
        advice="Set the event in a finally clause of the thread that loads.",
    ),
    "orphaned-lock": finding(
        "orphaned-lock",
        'worker-2 waits for lock "orders", whose holder worker-1 has ended (acquired at bank.py:30 in transfer)',
        detail="owner terminated",
        actors=(
            actor(2, "worker-2", "r1", where=stack(41, "refresh")),
            actor(1, "worker-1", holds=("r1",), role="bystander"),
        ),
        resources=(ORDERS,),
        advice="Use `with`, so that an exception releases the lock.",
        suppress='orphaned-lock "orders" reason=...',
    ),
    "misuse": finding(
        "misuse",
        'worker-2 releases rlock "orders", which worker-1 owns',
        detail="foreign-release",
        resource_kind="rlock",
        actors=(
            actor(2, "worker-2", where=stack(70, "refund")),
            actor(1, "worker-1", holds=("r1",), role="bystander", where=stack(31, "transfer")),
        ),
        resources=(lock(1, "orders", 12, 1, kind="rlock"),),
        advice="An RLock belongs to the thread that took it.",
    ),
    "long-wait": finding(
        "long-wait",
        'worker-2 has waited 31 s for lock "orders"',
        confidence="hint",
        reason="Longer than long_wait = 30 s.",
        actors=(
            actor(2, "worker-2", "r1", where=stack(41, "refresh"), waited=31.0),
            actor(1, "worker-1", holds=("r1",), role="bystander", where=stack(31, "transfer")),
        ),
        resources=(ORDERS,),
    ),
    "long-hold": finding(
        "long-hold",
        'worker-1 has held lock "orders" for 12 s',
        confidence="hint",
        actors=(actor(1, "worker-1", holds=("r1",), where=stack(90, "transfer")),),
        resources=(ORDERS,),
    ),
    "leak": finding(
        "leak",
        "a file opened at bank.py:80 was collected without being closed",
        resource_kind="file",
        detail="collected unclosed",
        count=17,
        resources=(FindingResource("r5", "file", "/var/log/journal.log", site(80, "Bank.open_journal")),),
        advice="Open it in a `with` statement.",
        suppress="leak bank.py reason=...",
    ),
    "lock-order-inversion": finding(
        "lock-order-inversion",
        'locks "orders" and "cache" are taken in both orders',
        confidence="potential",
        resources=(lock(1, "orders", 12, None), lock(2, "cache", 13, None)),
        order=(
            {"held": "orders", "held_at": site(30, "transfer").to_dict(), "taken": "cache",
             "taken_at": site(31, "transfer").to_dict(), "threads": ["worker-1", "worker-3"], "times": 9,
             "stack": [frame.to_dict() for frame in stack(31, "transfer")]},
            {"held": "cache", "taken": "orders", "taken_at": site(41, "refresh").to_dict(),
             "gates": [{"lock": "audit", "held": "only in the first"}], "counts": {"seen": 2}},
        ),
        advice="Choose one order.",
    ),
    "order-violation": finding(
        "order-violation",
        'lock "orders" was taken under "cache", against the declared order',
        actors=(actor(2, "worker-2", holds=("r2", "r1"), where=stack(41, "refresh")),),
        resources=(lock(1, "orders", 12, 2, 41, "refresh"), CACHE),
        order=("orders", "cache"),
    ),
    "context-hazard": finding(
        "context-hazard",
        'lock "orders" is taken in a finalizer and in code that the finalizer can interrupt',
        confidence="potential",
        resources=(lock(1, "orders", 12, None),),
        reason="Seen in Bank.__del__ and in transfer.",
    ),
    "fork-hazard": finding(
        "fork-hazard",
        'MainThread forked while worker-1 held lock "orders"',
        confidence="potential",
        actors=(
            actor(0, "MainThread", where=stack(95, "start")),
            actor(1, "worker-1", holds=("r1",), where=stack(31, "transfer")),
        ),
        resources=(ORDERS,),
    ),
    "loop-blocked": finding(
        "loop-blocked",
        "the event loop of MainThread stood still for 2.0 s",
        resource_kind="loop",
        confidence="",
        actors=(actor(0, "MainThread", where=stack(90, "handle")),),
    ),
    "data-race": finding(
        "data-race",
        "worker-1 and worker-2 write Bank.total without an order between them",
        resource_kind="attribute",
        actors=(
            actor(1, "worker-1", where=stack(90, "deposit")),
            actor(2, "worker-2", where=stack(90, "deposit")),
        ),
    ),
    "atomicity-violation": finding(
        "atomicity-violation",
        "Bank.total was changed between the check and the use in deposit",
        confidence="hint",
        resource_kind="attribute",
        actors=(actor(1, "worker-1", where=stack(91, "deposit")),),
    ),
}  # fmt: skip


def a_report() -> Report:
    second = 10**9
    same = stack(60, "idle")
    snapshot = Snapshot(
        pid=4711,
        monotonic_ns=100 * second,
        wall_seconds=NOW,
        actors=(
            Actor(0, "thread", 4711, 4711, "MainThread", False, "live", stack(90, "serve")),
            Actor(1, "thread", 4711, 4712, "worker-1", False, "blocked", stack(31, "transfer")),
            Actor(2, "thread", 4711, 4713, "worker-2", True, "blocked", stack(41, "refresh")),
            *(Actor(i, "thread", 4711, 4711 + i, f"idle-{i}", True, "timed", same) for i in range(3, 8)),
            Actor(8, "thread", 4711, None, "idle-7", True, "ended"),
            Actor(9, "thread", 4711, 4720, "concagent", True, "agent"),
        ),
        resources=(
            Resource(1, "lock", "orders", site(12, "Bank.__init__")),
            Resource(2, "lock", "cache", site(13, "Bank.__init__")),
            Resource(3, "condition", None, site(300, "ConnectionPool.__init__", LONG)),
            Resource(4, "thread", None, None),
            Resource(5, "semaphore", "slots", None, permits=0),
        ),
        requests=(
            RequestEdge(1, 2, 88 * second, 3, False, site(31, "transfer")),
            RequestEdge(2, 1, 99 * second, 5, False, site(41, "refresh")),
            RequestEdge(3, 3, 40 * second, 5, True, None),
            RequestEdge(4, 5, 97 * second, 5, True, site(60, "idle")),
        ),
        assignments=(
            AssignmentEdge(1, 1, 87 * second, 1, site(30, "transfer")),
            AssignmentEdge(2, 2, 87 * second, 1, site(40, "refresh")),
            AssignmentEdge(4, 3, None, 1, None),
            AssignmentEdge(5, 0, None, 1, None),
            AssignmentEdge(5, 77, None, 1, None),
        ),
        untracked_locks=3,
        foreign_threads=1,
        process_name="shop",
    )
    stats = AgentStats(
        locks_created=12,
        locks_alive=4,
        classes=(
            ClassStatistics("orders", "lock", 5000, 120, 14.5, (), 2.5, 100, ()),
            ClassStatistics("cache", "lock", 900, 3, 0.01),
            ClassStatistics("quiet", "lock", 10),
        ),
        agent_errors=(("hook", 1), ("sink", 0)),
        agent_cpu_seconds=0.25,
        untracked_locks=3,
    )
    findings = (RING_OF_TWO, CASES["leak"])
    return Report(snapshot, ((1, 2),), findings, stats, "SIGUSR1", "3.11.7", "python serve.py", "0.1.0")


def check(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text.encode())

    assert text.encode() == path.read_bytes()


def test_every_kind_has_a_golden_file() -> None:
    assert set(KINDS) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_finding_reads_as_its_golden_file(name: str) -> None:
    check(name, render_finding(CASES[name], python="3.11.7", source_line=source_line))


def test_live_picture_reads_as_its_golden_file() -> None:
    check("report", render_report(a_report(), source_line=source_line))


def test_colour_adds_nothing_but_escape_sequences() -> None:
    plain = render_finding(RING_OF_THREE, source_line=source_line)

    coloured = render_finding(RING_OF_THREE, source_line=source_line, color=True)

    assert "\x1b[1;31m" in coloured
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[1;31m", "\x1b[36m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


def test_suspicion_is_not_painted_like_a_proof() -> None:
    text = render_finding(CASES["deadlock_through_join"], source_line=source_line, color=True)

    assert "\x1b[1;33mDEADLOCK, suspected" in text


def test_prose_keeps_to_the_width() -> None:
    text = render_finding(RING_OF_THREE, source_line=source_line, width=72)

    prose = text[: text.index("Who, and where")].splitlines()
    assert max(len(line) for line in prose) == 72


def test_finding_of_this_process_names_the_python_version() -> None:
    text = render_finding(RING_OF_TWO.with_changes(pid=os.getpid()), source_line=source_line)

    assert ", python 3." in text


def test_finding_of_another_process_names_no_python_version() -> None:
    text = render_finding(RING_OF_TWO.with_changes(pid=0), source_line=source_line)

    assert "python 3" not in text.splitlines()[-2]


def test_finding_without_any_field_is_rendered() -> None:
    bare = finding("new-kind", "", confidence="", fingerprint="")

    assert "NEW KIND" in render_finding(bare)


def test_missing_names_sites_stacks_and_resources_leave_gaps() -> None:
    gaps = finding(
        "deadlock",
        "something",
        confidence="suspected",
        actors=(
            FindingActor("1/t1", "thread", 1, None, "", False, "r1", None, holds=("r2",)),
            FindingActor("1/t2", "thread", 1, None, "", False, None),
            FindingActor("1/t3", "thread", 1, None, "same", False, "r3", role="behind", holds=("r7",)),
            FindingActor("1/t4", "thread", 1, None, "same", False, role="behind"),
            FindingActor("1/t5", "thread", 1, None, "same", False, role="bystander"),
            FindingActor("1/t6", "thread", 1, None, "same", False, role="behind"),
        ),
        resources=(
            FindingResource("r1", "lock", None, None, (Holder("1/t9", None, None),)),
            FindingResource("r3", "lock", None, None),
            FindingResource("r4", "thread", "t", None),
        ),
        edges=(("1/t2", "waits", "r5"), ("1/t2", "knows", "r5")),
    )

    text = render_finding(gaps)

    assert "thread 1/t1 (thread, pid 1) holds resource r2 and waits for unnamed lock r1, held by 1/t9." in text
    assert "thread 1/t2 (thread, pid 1) waits for resource r5, whose holder is not known." in text
    assert "created at a place that is not known" in text
    assert "same [1/t3] (thread, pid 1) holds resource r7 and waits for unnamed lock r3" in text
    assert "2 alike (same [1/t4] and same [1/t6]): each is at the place below." in text
    assert "Also involved: 1 more" in text
    assert "same [1/t5] (thread, pid 1) was there." in text
    assert "The evidence does not exclude" in text


def test_actor_known_only_from_an_edge_can_be_part_of_a_ring() -> None:
    edges = (("a", "waits", "r1"), ("r1", "held-by", "b"), ("b", "waits", "r2"), ("r2", "held-by", "a"))
    known = FindingActor("a", "thread", 1, None, "alpha", False)

    text = render_finding(finding("deadlock", "t", actors=(known,), edges=edges))

    assert "alpha -> [resource r1] -> b -> [resource r2] -> alpha" in text


def test_finding_with_nobody_but_bystanders_shows_them_first() -> None:
    only = actor(1, "web-1", role="bystander", where=stack(90, "page"))

    text = render_finding(finding("leak", "t", actors=(only,)), source_line=source_line)

    assert "What happens\n  web-1 (thread, pid 4711, native 4712) was at /srv/shop/bank.py:90 in page." in text


def test_thread_that_ended_with_a_lock_held_it_when_it_did_so() -> None:
    ended = actor(1, "worker-1", holds=("r1",), where=stack(70, "refund"))

    text = render_finding(finding("misuse", "t", actors=(ended,), resources=(ORDERS,)), source_line=source_line)

    assert 'native 4712) held lock "orders" (created' in text
    assert "and did this at /srv/shop/bank.py:70 in refund." in " ".join(text.split())


def test_threads_behind_a_ring_are_folded_with_their_names() -> None:
    many = tuple(
        actor(10 + i, f"web-{i}", "r1", role="behind", where=stack(41, "page"), waited=float(i)) for i in range(60)
    )

    text = render_finding(RING_OF_TWO.with_changes(actors=RING_OF_TWO.actors + many), source_line=source_line)

    assert "Stuck behind it: 60 more" in text
    assert "60 alike (web-0, web-1" in text
    assert "and 40 more)" in text
    assert "waits   the longest 59.0 s so far" in text
    assert text.count("in page") == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("semaphore", 'semaphore "x", whose permits are held by b'),
        ("mp-event", 'multiprocessing event "x", which b would have to signal'),
        ("queue", 'queue "x", which b would have to serve'),
        ("future", 'future "x", which b would have to complete'),
        ("barrier", 'barrier "x", which b has not reached'),
        ("process", 'process "x" to end'),
        ("rlock", 'RLock "x", held by b'),
        ("novelty", 'novelty "x", held by b'),
    ],
)
def test_each_kind_of_wait_is_said_in_its_own_words(kind: str, words: str) -> None:
    waiting = FindingActor("1/t1", "thread", 1, None, "a", False, "r1")
    resource = FindingResource("r1", kind, "x", None, (Holder("b", None, None),))

    text = render_finding(finding("stall", "t", actors=(waiting,), resources=(resource,)))

    assert f"waits for {words}." in text


def test_wait_for_an_event_that_nobody_is_known_to_set_blames_nobody() -> None:
    waiting = FindingActor("1/t1", "thread", 1, None, "a", False, "r1")
    resource = FindingResource("r1", "event", "x", None)

    text = render_finding(finding("stall", "t", actors=(waiting,), resources=(resource,)))

    assert 'waits for event "x".' in text


def test_control_characters_and_surrogates_of_names_are_escaped() -> None:
    evil = actor(1, "a\x1b[2J\nb\udcff", where=stack(90, "f"))

    text = render_finding(finding("misuse", "x\x07y", actors=(evil,)))

    assert "a\\x1b[2J\\nb\\udcff" in text
    assert "x\\x07y" in text
    text.encode("ascii")


def test_frame_of_the_acquisition_is_marked_even_when_the_function_went_on() -> None:
    text = render_finding(RING_OF_TWO, source_line=source_line)

    marked = [line for line in text.splitlines() if line.startswith("      > ")]
    assert marked[0].endswith('bank.py:31 in transfer    <- took lock "orders" in line 30, waits for lock "cache"')


def test_frame_at_the_very_line_of_the_acquisition_wins_over_the_same_function_further_in() -> None:
    frames = (*stack(30, "transfer"), *stack(31, "transfer"))
    held = actor(1, "w", holds=("r1",), where=frames)

    text = render_finding(finding("long-hold", "t", actors=(held,), resources=(ORDERS,)), source_line=source_line)

    assert 'bank.py:30 in transfer    <- took lock "orders"\n' in text


def test_innermost_of_two_frames_of_the_same_function_is_marked() -> None:
    frames = (*stack(80, "transfer"), *stack(90, "transfer"))
    held = actor(1, "w", holds=("r1",), where=frames)

    text = render_finding(finding("long-hold", "t", actors=(held,), resources=(ORDERS,)), source_line=source_line)

    assert 'bank.py:90 in transfer    <- took lock "orders" in line 30\n' in text


def test_frame_without_source_is_shown_without_a_quotation() -> None:
    held = actor(1, "w", where=(StackFrame("<string>", 1, "<module>"), StackFrame("<string>", 2, "f")))

    text = render_finding(finding("long-hold", "t", actors=(held,)))

    assert "        <string>:1 at module level\n        <string>:2 in f\n" in text


def test_acquisition_in_a_function_that_has_returned_marks_no_frame() -> None:
    held = actor(1, "w", holds=("r1",), where=stack(90, "elsewhere"))

    text = render_finding(finding("long-hold", "t", actors=(held,), resources=(ORDERS,)), source_line=source_line)

    assert "<-" not in text
    assert "taken at /srv/shop/bank.py:30 in transfer" in text


def test_wait_is_shown_at_the_line_that_called_the_waiting_machinery() -> None:
    frames = (*stack(60, "read"), StackFrame("/usr/lib/python3.11/threading.py", 629, "wait"))

    found = _scene.wait_site(frames)

    assert found == site(60, "read")


def test_wait_inside_machinery_only_is_shown_at_its_innermost_line() -> None:
    frames = stack(60, "read")[:2]

    found = _scene.wait_site(frames)

    assert found is not None
    assert found.function == "run"


def test_value_of_an_order_that_only_looks_like_a_site_is_rendered() -> None:
    strange = {"at": {"file": "f", "line": "x", "function": "<module>"}, "none": None, "empty": []}

    text = render_finding(finding("lock-order-inversion", "t", order=(strange,)))

    assert "at: f:0 at module level" in text


def test_report_of_an_empty_process_is_rendered() -> None:
    text = render_report(Report(Snapshot(1, 0, 0.0), (), (), AgentStats()))

    assert "no threads; no deadlock; 0 findings so far." in text
    assert "1970-01-01 00:00:00.000 UTC" in text


def test_ring_of_actors_that_the_snapshot_lost_is_rendered() -> None:
    text = render_report(Report(Snapshot(1, 0, 0.0), ((5, 6),), (), AgentStats()))

    assert "1/t5 -> 1/t6 -> 1/t5" in text


def crowd(size: int, held: int = 0) -> Report:
    frames = tuple(StackFrame(f"/srv/app/module{i}.py", i + 1, f"f{i}", "call()") for i in range(20))
    # Frames equal but not identical, as a snapshot makes them.
    copies = [tuple(StackFrame(f.file, f.line, f.function, f.source) for f in frames) for _ in range(size)]
    snapshot = Snapshot(
        pid=1,
        monotonic_ns=10**9,
        wall_seconds=NOW,
        actors=tuple(Actor(i, "thread", 1, i, f"t-{i}", False, "blocked", copies[i]) for i in range(size)),
        resources=tuple(Resource(i, "lock", f"l-{i}", site(12, "f")) for i in range(max(1, held))),
        requests=tuple(RequestEdge(i, 0, i, 1, False, site(31, "g")) for i in range(0, size, 2)),
        assignments=tuple(AssignmentEdge(i, i % size, 0, 1, site(30, "g")) for i in range(held)),
    )
    return Report(snapshot, (), (), AgentStats())


def test_equal_stacks_are_shown_once_with_all_names() -> None:
    text = render_report(crowd(38, held=1))

    assert text.count("module19.py") == 1
    assert "38 threads with this stack (blocked)" in text
    assert all(f"t-{i}" in text for i in range(38))
    assert "and 9 more" in text


def test_table_of_held_locks_is_cut() -> None:
    text = render_report(crowd(10, held=130))

    assert "  and 30 more\n" in text


def test_thousand_threads_are_rendered_in_a_tenth_of_a_second() -> None:
    report = crowd(1000, held=1000)

    fastest = 1e9
    for _ in range(5):
        begin = time.perf_counter()
        render_report(report)
        fastest = min(fastest, time.perf_counter() - begin)

    # Measured: 25 ms; the limit leaves room for a busy machine and for coverage.
    assert fastest < 0.5


def test_source_line_is_read_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"one\n  two \xff\n")

    lines = [read_source_line(str(file), number) for number in (0, 1, 2, 3)]

    assert lines == ["", "one", "two \ufffd", ""]


def test_source_line_of_a_missing_or_odd_file_is_empty() -> None:
    assert [read_source_line(name, 1) for name in ("/no/such", "<string>", "a\0b", "/", "/dev/zero")] == [""] * 5


def test_huge_file_is_not_read_for_a_source_line(tmp_path: Path) -> None:
    file = tmp_path / "big.py"
    file.write_bytes(b"x" * 4_000_001)

    assert read_source_line(str(file), 1) == ""


def test_source_line_known_to_linecache_is_taken_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linecache.cache, "<cell 1>", (4, None, ["a = 1\n"], "<cell 1>"))

    assert read_source_line("<cell 1>", 1) == "a = 1"


def test_long_paths_are_cut_at_the_front_and_keep_file_and_line() -> None:
    assert _scene.short_site(site(7, "f", LONG)) == ".../site-packages/urllib3/connectionpool.py:7 in f"
    assert _scene.short_path("x" * 60) == f".../{'x' * 60}"
    assert _scene.short_site(None) == "an unknown place"
    assert _scene.full_site(site(3, "")) == f"{BANK}:3"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "under 1 ms"), (0.0125, "12 ms"), (0.9996, "1.0 s"), (59.9, "59.9 s"), (59.96, "1 min 0 s"),
        (3723, "1 h 2 min"), (90000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations_have_the_digits_that_matter(seconds: float, words: str) -> None:
    assert _scene.duration(seconds) == words


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e30])
def test_impossible_time_is_shown_as_it_is(seconds: float) -> None:
    assert _scene.timestamp(seconds) == f"time {seconds}"


def test_words_are_enumerated_and_the_rest_counted() -> None:
    words = [_scene.enumerate_words(w, 3) for w in ([], ["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"])]

    assert words == ["", "a", "a and b", "a, b and c", "a, b, c and 1 more"]


def test_walk_that_ends_outside_or_runs_into_another_ring_is_no_ring() -> None:
    edges = (
        ("x", "waits", "r1"), ("r1", "held-by", "a"),
        ("a", "waits", "r2"), ("r2", "held-by", "b"), ("b", "waits", "r3"), ("r3", "held-by", "a"),
    )  # fmt: skip

    scene = _scene.scene_of_finding(finding("deadlock", "t", edges=edges))

    assert scene.ring_from("x") == ()
    assert scene.ring_from("a") == ("a", "b")
    assert scene.waited("x") is None
    assert scene.holding("r1", "a") is None
