"""Programs of 2 to 8 processes that take shared locks, and are killed, stopped and continued at random moments.

What is true is known from outside: a worker that is left, and still wants a lock when all others have come to their end, is
blocked; if no living process holds that lock, it is an orphan.  Each such lock has to be told, once, and nothing else; the board
holds nothing that nobody wrote; and in the end nothing is left, no file, no semaphore, no process.

    python tests/stress/stress_kills.py [seconds] [rounds] [seed]

Would catch: a holder noted too late or dropped too early, a holder that is stopped and taken for dead, a lock told twice, half
a slot that is read as a whole one, boards that outlive their programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

if not sys.platform.startswith("linux"):
    print("skipped: there is a board on Linux only")
    sys.exit(77)

import multiprocessing.context
import multiprocessing.process
import multiprocessing.synchronize

import concagent
from concagent.board import Board, is_alive, start_time

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1_000_000)
AT_ONCE = int(os.environ.get("AT_ONCE", "6"))
PATIENCE_SECONDS = 60.0
STOP, PIDS, WANTS, HOLDS = 0, 1, 11, 21  # words that the killer and the killed share
PR_SET_CHILD_SUBREAPER = 36


# ---------------------------------------------------------------- the programs


def work(me: int, locks: list[Any], words: Any, seed: int) -> None:
    words[PIDS + me] = os.getpid()
    chance = random.Random(seed)
    while not words[STOP]:
        first = chance.randrange(len(locks))
        words[WANTS + me] = first + 1
        with locks[first]:
            words[HOLDS + me] |= 1 << first
            words[WANTS + me] = 0
            mood = chance.random()
            if mood < 0.3 and first + 1 < len(locks):
                second = chance.randrange(first + 1, len(locks))
                words[WANTS + me] = second + 1
                with locks[second]:
                    words[WANTS + me] = 0
                    time.sleep(chance.random() * 0.002)
            elif mood < 0.7:
                time.sleep(chance.random() * 0.003)
            words[HOLDS + me] &= ~(1 << first)


def program(words: Any, seed: int, findings: str) -> None:
    os.setpgid(0, 0)
    words[PIDS + 9] = os.getpid()
    chance = random.Random(seed)
    concagent.install(log=False, stderr=False, socket=False, findings=findings, stall_after=2.0)
    context = multiprocessing.get_context("fork")
    locks = [context.Lock() if chance.random() < 0.7 else context.RLock() for _ in range(chance.randint(1, 3))]
    number = chance.randint(1, 7)
    workers = [context.Process(target=work, args=(n, locks, words, chance.random())) for n in range(number)]
    for worker in workers:
        worker.start()
    words[PIDS + 8] = number
    while words[STOP] < 2:
        time.sleep(0.05)
        multiprocessing.active_children()
    for worker in workers:
        worker.kill()
        worker.join()


# ---------------------------------------------------------------- the killer


def state_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def lives(pid: int) -> bool:
    return state_of(pid) not in {"gone", "Z", "X"}


def send(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


class Round:
    """One program, from its start to what is left of it; `step` is called until it says that it is over."""

    def __init__(self, seed: int, folder: str) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.findings = os.path.join(folder, f"{seed}.jsonl")
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self.expected = 0
        self.began = time.monotonic()
        self.at = self.began
        self.seen: Any = None
        self.phase = self.start
        self.root = os.fork()
        if self.root == 0:
            status = 1
            try:
                program(self.words, seed + 1, self.findings)
                status = 0
            except BaseException:  # noqa: BLE001 - this is a program of its own
                sys.excepthook(*sys.exc_info())
            finally:
                end_program(status)
        self.start_ticks = start_time(self.root)

    def step(self) -> bool:
        now = time.monotonic()
        assert now - self.began < PATIENCE_SECONDS, self.described("did not come to its end")
        if now >= self.at:
            self.at = now + (self.phase() or 0.02)
        return self.phase == self.over

    def described(self, what: str) -> str:
        return (
            f"seed {self.seed}: {what}; expected {self.expected}, told {self.told()}, words {self.words[:40].tolist()}\n"
            + "\n".join(self.on_board())
        )

    def on_board(self) -> list[str]:
        """Return what the board knows, for whoever looks for the cause of a failure."""
        board = self.board()
        if board is None:
            return ["there is no board"]
        locks = [
            f"lock {cell}: {board.holder(cell)}, tried by {board.trying(cell)}, wanted by {board.wanting(cell)}, "
            f"signed {board.was_signed(cell)}, told {board.was_told(cell)}, signal {board.is_signal(cell)}"
            for cell in board.cells()
        ]
        return locks + [f"slot {slot.pid} ({state_of(slot.pid)}): {slot.payload.decode()}" for slot in board.slots()]

    def board(self) -> Board | None:
        paths = glob.glob(f"/dev/shm/concagent-board-*-{self.root}-{self.start_ticks}")
        return Board.open(paths[0]) if paths else None

    def workers(self) -> list[int]:
        return [number for number in range(self.words[PIDS + 8]) if lives(self.words[PIDS + number])]

    def told(self) -> list[Any]:
        try:
            with open(self.findings) as file:
                return [(found["kind"], found["title"]) for found in map(json.loads, file)]
        except FileNotFoundError:
            return []

    # The phases return how long to wait for the next step.

    def start(self) -> float:
        number = self.words[PIDS + 8]
        if number and all(self.words[PIDS + n] for n in range(number)):
            self.phase = self.torment
            self.pulses = self.chance.randrange(4)
            self.kills = self.chance.randint(1, max(1, number - 1)) if number > 1 else self.chance.randrange(2)
            self.stopped: list[int] = []
            return self.chance.random() * 0.1
        return 0.01

    def torment(self) -> float:
        pids = [self.words[PIDS + n] for n in self.workers()]
        if not pids or not (self.pulses or self.kills):
            self.phase = self.settle
            return self.chance.choice([0.0, 0.0, 0.0, 1.5])  # some stay stopped for a while
        if self.pulses and self.chance.random() < 0.6:
            self.pulses -= 1
            self.stopped.append(self.chance.choice(pids))
            send(self.stopped[-1], signal.SIGSTOP)
        elif self.kills:
            self.kills -= 1
            send(self.chance.choice(pids), signal.SIGKILL)
        if self.stopped and self.chance.random() < 0.4:
            send(self.stopped.pop(), signal.SIGCONT)
        return self.chance.random() * 0.03

    def settle(self) -> float:
        for pid in self.stopped:
            send(pid, signal.SIGCONT)
        if self.chance.random() < 0.1:
            send(self.root, signal.SIGKILL)
        self.words[STOP] = 1
        self.phase = self.come_to_rest
        return 0.3

    def come_to_rest(self) -> float:
        here = self.workers()
        seen = [(n, self.words[WANTS + n], self.words[HOLDS + n], state_of(self.words[PIDS + n])) for n in here]
        if seen == self.seen and all(want and state == "S" for _, want, _, state in seen):
            wanted = {want - 1 for _, want, _, _ in seen}
            self.expected = len({lock for lock in wanted if not any(held >> lock & 1 for _, _, held, _ in seen)})
            self.phase = self.be_told
            return 0.0
        self.seen = seen
        return 0.4

    def be_told(self) -> float:
        if len(self.told()) < self.expected:
            return 0.1
        self.phase = self.check
        return 0.5  # for one too many

    def check(self) -> float:
        told = self.told()
        assert len(told) == self.expected, self.described("told wrongly")
        assert all(kind == "orphaned-lock" for kind, _ in told), self.described("told something else")
        self.check_board()
        self.words[STOP] = 2
        if self.chance.random() < 0.3:
            for pid in [self.root, *(self.words[PIDS + n] for n in self.workers())]:
                send(pid, signal.SIGKILL)
        elif not lives(self.root):
            for number in self.workers():
                send(self.words[PIDS + number], signal.SIGKILL)
        self.phase = self.vanish
        return 0.0

    def check_board(self) -> None:
        board = self.board()
        if board is None:
            return
        mine = {self.root, *(self.words[PIDS + n] for n in range(8))}
        for cell in board.cells():
            holder = board.holder(cell)
            assert holder is None or (holder.pid in mine and holder.start and board.site(holder.site)), holder
        torn = set(board.owners())
        assert {pid for pid, _ in torn} <= mine, self.described(f"slots of {torn}")
        for _ in range(10):  # one that is just written is not torn
            torn -= {(slot.pid, slot.start) for slot in board.slots()}
            torn = {owner for owner in torn if is_alive(*owner)}
            if not torn:
                return
            time.sleep(0.01)
        raise AssertionError(self.described(f"torn slots of {torn}"))

    def vanish(self) -> float:
        if not lives(self.root) and not self.workers():
            self.phase = self.over
        return 0.05

    def over(self) -> float:
        return 0.0

    def end(self) -> None:
        for pid in {self.root, *(self.words[PIDS + n] for n in range(8))} - {0}:
            send(pid, signal.SIGKILL)


def end_program(status: int) -> None:
    """End a program that was forked as one that was started ends: what is registered for the exit runs."""
    import atexit

    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    os._exit(status)


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def leftovers(roots: set[int]) -> list[str]:
    boards = [path for path in glob.glob("/dev/shm/concagent-board-*") if int(path.split("-")[-2]) in roots]
    return boards + glob.glob(f"/dev/shm/sem.{PREFIX}-*")


PREFIX = f"kills{os.getpid()}"  # of our semaphores' names


def main() -> None:
    multiprocessing.process.current_process()._config["semprefix"] = f"/{PREFIX}"
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    seeds = random.Random(SEED)
    end = time.monotonic() + SECONDS
    roots: set[int] = set()
    rounds = orphans = 0
    running: list[Round] = []
    folder = tempfile.mkdtemp()  # not one that removes itself at the exit of those who are forked
    try:
        while running or (time.monotonic() < end and rounds < ROUNDS):
            if len(running) < AT_ONCE and time.monotonic() < end and rounds < ROUNDS:
                rounds += 1
                running.append(Round(seeds.randrange(1 << 30), folder))
                roots.add(running[-1].root)
            for each in list(running):
                try:
                    if not each.step():
                        continue
                except AssertionError:
                    for other in running:
                        other.end()
                    raise
                running.remove(each)
                orphans += each.expected
                if os.path.exists(each.findings):
                    os.unlink(each.findings)
            reap()
            time.sleep(0.005)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    end = time.monotonic() + PATIENCE_SECONDS  # a thread that was killed may take a moment to be gone
    while True:
        # Boards of programs that were killed as a whole are removed when the next one makes its board.
        if os.fork() == 0:
            concagent.install(log=False, stderr=False, socket=False)
            multiprocessing.get_context("fork").Lock()
            end_program(0)
        os.wait()
        left = leftovers(roots)
        if not left or time.monotonic() > end:
            break
        reap()
        time.sleep(0.1)
    assert not left, left
    print(f"{rounds} rounds with seed {SEED}: {orphans} orphans, all of them told, and nothing else")


if __name__ == "__main__":
    try:
        main()
    except AssertionError:
        print(f"seed {SEED}", file=sys.stderr)
        raise
