"""Rows F03-F43 without pools and tasks: conditions, events, barriers, semaphores, queues, alone and mixed with locks.

Each program is written with holes; the first filling hangs, the others are its corrected twins (row F36) and come to their
end in silence.  A row that says STUCK is found as a stall or as a deadlock that names the same threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

HEAD = """
import queue, threading
from scaffold import Gate, finish, pause, until, waiting

def run(*targets):
    threads = [threading.Thread(target=target, name=target.__name__) for target in targets]
    for thread in threads:
        thread.start()
    return threads

def join(threads):
    for thread in threads:
        thread.join()
    finish()
"""


class Row(NamedTuple):
    """A program with holes, what hangs in it, and what fills the holes."""

    program: str
    wrong: dict[str, str]
    right: tuple[dict[str, str], ...]
    kind: str  # of the finding
    members: tuple[str, ...]
    words: str = ""  # what its title says
    behind: tuple[str, ...] = ()


ROWS: dict[str, Row] = {}

ROWS["f03_f04 two waiters and one notify"] = Row(
    """
c, ready = threading.Condition(), []
def first():
    with c:
        while not ready:
            c.wait()
def second():
    with c:
        while not ready:
            c.wait()
threads = run(first)
waiting(1, "condition")
threads += run(second)
waiting(2, "condition")
with c:
    ready.append(1)
    {signal}
join(threads)
""",
    {"signal": "c.notify()"},
    ({"signal": "c.notify_all()"}, {"signal": "c.notify(); c.notify()"}, {"signal": "c.notify(); c.notify_all()"}),
    "stall",
    ("second",),
    "condition",
)
ROWS["f05 a woken waiter wants what its notifier keeps"] = Row(
    """
A, B = threading.Lock(), threading.Lock()
c = threading.Condition(A)
def waiter():
    with c:
        c.wait()
        with B:
            pass
def notifier():
    with {kept}:
        waiting(1, "condition")
        with c:
            c.notify()
        {then}
        with A:
            pass
join(run(waiter, notifier))
""",
    {"kept": "B", "then": 'waiting(1, "lock")'},
    ({"kept": "threading.Lock()", "then": "pass"},),
    "deadlock",
    ("notifier", "waiter"),
)
ROWS["f06 a producer with room wants what a consumer keeps"] = Row(
    """
M, items = threading.Lock(), [1]
room = threading.Condition()
def producer():
    with room:
        while items:
            room.wait()
        items.append(2)
        {inside}
    {after}
def consumer():
    with M:
        waiting(1, "condition")
        with room:
            items.pop()
            room.notify()
        {until}
        with room:
            pass
join(run(producer, consumer))
""",
    {"inside": "with M: pass", "until": 'waiting(1, "lock")', "after": "pass"},
    ({"inside": "pass", "until": "pass", "after": "with M: pass"},),
    "deadlock",
    ("consumer", "producer"),
)
ROWS["f08_f10 one condition for empty and for full"] = Row(
    """
lock, items = threading.Lock(), []
filled = threading.Condition(lock)
emptied = {emptied}
def take():
    with filled:
        while not items:
            filled.wait()
        items.pop()
        emptied.notify()
def producer():
    with filled:
        for item in range(2):
            while items:
                emptied.wait()
            items.append(item)
            filled.notify()
first = run(take)
waiting(1, "condition")
second = run(take)
waiting(2, "condition")
join([*first, *second, *run(producer)])
""",
    {"emptied": "filled"},
    ({"emptied": "threading.Condition(lock)"},),
    "stall",
    ("producer", "take"),
    "condition",
)
ROWS["f12 who would notify wants the lock of who waits"] = Row(
    """
L, ready = threading.Lock(), threading.Condition()
done = []
def service():
    with {lock}:
        with ready:
            while not done:
                ready.wait()
def notifier():
    waiting(1, "condition")
    with L:
        with ready:
            done.append(1)
            ready.notify()
join(run(service, notifier))
""",
    {"lock": "L"},
    ({"lock": "threading.Lock()"},),
    "deadlock",
    ("notifier", "service"),
)
ROWS["f13 three of four at a barrier"] = Row(
    """
barrier = threading.Barrier({parties})
def a(): barrier.wait()
def b(): barrier.wait()
def c(): barrier.wait()
join(run(a, b, c))
""",
    {"parties": "4"},
    ({"parties": "3"},),
    "stall",
    ("a", "b", "c"),
    "1 of 4 is missing",
)
ROWS["f15 a wait group is waited for inside the loop"] = Row(
    """
class WaitGroup:
    def __init__(self):
        self.changed, self.left = threading.Condition(), 0
    def add(self, number):
        with self.changed:
            self.left += number
            if self.left == 0:
                self.changed.notify_all()
    def wait(self):
        with self.changed:
            while self.left:
                self.changed.wait()
def parent():
    group = WaitGroup()
    group.add(3)
    for _ in range(3):
        threading.Thread(target=group.add, args=(-1,)).start()
        {inside}
    group.wait()
join(run(parent))
""",
    {"inside": "group.wait()"},
    ({"inside": "pass"},),
    "stall",
    ("parent",),
    "condition",
)
EVENT_UNDER_LOCK = """
L, done = threading.{lock}(), threading.Event()
def holder():
    with L:
        {inside}
    done.wait()
def setter():
    {until}
    with L:
        pass
    done.set()
join(run(holder, setter))
"""
ROWS["f16 who stops holds the lock that the workers need"] = Row(
    EVENT_UNDER_LOCK.replace("{lock}", "Lock"),
    {"inside": "done.wait()", "until": 'waiting(1, "event")'},
    ({"inside": "pass", "until": "pass"},),
    "deadlock",
    ("holder", "setter"),
    "not set",
)
ROWS["f32 a follower waits for the leader with the lock that the leader needs"] = Row(
    EVENT_UNDER_LOCK.replace("{lock}", "RLock"),
    {"inside": "done.wait()", "until": 'waiting(1, "event")'},
    ({"inside": "pass", "until": "pass"},),
    "deadlock",
    ("holder", "setter"),
)
ROWS["f17 the setter comes after the wait"] = Row(
    """
drained = threading.Event()
def drain():
    {first}
    {second}
join(run(drain))
""",
    {"first": "drained.wait()", "second": "drained.set()"},
    ({"first": "drained.set()", "second": "drained.wait()"},),
    "deadlock",
    ("drain",),
    "not set",
)
ROWS["f18 the reader of a status has stopped"] = Row(
    """
status, stop = queue.Queue(1), threading.Event()
def service():
    stop.wait()
    {last}
def client():
    stop.set()
    status.put(1)
    status.put(2)
join(run(service, client))
""",
    {"last": "return"},
    ({"last": "status.get(); status.get()"},),
    "stall",
    ("client",),
    "full, 1 of 1",
)
ROWS["f19 a parent returns before its worker has answered"] = Row(
    """
answers = queue.Queue({size})
def worker():
    answers.put(1)
    answers.put(2)
run(worker)
{end}
""",
    {"size": "1", "end": ""},
    ({"size": "2", "end": "finish()"},),
    "stall",
    ("worker",),
    "full, 1 of 1",
)
ROWS["f20 two items for one place"] = Row(
    """
jobs = queue.Queue({size})
jobs.put(1)
jobs.put(2)
finish()
""",
    {"size": "1"},
    ({"size": "2"}, {"size": "0"}),
    "stall",
    ("MainThread",),
    "full, 1 of 1",
)
ROWS["f21 of two results one is fetched"] = Row(
    """
one, two = queue.Queue({size}), queue.Queue({size})
def left(): one.put(1)
def right():
    two.put(1)
    two.put(2)
threads = run(left, right)
one.get(timeout=5)
join(threads)
""",
    {"size": "1"},
    ({"size": "2"},),
    "stall",
    ("right",),
    "full, 1 of 1",
)
ROWS["f22 a worker waits for an event that a cancelled thread would have set"] = Row(
    """
ready, cancelled = threading.Event(), True
def worker(): ready.wait()
def setter():
    {early}
    ready.set()
run(worker, setter)
{end}
""",
    {"early": "if cancelled: return", "end": ""},
    ({"early": "pass", "end": "finish()"},),
    "stall",
    ("worker",),
    "not set",
)
ROWS["f23 the queue is full before its consumer is started"] = Row(
    """
jobs = queue.Queue({size})
def consumer():
    for _ in range(2):
        jobs.get()
jobs.put(1)
jobs.put(2)
join(run(consumer))
""",
    {"size": "1"},
    ({"size": "2"},),
    "stall",
    ("MainThread",),
    "full",
)
ROWS["f24 each puts into the full queue of the other"] = Row(
    """
a, b = queue.Queue({size}), queue.Queue({size})
def left():
    for _ in range(2):
        a.put(1)
    b.get()
def right():
    for _ in range(2):
        b.put(1)
    a.get()
join(run(left, right))
""",
    {"size": "1"},
    ({"size": "2"},),
    "deadlock",
    ("left", "right"),
    "full, 1 of 1",
)
ROWS["f25 both wait for what the other should have posted first"] = Row(
    """
received, done = queue.{kind}(), threading.Event()
def worker():
    received.get()
    done.set()
threads = run(worker)
{post}
done.wait()
join(threads)
""",
    {"kind": "Queue", "post": "pass"},
    ({"kind": "Queue", "post": "received.put(1)"}, {"kind": "SimpleQueue", "post": "received.put(1)"}),
    "stall",
    ("MainThread", "worker"),
    "empty",
)
ROWS["f26 a reader closes itself and waits for its own end"] = Row(
    """
class Reader:
    def __init__(self):
        self.closed = {kind}
    def close(self):
        {wait}
    def handle(self):
        self.close()
    def read(self):
        try:
            self.handle()
        finally:
            self.closed.{end}
reader = Reader()
def reading(): reader.read()
join(run(reading))
""",
    {"kind": "threading.Event()", "wait": "self.closed.wait()", "end": "set()"},
    (
        {"kind": "threading.Event()", "wait": "self.closed.is_set()", "end": "set()"},
        {"kind": "threading.Event()", "wait": "self.closed.wait(0.1)", "end": "set()"},
    ),
    "deadlock",
    ("reading",),
    "not set",
    ("MainThread",),
)
ROWS["f26b a future that its own thread would complete"] = Row(
    """
from concurrent.futures import Future
def reading():
    closed = Future()
    {wait}
    closed.set_result(1)
join(run(reading))
""",
    {"wait": "closed.result()"},
    ({"wait": "closed.done()"},),
    "deadlock",
    ("reading",),
    "future",
    ("MainThread",),
)
ROWS["f26c somebody else would set it, too"] = Row(
    """
closed, more = threading.Event(), threading.Event()
def reading():
    {wait}
    closed.set()
def other():
    more.wait()
    closed.set()
join(run(reading, other))
""",
    {"wait": "closed.wait()"},
    ({"wait": "more.set()"},),
    "stall",
    ("other", "reading"),
    "not set",
)
ROWS["f27 senders remain when their receiver is gone"] = Row(
    """
jobs = queue.Queue(1)
jobs.put(0)
def sender(): jobs.put(1)
def receiver():
    waiting(5, "queue")
    {receive}
join(run(sender, sender, sender, sender, sender, receiver))
""",
    {"receive": "return"},
    ({"receive": "[jobs.get() for _ in range(6)]"},),
    "stall",
    ("sender",) * 5,
    "full, 1 of 1",
)
PUT_UNDER_LOCK = """
L, jobs = threading.Lock(), queue.Queue(1)
jobs.put(0)
def giver():
    {with_lock}:
        jobs.put(1)
def taker():
    {until}
    with L:
        {under}
    {after}
{more}
join(run(giver, taker{others}))
"""
PUT_WRONG = {
    "with_lock": "with L",
    "until": 'waiting(1, "queue")',
    "under": "jobs.get()",
    "after": "pass",
    "more": "",
    "others": "",
}
PUT_RIGHT = {**PUT_WRONG, "with_lock": "if True", "until": "pass"}
for name in (
    "f28 a token is put with the lock that its consumer wants",
    "f29 a writer fills the queue with the lock that the closer needs to drain it",
    "f31 an update is put with the lock that the balancer wants",
    "f34 a distributor puts with the lock that the stopper needs",
):
    ROWS[name] = Row(PUT_UNDER_LOCK, PUT_WRONG, (PUT_RIGHT,), "deadlock", ("giver", "taker"), "full, 1 of 1")
ROWS["f31b the consumer takes after it had the lock"] = Row(
    PUT_UNDER_LOCK,
    {**PUT_WRONG, "under": "pass", "after": "jobs.get()"},
    ({**PUT_RIGHT, "under": "pass", "after": "jobs.get()"},),
    "deadlock",
    ("giver", "taker"),
)
ROWS["f33 a third one is behind two"] = Row(
    PUT_UNDER_LOCK,
    {
        **PUT_WRONG,
        "more": "def third():\n    waiting(1, 'queue')\n    waiting(1, 'lock')\n    with L: pass",
        "others": ", third",
    },
    ({**PUT_RIGHT, "more": "def third():\n    with L: pass", "others": ", third"},),
    "deadlock",
    ("giver", "taker"),
    behind=("third",),
)
ROWS["f30 a change waits with the lock until the monitor has taken its word"] = Row(
    """
L, stop = threading.Lock(), queue.Queue()
def change():
    with {lock}:
        stop.put(1)
        stop.join()
def monitor():
    {until}
    with L:
        stop.get()
        stop.task_done()
join(run(change, monitor))
""",
    {"lock": "L", "until": 'waiting(1, "queue")'},
    ({"lock": "threading.Lock()", "until": "pass"},),
    "deadlock",
    ("change", "monitor"),
    "1 task not done",
)
ROWS["f35 a lock, a slot, a lock"] = Row(
    """
A, B, slot = threading.Lock(), threading.Lock(), threading.Semaphore({slots})
def one():
    with slot:
        {first}
        with A: pass
def two():
    with A:
        {second}
        with B: pass
def three():
    with B:
        {third}
        with slot: pass
join(run(one, two, three))
""",
    {
        "slots": "1",
        "first": "until(A.locked)",
        "second": "until(B.locked)",
        "third": 'waiting(2, "lock")',
    },
    ({"slots": "2", "first": "pass", "second": "pass", "third": "pass"},),
    "deadlock",
    ("one", "three", "two"),
)
ROWS["f37 eleven items for ten places"] = Row(
    """
jobs = queue.{made}({size})
for item in range(11):
    jobs.put(item)
finish()
""",
    {"made": "LifoQueue", "size": "10"},
    ({"made": "LifoQueue", "size": "11"}, {"made": "PriorityQueue", "size": "0"}),
    "stall",
    ("MainThread",),
    "full, 10 of 10",
)
ROWS["f41 who released so far has ended"] = Row(
    """
s = threading.Semaphore(0)
def waiter():
    s.acquire()
    s.acquire()
def releaser():
    waiting(1, "semaphore")
    s.release()
    {again}
join(run(waiter, releaser))
""",
    {"again": "return"},
    ({"again": "s.release()"},),
    "stall",
    ("waiter",),
    "0 permits free",
)
ROWS["f43 one task is never said to be done"] = Row(
    """
jobs = queue.Queue()
def consumer():
    for item in iter(jobs.get, None):
        {unless}
        jobs.task_done()
threading.Thread(target=consumer, name="consumer", daemon=True).start()
for item in range(3):
    jobs.put(item)
jobs.join()
finish()
""",
    {"unless": "if item == 1: continue"},
    ({"unless": "pass"},),
    "stall",
    ("MainThread", "consumer"),
    "1 task not done",
)

CASES = [pytest.param(row, id=name.replace(" ", "_")) for name, row in ROWS.items()]
TWINS = [
    pytest.param(row, holes, id=f"{name.replace(' ', '_')}-{number}")
    for name, row in ROWS.items()
    for number, holes in enumerate(row.right)
]


def _filled(row: Row, holes: dict[str, str]) -> str:
    text = HEAD + row.program
    for hole, code in holes.items():
        text = text.replace("{" + hole + "}", code)
    return text


@pytest.mark.parametrize("row", CASES)
def test_f_row_is_found_and_proven(runner: Any, row: Row) -> None:
    found = runner.hangs(_filled(row, row.wrong)).only

    roles = sorted((actor["role"], actor["name"]) for actor in found["actors"])
    behind = [name for role, name in roles if role == "behind" and (name != "MainThread" or name in row.behind)]
    members = [name for role, name in roles if role == "member" and (name != "MainThread" or name in row.members)]
    assert (found["kind"], found["confidence"]) == (row.kind, "proven"), found["title"]
    assert members == sorted(row.members), found["title"]
    assert behind == list(row.behind), found["title"]
    details = [resource["detail"] or resource["kind"] for resource in found["resources"]]
    assert row.words in " ".join(details), details


@pytest.mark.parametrize(("row", "holes"), TWINS)
def test_f36_the_corrected_program_is_silent(runner: Any, row: Row, holes: dict[str, str]) -> None:
    runner.silent(_filled(row, holes))


def test_f07_three_notifies_before_the_predicate_is_true_are_silent(runner: Any) -> None:
    runner.silent(
        HEAD
        + """
c, ready = threading.Condition(), []
def waiter():
    with c:
        while not ready:
            c.wait()
threads = run(waiter)
for _ in range(3):
    waiting(1, "condition")
    with c:
        c.notify()
with c:
    ready.append(1)
    c.notify()
join(threads)
"""
    )


def test_f14_a_barrier_used_five_times_by_as_many_as_it_wants_is_silent(runner: Any) -> None:
    runner.silent(
        HEAD
        + """
barrier = threading.Barrier(4)
def party():
    for _ in range(5):
        barrier.wait()
join(run(party, party, party, party))
"""
    )


PERMITS = """
s, L, set_late = threading.Semaphore(2), threading.Lock(), threading.Event()
def keeps_and_wants():
    with s:
        until(L.locked)
        with L:
            pass
def keeps():
    with s:
        waiting(1, "semaphore")
        {then}
def wants():
    with L:
        until(lambda: s._value == 0)
        with s:
            pass
join(run(keeps_and_wants, keeps, wants))
"""


def test_f38_a_permit_of_who_can_go_on_is_silent(runner: Any) -> None:
    runner.silent(HEAD + PERMITS.replace("{then}", "pause(2.2)"))


def test_f39_the_same_with_that_one_asleep_is_a_deadlock(runner: Any) -> None:
    found = runner.hangs(HEAD + PERMITS.replace("{then}", "set_late.wait()")).only

    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    members = {actor["name"] for actor in found["actors"] if actor["role"] == "member"}
    assert members == {"keeps_and_wants", "wants", "keeps"}


def test_f40_a_semaphore_given_by_threads_that_never_took_it_is_silent_and_they_are_known(runner: Any) -> None:
    outcome = runner.silent(
        HEAD
        + """
import concagent
s = threading.Semaphore(0)
def taker():
    for _ in range(20):
        s.acquire()
def giver():
    for _ in range(19):
        waiting(1, "semaphore")
        s.release()
        until(lambda: s._value == 0)
threads = run(taker, giver)
threads[1].join()
waiting(1, "semaphore")
picture = concagent.snapshot()
names = {actor.serial: actor.name for actor in picture.actors}
print(sorted({names[edge.actor] for edge in picture.signals}))
s.release()
join(threads)
"""
    )

    assert outcome.stdout == "['giver']\nDONE\n"


def test_f42_a_permit_given_back_twice_is_a_misuse_and_the_error_is_the_originals(runner: Any) -> None:
    outcome = runner.ends(
        HEAD
        + """
s = threading.BoundedSemaphore(1)
s.acquire()
s.release()
try:
    s.release()
except ValueError as error:
    print(error)
finish()
"""
    )

    assert (outcome.only["kind"], outcome.only["detail"]) == ("misuse", "over-release")
    assert outcome.only["actors"][0]["stack"][-1]["source"] == "s.release()"
    assert outcome.stdout == "Semaphore released too many times\nDONE\n"


def test_f42_twin_a_permit_given_back_once_is_silent(runner: Any) -> None:
    runner.silent(HEAD + "s = threading.BoundedSemaphore(1)\nwith s: pass\nwith s: pass\nfinish()\n")


E18 = """
L, ready = threading.Lock(), threading.Event()
L.acquire()
def worker():
    with L:
        {first}
{more}
run(worker)
{last}
"""


def test_e18_a_worker_that_wants_what_the_main_thread_left_held_is_a_deadlock_at_exit(runner: Any) -> None:
    found = runner.hangs(HEAD + E18.format(first="pass", more="", last="")).only

    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    assert sorted(actor["name"] for actor in found["actors"]) == ["MainThread", "worker"]
    assert {resource["kind"] for resource in found["resources"]} == {"lock", "thread"}


def test_e18_twin_the_lock_given_back_is_silent(runner: Any) -> None:
    runner.silent(HEAD + E18.format(first="finish()", more="", last="L.release()"))


def test_e18_a_lock_that_a_daemon_keeps_is_wanted_at_exit(runner: Any) -> None:
    program = """
import atexit
M = threading.Lock()
def keeper():
    with M:
        {wait}
kept = Gate()
def late():
    {until}
    with M:
        pass
threading.Thread(target=keeper, name="keeper", daemon=True).start()
{end}(late)
"""
    found = runner.hangs(
        HEAD + program.format(wait="threading.Event().wait()", until="waiting(1, 'event')", end="atexit.register")
    ).only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")
    assert sorted(actor["name"] for actor in found["actors"]) == ["MainThread", "keeper"]


def test_e18_twin_a_daemon_that_gives_it_back_is_silent(runner: Any) -> None:
    runner.silent(
        HEAD
        + """
import atexit
M = threading.Lock()
def keeper():
    with M:
        pause(1.2)
def late():
    with M:
        finish()
threading.Thread(target=keeper, daemon=True).start()
until(M.locked)
atexit.register(late)
"""
    )


@pytest.mark.parametrize("daemon", [False, True])
def test_a_timer_that_has_not_gone_off_counts_as_alive(runner: Any, daemon: bool) -> None:
    runner.silent(
        HEAD
        + f"""
ready = threading.Event()
timer = threading.Timer(2.2, ready.set)
timer.daemon = {daemon}
timer.start()
def waiter(): ready.wait()
join(run(waiter))
"""
    )


def test_twin_of_the_timer_a_cancelled_one_is_nobody(runner: Any) -> None:
    found = runner.hangs(
        HEAD
        + """
ready = threading.Event()
timer = threading.Timer(30, ready.set)
timer.start()
def waiter(): ready.wait()
threads = run(waiter)
waiting(1, "event")
timer.cancel()
join(threads)
"""
    ).only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")
    assert [actor["name"] for actor in found["actors"] if actor["role"] == "member"] == ["waiter"]


POOL = """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(2)
pool.submit(int).result()
done = threading.Event()
{before}
done.wait()
"""


def test_a_pool_without_work_while_the_main_thread_waits_for_the_end_is_idle(runner: Any) -> None:
    child = runner.start(HEAD + POOL.replace("{before}", "pool.submit(pause, 0.1)\nfinish('IDLE')"))
    child.until(lambda: "IDLE" in child.stdout())
    child.linger(2.5)

    assert child.end().findings == []


def test_the_same_with_a_worker_that_waits_is_a_stall(runner: Any) -> None:
    found = runner.hangs(HEAD + POOL.replace("{before}", "pool.submit(done.wait)")).only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")


def test_a_thread_of_its_own_at_an_empty_simple_queue_is_a_stall(runner: Any) -> None:
    found = runner.hangs(HEAD + "jobs = queue.SimpleQueue()\ndef worker(): jobs.get()\njoin(run(worker))\n").only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")
    assert "(empty)" in found["title"]


def test_twin_of_the_simple_queue_an_item_ends_it_in_silence(runner: Any) -> None:
    runner.silent(
        HEAD
        + "jobs = queue.SimpleQueue()\ndef worker(): jobs.get()\nthreads = run(worker)\npause(2.2)\njobs.put(1)\njoin(threads)\n"
    )


POLLS = """
ready = threading.Event()
def poller():
    while not ready.wait(timeout=0.1):
        pass
def setter():
    {first}
    ready.set()
join(run(poller, poller, setter))
"""


def test_f48_a_loop_that_polls_an_event_is_silent(runner: Any) -> None:
    runner.silent(HEAD + POLLS.format(first="pause(5)"), stall_after=1)


def test_f48_positive_twin_who_would_set_it_is_found_though_the_others_poll(runner: Any) -> None:
    found = runner.hangs(HEAD + POLLS.format(first="threading.Event().wait()"), stall_after=1).only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")
    assert [actor["name"] for actor in found["actors"] if actor["role"] == "member"] == ["setter"]


# ---------------------------------------------------------------- F50: everybody is asleep, the main thread in Event.wait()

F50 = {
    "alone": ("", {"MainThread"}),
    "with threads at events": ("run(threading.Event().wait, threading.Event().wait)", {"MainThread", "wait"}),
    "with a daemon at an event": (
        "threading.Thread(target=threading.Event().wait, name='wait', daemon=True).start()",
        {"MainThread", "wait"},
    ),
    "with a daemon at a semaphore": (
        "threading.Thread(target=threading.Semaphore(0).acquire, name='wait', daemon=True).start()",
        {"MainThread", "wait"},
    ),
    "after its worker has failed": (
        "def work(): raise SystemExit\nfor thread in run(work): thread.join()",
        {"MainThread"},
    ),
}


@pytest.mark.parametrize("others", F50)
def test_f50_everybody_is_asleep_and_main_waits_for_an_event(runner: Any, others: str) -> None:
    start, members = F50[others]
    found = runner.hangs(HEAD + f"done = threading.Event()\n{start}\ndone.wait()\n").only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")
    assert {actor["name"] for actor in found["actors"] if actor["role"] == "member"} == members


@pytest.mark.parametrize(
    "alive",
    [
        "threading.Thread(target=pause, args=(2.5,), daemon=True).start()",
        "threading.Timer(2.5, print).start()",
        "import socket\ns = socket.create_server(('127.0.0.1', 0))\nthreading.Thread(target=s.accept, daemon=True).start()",
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: done.set())",
        "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2.5)'])",
        "jobs = queue.Queue()\nthreading.Thread(target=jobs.get, daemon=True).start()",
    ],
    ids=["a thread at work", "a timer", "a thread at a socket", "a signal handler", "a child", "an idle worker"],
)
def test_f50_twin_somebody_may_come_yet(runner: Any, alive: str) -> None:
    child = runner.start(HEAD + f"done = threading.Event()\n{alive}\nfinish('IDLE')\ndone.wait()\n")
    child.until(lambda: "IDLE" in child.stdout())
    child.linger(2.2)

    assert child.end().findings == []


CTRL_C = {
    "alone": "",
    "with workers": "jobs = queue.Queue()\nfor _ in range(2): threading.Thread(target=jobs.get).start()",
    "with a child and a daemon": """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
threading.Thread(target=threading.Event().wait, daemon=True).start()
""",
}


@pytest.mark.parametrize("others", CTRL_C)
def test_f50_twin_a_main_thread_that_waits_for_ctrl_c_is_left_in_peace(runner: Any, others: str) -> None:
    wait = "try:\n    threading.Event().wait()\nexcept KeyboardInterrupt:\n    pass\n"
    child = runner.start(HEAD + f"{CTRL_C[others]}\nfinish('IDLE')\n{wait}")
    child.until(lambda: "IDLE" in child.stdout())
    child.linger(2.2)

    assert child.end().findings == []


def test_f50_in_a_test_runner_that_handles_ctrl_c_is_found(runner: Any) -> None:
    found = runner.hangs(
        HEAD
        + """
def test():
    threading.Event().wait()
def runner():
    try:
        test()
    except KeyboardInterrupt:
        pass
runner()
"""
    ).only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")


@pytest.mark.parametrize("take", ["results.get()", "results.get(); results.get()"])
def test_who_waits_for_a_result_whose_thread_has_failed_is_stuck(runner: Any, take: str) -> None:
    """The queue has been used or not: with nobody else there, the result does not come."""
    puts = take.count("get") - 1
    found = runner.hangs(
        HEAD
        + f"""
results = queue.Queue()
def work():
    for number in range({puts}):
        results.put(number)
    raise SystemExit
run(work)
{take}
"""
    ).only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")
    assert [actor["name"] for actor in found["actors"]] == ["MainThread"]


def test_a_main_thread_at_a_queue_that_was_used_is_stuck_though_its_workers_are_idle(runner: Any) -> None:
    found = runner.hangs(
        HEAD
        + """
jobs, results = queue.Queue(), queue.Queue()
def work():
    while True:
        job = jobs.get()
        if job:
            results.put(job)
threading.Thread(target=work, name="work", daemon=True).start()
for job in (1, 0):
    jobs.put(job)
for _ in range(2):
    results.get()
"""
    ).only

    assert (found["kind"], found["confidence"]) == ("stall", "proven")
    assert "MainThread" in {actor["name"] for actor in found["actors"] if actor["role"] == "member"}
