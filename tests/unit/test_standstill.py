"""Who is left when everybody who can go on has gone on, in all processes: from what each of them says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from concagent import enders, shared, standstill, whohas
from concagent.asleep import Asleep
from concagent.board import Holder
from concagent.enders import Process
from concagent.model import Actor, Finding
from concagent.standstill import PATIENCE_NS, Standstill

ONE, TWO, THREE = (101, 11), (102, 12), (103, 13)
LATER = PATIENCE_NS + 1_000_000
SITE = ["/program.py", 7, "work"]
PIPE = ["pipe:5:w"]


class Board:
    """Knows who holds which shared lock."""

    def __init__(self, holders: Mapping[int, Holder]) -> None:
        self.holders = holders

    def find_lock(self, key: int) -> int:
        return key if key in self.holders else 0

    def is_signal(self, cell: int) -> bool:
        return cell not in self.holders

    def holder(self, cell: int) -> Holder | None:
        return self.holders.get(cell)

    def root(self) -> int:
        return ONE[0]


class Program:
    """Processes and what they say; ``look`` is what the first of them does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: dict[Process, tuple[int, Any]] = {}
        self.owners: dict[str, set[Process]] | None = {}
        self.holders: dict[int, Holder] = {}
        self.findings: list[Finding] = []
        self.asked = 0
        self.names: dict[Process, str] = {ONE: "one", TWO: "two", THREE: "three"}
        self.daemons: set[Process] = set()
        self.standstill = Standstill(self.findings.append)
        monkeypatch.setattr(shared, "me", lambda: ONE)
        for module in (standstill, enders):
            monkeypatch.setattr(module, "is_alive", lambda *_: True)
        monkeypatch.setattr(shared, "site_of", lambda number: ("owned" if number else "bare", None))
        monkeypatch.setattr(whohas, "census", self.census)

    def census(self, keys: set[str], root: int) -> dict[str, set[Process]] | None:
        assert root == ONE[0]
        self.asked += 1
        return None if self.owners is None else {key: self.owners.get(key, set()) for key in keys}

    def says(self, process: Process, *waits: tuple[int, str, str, Any], awake: int = 0, **given: Any) -> None:
        """Let a process say that these of its threads wait: (thread, kind, how it ends, what)."""
        flags = {"main": 1, "parent": ONE[0], "daemon": 0, "interruptible": 0, "has_pool": 0, **given}
        detail = given.pop("detail", "empty")
        flags.pop("detail", None)
        resources = [[10 + one, kind, None, None, detail, how, what] for one, kind, how, what in waits]
        requests = [[one, 10 + one, 1, 5, SITE] for one, *_ in waits]
        self.said[process] = 0, list(Asleep(awake=awake, resources=resources, requests=requests, **flags))

    def look(self, at_ns: int = LATER, known: Mapping[Any, int] | None = None, alive: tuple[int, ...] = ()) -> Any:
        actors = [
            Actor(
                number(process, serial), "thread", process[0], 1, self.names[process], process in self.daemons, "live"
            )
            for process in self.said
            for serial in (1, 2)
        ]
        board: Any = Board(self.holders)
        return self.standstill.look(
            board, self.said, number, actors, alive, known or {}, at_ns, lambda processes: min(processes) == ONE
        )

    def told(self, **given: Any) -> list[Finding]:
        """Look twice, and have everybody speak in between."""
        again = self.look(**given)
        self.said = {process: (LATER + 1, said) for process, (_, said) in self.said.items()}
        self.look(LATER + 2, again, **given)
        return self.findings


def number(process: Process, serial: int) -> int:
    return process[0] * Actor.SPACE + serial


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(monkeypatch)


def both_receive(program: Program) -> None:
    program.says(ONE, (1, "pipe", "ends", ["socket:2"]))
    program.says(TWO, (1, "pipe", "ends", ["socket:1"]))
    program.owners = {"socket:1": {ONE}, "socket:2": {TWO}}


def test_two_processes_that_wait_for_each_others_message_are_a_deadlock(program: Program) -> None:
    both_receive(program)

    found = program.told()

    assert [(one.kind, one.confidence, one.resource_kind) for one in found] == [("deadlock", "proven", "pipe")]
    assert {actor.name for actor in found[0].actors} == {"one", "two"}


def test_it_is_told_once(program: Program) -> None:
    both_receive(program)
    program.told()

    assert len(program.told()) == 1


def test_a_first_look_tells_nothing(program: Program) -> None:
    both_receive(program)

    assert program.look()
    assert program.findings == []


def test_who_has_not_spoken_since_the_first_look_is_waited_for(program: Program) -> None:
    both_receive(program)
    again = program.look()
    program.said[ONE] = LATER + 1, program.said[ONE][1]

    assert program.look(LATER + 2, again)
    assert program.findings == []


def test_a_young_wait_is_left_alone(program: Program) -> None:
    both_receive(program)

    assert program.look(at_ns=PATIENCE_NS - 1) == {}


@pytest.mark.parametrize("somebody", [THREE, TWO])
def test_a_process_that_is_awake_and_has_an_end_may_write(program: Program, somebody: Process) -> None:
    both_receive(program)
    if somebody == TWO:
        program.says(TWO, (1, "pipe", "ends", ["socket:1"]), awake=1)
    assert program.owners is not None
    program.owners["socket:2"] = {TWO, somebody}

    assert program.told() == []


def test_who_was_found_awake_is_not_asked_about_again(program: Program) -> None:
    both_receive(program)
    assert program.owners is not None
    program.owners["socket:2"] = {TWO, THREE}

    program.told()
    program.told()

    assert program.asked == 1


def test_an_end_that_nobody_has_counts_as_somebodys(program: Program) -> None:
    both_receive(program)
    assert program.owners is not None
    program.owners["socket:2"] = set()

    assert program.told() == []


def test_where_the_kernel_does_not_tell_nothing_is_said(program: Program) -> None:
    both_receive(program)
    program.owners = None

    assert program.told() == []


def test_who_has_a_finding_of_his_own_counts_as_alive(program: Program) -> None:
    both_receive(program)

    assert program.told(alive=(number(TWO, 1),)) == []


def test_consumers_and_who_joins_them_are_a_stall(program: Program) -> None:
    program.says(ONE, (1, "process", "child", TWO[0]))
    program.says(TWO, (1, "mp-queue", "ends", PIPE))
    program.owners = {PIPE[0]: {ONE, TWO}}

    found = program.told()

    assert [(one.kind, one.resource_kind) for one in found] == [("stall", "mp-queue")]
    assert {actor.name: actor.role for actor in found[0].actors} == {"two": "member", "one": "behind"}


def test_a_child_that_says_nothing_may_end(program: Program) -> None:
    program.says(ONE, (1, "process", "child", THREE[0]), (2, "mp-queue", "ends", PIPE))
    program.owners = {PIPE[0]: {ONE}}

    assert program.told() == []


def test_a_lock_held_by_who_waits_for_its_waiters_message_closes_a_ring(program: Program) -> None:
    program.says(ONE, (1, "pipe", "ends", ["socket:2"]), awake=1)
    program.says(TWO, (1, "mp-lock", "lock", ["77", "sem:1"]))
    program.owners = {"socket:2": {TWO}, "sem:1": {ONE, TWO}}
    program.holders = {0x77: Holder(*ONE, 1, 1, 1, 1, 1)}

    found = program.told()

    assert [(one.kind, len(one.actors)) for one in found] == [("deadlock", 2)]


def test_a_lock_that_anybody_may_give_back_closes_none(program: Program) -> None:
    program.says(ONE, (1, "pipe", "ends", ["socket:2"]), awake=1)
    program.says(TWO, (1, "mp-lock", "lock", ["77", "sem:1"]))
    program.owners = {"socket:2": {TWO}, "sem:1": {ONE, TWO}}
    program.holders = {0x77: Holder(*ONE, 1, 1, 0, 1, 1)}

    assert program.told() == []


def test_locks_alone_are_a_matter_of_rings(program: Program) -> None:
    program.says(ONE, (1, "mp-lock", "lock", ["77", "sem:1"]))
    program.holders = {0x77: Holder(*ONE, 1, 1, 1, 1, 1)}

    assert program.told() == []
    assert program.asked == 0


def test_a_thread_of_the_same_process_that_is_awake_may_do_what_is_local(program: Program) -> None:
    program.says(ONE, (1, "event", "own", None), awake=1)
    program.says(TWO, (1, "mp-queue", "ends", PIPE))
    program.owners = {PIPE[0]: {ONE, TWO}}

    assert program.told() == []


def test_a_program_whose_daemons_wait_for_work_and_its_main_thread_for_the_end_is_idle(program: Program) -> None:
    program.says(ONE, (1, "mp-queue", "ends", ["pipe:6:w"]), parent=1)
    program.says(TWO, (1, "mp-queue", "ends", PIPE), daemon=1)
    program.owners = {PIPE[0]: {ONE, TWO}, "pipe:6:w": {ONE, TWO}}

    assert program.told() == []


def test_the_same_without_daemons_is_a_stall(program: Program) -> None:
    program.says(ONE, (1, "mp-queue", "ends", ["pipe:6:w"]), parent=1)
    program.says(TWO, (1, "mp-queue", "ends", PIPE))
    program.owners = {PIPE[0]: {ONE, TWO}, "pipe:6:w": {ONE, TWO}}

    assert [one.kind for one in program.told()] == ["stall"]


def test_who_handles_ctrl_c_may_wait_for_its_idle_children(program: Program) -> None:
    program.says(ONE, (1, "process", "child", TWO[0]), parent=1, interruptible=1)
    program.says(TWO, (1, "mp-queue", "ends", PIPE))
    program.owners = {PIPE[0]: {ONE, TWO}}

    assert program.told() == []


def test_a_pool_is_left_to_those_who_know_pools_for_a_while(program: Program) -> None:
    program.says(ONE, (1, "mp-queue", "ends", PIPE), has_pool=1)
    program.owners = {PIPE[0]: {ONE}}

    assert program.told() == []
