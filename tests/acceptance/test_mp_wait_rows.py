"""Waits for what multiprocessing makes of semaphores and pipes: shown as what they are, told when nobody can end them.

Rows H01 to H07 with pipes and queues in them, on all start methods, each with its silent twin.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")

METHODS = ["fork", "spawn", "forkserver"]

PROGRAM = """
    import multiprocessing as mp, os, signal, subprocess, sys, threading, time
    from concurrent.futures import ProcessPoolExecutor
    HERE = "{method}"
    {functions}
    def main():
        context = mp.get_context(HERE)
        {main}
        print("DONE", flush=True)
    if __name__ == "__main__":
        main()
"""


@pytest.fixture(autouse=True)
def patience(runner: Any) -> None:
    """Give four processes the time that they need to start on a busy machine."""
    runner.limit_seconds = 40.0


def program(method: str, functions: str, main: str) -> str:
    """Return a program of these functions, and a main function of these lines."""
    indented = functions.strip("\n").replace("\n", "\n    ")
    return PROGRAM.format(method=method, functions=indented, main=main.strip("\n").replace("\n", "\n        "))


def kinds(found: dict[str, Any]) -> set[str]:
    return {resource["kind"] for resource in found["resources"]}


def waits_for(found: dict[str, Any]) -> dict[str, str]:
    """Return what each actor of a finding waits for: name without pid -> kind."""
    resources = {resource["id"]: resource["kind"] for resource in found["resources"]}
    return {
        actor["name"].split(" (")[0]: resources[actor["waits_for"]] for actor in found["actors"] if actor["waits_for"]
    }


# ---------------------------------------------------------------- pipes

ASK = """
def child(connection):
    connection.recv()
    connection.send("answer")
"""
BOTH_RECEIVE = """
ours, theirs = context.Pipe()
process = context.Process(target=child, args=(theirs,), name="child")
process.start()
{before}
ours.recv()
process.join()
"""


@pytest.mark.parametrize("method", METHODS)
def test_h01_parent_and_child_that_wait_for_each_others_message_are_a_deadlock(runner: Any, method: str) -> None:
    outcome = runner.hangs(program(method, ASK, BOTH_RECEIVE.format(before="")))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("deadlock", "proven", "pipe")
    assert waits_for(found) == {"MainProcess": "pipe", "child": "pipe"}
    assert {resource["name"] for resource in found["resources"]} == {"ours", "connection"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "before",
    [
        "ours.send('question')",
        "threading.Timer(2.5, ours.send, ('question',)).start()",
        "context.Process(target=late, args=(ours,)).start()",
    ],
    ids=["asked first", "a late thread", "a late process"],
)
def test_h01_twin_a_question_that_comes_late_is_waited_for_in_silence(runner: Any, method: str, before: str) -> None:
    late = "def late(connection):\n    time.sleep(2.5)\n    connection.send('question')"

    runner.silent(program(method, ASK + late, BOTH_RECEIVE.format(before=before)))


@pytest.mark.parametrize(
    ("functions", "main"),
    [
        (ASK, "while not ours.poll(0.5):\n    rounds += 1\n    if rounds == 5: ours.send('question')"),
        (
            "def handle(*_): pass\n" + ASK,
            "signal.signal(signal.SIGUSR2, handle)\ntime.sleep(2.5)\nours.send('question')",
        ),
    ],
    ids=["a time limit", "a pause"],
)
def test_h01_twin_who_asks_in_the_end_is_silent(runner: Any, functions: str, main: str) -> None:
    lines = "ours, theirs = context.Pipe()\nrounds = 0\ncontext.Process(target=child, args=(theirs,)).start()\n" + main

    runner.silent(program("fork", functions, lines + "\nours.recv()"))


@pytest.mark.parametrize(
    "somebody",
    [
        "subprocess.Popen(['sleep', '30'], pass_fds=[ours.fileno()])",
        "threading.Thread(target=tick, daemon=True).start()",
        "signal.signal(signal.SIGALRM, handle); signal.alarm(30)",
    ],
    ids=["a foreign process has an end", "a thread that is awake", "a signal handler"],
)
def test_h01_twin_as_long_as_somebody_could_write_nothing_is_said(runner: Any, somebody: str) -> None:
    tick = "def tick():\n    while True: time.sleep(0.2)\ndef handle(*_): pass"
    child = runner.start(program("fork", ASK + tick, BOTH_RECEIVE.format(before=somebody)))

    child.linger(4)

    assert child.end().findings == []


@pytest.mark.parametrize("method", METHODS)
def test_h01_a_child_joined_before_it_gets_the_message_that_it_waits_for_is_a_deadlock(
    runner: Any, method: str
) -> None:
    main = BOTH_RECEIVE.format(before="process.join()")
    outcome = runner.hangs(program(method, ASK, main))

    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    assert waits_for(found) == {"MainProcess": "process", "child": "pipe"}


def test_who_only_waits_for_a_child_makes_no_board(runner: Any) -> None:
    child = """
def child():
    time.sleep(2.5)
    print([name for name in os.listdir("/dev/shm") if f"-{os.getppid()}-" in name])
"""
    main = "process = context.Process(target=child)\nprocess.start()\nprocess.join()"
    outcome = runner.silent(program("fork", child, main))

    assert outcome.stdout.startswith("[]")


FLOOD = """
def child(connection):
    for _ in range(40):
        connection.send(bytes(65536))
    connection.recv()
def drain(connection, pause):
    for _ in range(40):
        time.sleep(pause)
        connection.recv()
"""
BOTH_SEND = """
ours, theirs = context.Pipe()
process = context.Process(target=child, args=(theirs,), name="child")
process.start()
theirs.close()
{before}
for _ in range(40): ours.send(bytes(65536))
"""


@pytest.mark.parametrize("method", METHODS)
def test_h01_parent_and_child_that_fill_both_directions_of_a_pipe_are_a_deadlock(runner: Any, method: str) -> None:
    outcome = runner.hangs(program(method, FLOOD, BOTH_SEND.format(before="")))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("deadlock", "proven", "pipe")
    assert {resource["detail"] for resource in found["resources"]} == {"full"}


def test_h01_twin_a_slow_reader_of_a_full_pipe_is_silent(runner: Any) -> None:
    before = "threading.Thread(target=drain, args=(ours, 0.05), daemon=True).start()"
    reads = FLOOD.replace("    connection.recv()\ndef drain", "    for _ in range(40): connection.recv()\ndef drain")

    runner.silent(program("fork", reads, BOTH_SEND.format(before=before)))


# ---------------------------------------------------------------- mixed rings

ANSWER_UNDER_LOCK = """
def child(connection, lock):
    connection.recv()
    with lock:
        connection.send("answer")
def tick():
    while True: time.sleep(0.2)
"""
ASK_UNDER_LOCK = """
lock = context.Lock()
ours, theirs = context.Pipe()
process = context.Process(target=child, args=(theirs, lock), name="child")
process.start()
theirs.close()
threading.Thread(target=tick, daemon=True).start()
{ask}
"""


@pytest.mark.parametrize("method", METHODS)
def test_h07_an_answer_awaited_under_a_lock_that_its_sender_needs_is_a_deadlock(runner: Any, method: str) -> None:
    ask = "with lock:\n    ours.send('question')\n    ours.recv()"
    outcome = runner.hangs(program(method, ANSWER_UNDER_LOCK, ASK_UNDER_LOCK.format(ask=ask)))

    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    assert waits_for(found) == {"MainProcess": "pipe", "child": "mp-lock"}


@pytest.mark.parametrize("method", METHODS)
def test_h07_twin_a_lock_given_back_before_the_answer_is_awaited_is_silent(runner: Any, method: str) -> None:
    ask = "with lock:\n    ours.send('question')\n    time.sleep(1.5)\nours.recv()"

    runner.silent(program(method, ANSWER_UNDER_LOCK, ASK_UNDER_LOCK.format(ask=ask)))


POOL = """
def start(given):
    global lock
    lock = given
def job(number):
    with lock:
        return number
"""
RESULT_UNDER_LOCK = """
lock = context.Lock()
with ProcessPoolExecutor(2, context, initializer=start, initargs=(lock,)) as pool:
    {ask}
"""


@pytest.mark.parametrize("method", METHODS)
def test_h07_a_result_awaited_under_a_lock_that_the_worker_needs_is_a_deadlock(runner: Any, method: str) -> None:
    ask = "with lock: pool.submit(job, 1).result()"
    outcome = runner.hangs(program(method, POOL, RESULT_UNDER_LOCK.format(ask=ask)))

    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    members = [actor for actor in found["actors"] if actor["role"] == "member"]
    assert len({actor["pid"] for actor in members}) >= 2
    assert {"future", "mp-lock"} <= kinds(found)


@pytest.mark.parametrize("method", METHODS)
def test_h07_twin_a_result_that_takes_its_time_is_silent(runner: Any, method: str) -> None:
    ask = "\n    ".join(
        [
            "with lock:",
            "    future = pool.submit(job, 1)",
            "    time.sleep(1.5)",
            "print(future.result(), pool.submit(time.sleep, 2.5).result())",
        ]
    )

    runner.silent(program(method, POOL, RESULT_UNDER_LOCK.format(ask=ask)))


@pytest.mark.parametrize("method", METHODS)
def test_h07_a_map_of_a_pool_awaited_under_a_lock_that_its_workers_need_is_a_deadlock(runner: Any, method: str) -> None:
    main = """
lock = context.Lock()
with context.Pool(2, start, (lock,)) as pool:
    with lock: pool.map(job, range(4))
"""
    outcome = runner.hangs(program(method, POOL, main))

    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    assert {"future", "mp-lock"} <= kinds(found)


def test_h07_twin_a_map_whose_workers_get_the_lock_late_is_silent(runner: Any) -> None:
    main = """
lock = context.Lock()
with context.Pool(2, start, (lock,)) as pool:
    with lock:
        results = pool.map_async(job, range(4))
        time.sleep(4.5)
    print(results.get())
"""
    runner.silent(program("fork", POOL, main))


NEIGHBOURS = """
def child(left, right):
    left.recv()
    right.send("token")
"""


@pytest.mark.parametrize("method", METHODS)
def test_h02_four_processes_that_each_wait_for_their_neighbours_message_are_a_deadlock(
    runner: Any, method: str
) -> None:
    main = """
pipes = [context.Pipe(duplex=False) for _ in range(4)]
processes = [
    context.Process(target=child, args=(pipes[n][0], pipes[(n + 1) % 4][1]), name=f"process {n}") for n in range(4)
]
for process in processes: process.start()
for pipe in pipes:
    for end in pipe: end.close()
for process in processes: process.join()
"""
    outcome = runner.hangs(program(method, NEIGHBOURS, main))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("deadlock", "proven", "pipe")
    members = {actor["name"].split(" (")[0] for actor in found["actors"] if actor["role"] == "member"}
    assert members == {f"process {n}" for n in range(4)}
    assert [actor["name"].split(" (")[0] for actor in found["actors"] if actor["role"] == "behind"] == ["MainProcess"]


@pytest.mark.parametrize("method", METHODS)
def test_h02_twin_a_ring_of_processes_with_a_late_token_is_silent(runner: Any, method: str) -> None:
    main = """
pipes = [context.Pipe(duplex=False) for _ in range(4)]
processes = [context.Process(target=child, args=(pipes[n][0], pipes[(n + 1) % 4][1])) for n in range(4)]
for process in processes: process.start()
time.sleep(2.5)
pipes[0][1].send("token")
for process in processes: process.join()
"""
    runner.silent(program(method, NEIGHBOURS, main))


# ---------------------------------------------------------------- queues

QUEUES = """
def killed(queue):
    os.kill(os.getpid(), signal.SIGKILL)
def consume(queue):
    while queue.get() is not None: pass
def produce(queue):
    time.sleep(2.5)
    queue.put(1)
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("queue", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_a_queue_whose_only_producer_was_killed_is_waited_for_in_vain(runner: Any, method: str, queue: str) -> None:
    main = f"""
items = context.{queue}()
process = context.Process(target=killed, args=(items,), name="producer")
process.start()
items.get()
"""
    outcome = runner.hangs(program(method, QUEUES, main))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("stall", "proven", "mp-queue")
    assert [resource["name"] for resource in found["resources"]] == ["items"]
    assert "producer (pid" in found["reason"]
    assert "SIGKILL" in found["reason"] or method == "forkserver"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("queue", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_twin_a_slow_producer_is_waited_for_in_silence(runner: Any, method: str, queue: str) -> None:
    main = f"""
items = context.{queue}()
process = context.Process(target=produce, args=(items,))
process.start()
items.get()
process.join()
"""
    runner.silent(program(method, QUEUES, main))


@pytest.mark.parametrize("method", METHODS)
def test_consumers_that_nobody_tells_to_end_are_a_stall_with_their_joiner_behind(runner: Any, method: str) -> None:
    main = """
items = context.Queue()
processes = [context.Process(target=consume, args=(items,), name=f"consumer {n}") for n in range(3)]
for process in processes: process.start()
for n in range(5): items.put(n)
for process in processes: process.join()
"""
    outcome = runner.hangs(program(method, QUEUES, main))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("stall", "proven", "mp-queue")
    assert waits_for(found) == {f"consumer {n}": "mp-queue" for n in range(3)} | {"MainProcess": "process"}
    assert "mp-lock" not in kinds(found)


@pytest.mark.parametrize("method", METHODS)
def test_twin_consumers_that_are_told_to_end_late_are_silent(runner: Any, method: str) -> None:
    main = """
items = context.Queue()
processes = [context.Process(target=consume, args=(items,)) for n in range(3)]
for process in processes: process.start()
time.sleep(2.5)
for process in processes: items.put(None)
for process in processes: process.join()
"""
    runner.silent(program(method, QUEUES, main))


@pytest.mark.parametrize("wait", ["mp.Event().wait()", "results.get()", "for process in processes: process.join()"])
def test_twin_a_program_that_waits_for_ctrl_c_while_its_workers_are_idle_is_silent(runner: Any, wait: str) -> None:
    handled = (
        f"try: {wait}\n    except KeyboardInterrupt: pass"
        if "join" not in wait
        else (f"try:\n        {wait}\n    except KeyboardInterrupt: pass")
    )
    functions = QUEUES + f"def serve(processes, results):\n    {handled}"
    main = """
items, results = context.Queue(), context.Queue()
processes = [context.Process(target=consume, args=(items,), daemon=True) for n in range(2)]
for process in processes: process.start()
serve(processes, results)
"""
    child = runner.start(program("fork", functions, main))
    child.linger(4)

    assert child.end().findings == []


FULL = """
def child(items, go):
    go.wait()
    while items.get() is not None: pass
"""


@pytest.mark.parametrize("method", METHODS)
def test_h05_a_full_queue_whose_consumer_waits_for_its_producer_is_told(runner: Any, method: str) -> None:
    main = """
items, go = context.Queue(2), context.Event()
process = context.Process(target=child, args=(items, go), name="consumer")
process.start()
for n in range(5): items.put(n)
go.set()
"""
    outcome = runner.hangs(program(method, FULL, main))

    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("stall", "proven")
    assert waits_for(found) == {"MainProcess": "mp-queue", "consumer": "mp-event"}
    details = {resource["kind"]: (resource["name"], resource["detail"]) for resource in found["resources"]}
    assert details["mp-queue"][1] == "full, 2 of 2"
    assert details["mp-event"][1] == "not set"


@pytest.mark.parametrize("method", METHODS)
def test_h05_twin_a_full_queue_that_is_emptied_late_is_silent(runner: Any, method: str) -> None:
    main = """
items, go = context.Queue(2), context.Event()
process = context.Process(target=child, args=(items, go))
process.start()
threading.Timer(2.5, go.set).start()
for n in range(5): items.put(n)
items.put(None)
process.join()
"""
    runner.silent(program(method, FULL, main))


DONE = """
def child(items, done):
    for _ in range(2):
        items.get()
        time.sleep(done[0])
        if done[1]: items.task_done()
"""


@pytest.mark.parametrize("method", METHODS)
def test_tasks_that_nobody_reports_as_done_are_waited_for_in_vain(runner: Any, method: str) -> None:
    main = """
tasks = context.JoinableQueue()
process = context.Process(target=child, args=(tasks, (0, False)))
process.start()
for n in range(2): tasks.put(n)
tasks.join()
"""
    outcome = runner.hangs(program(method, DONE, main))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("stall", "proven", "mp-queue")
    assert [(one["name"], one["detail"]) for one in found["resources"]] == [("tasks", "2 tasks not done")]


@pytest.mark.parametrize("method", METHODS)
def test_twin_tasks_that_are_done_late_are_silent(runner: Any, method: str) -> None:
    main = """
tasks = context.JoinableQueue()
process = context.Process(target=child, args=(tasks, (1.3, True)))
process.start()
for n in range(2): tasks.put(n)
tasks.join()
"""
    runner.silent(program(method, DONE, main))


READER_KILLED = """
def child(items):
    items.get()
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("queue", ["Queue", "SimpleQueue"])
def test_h03_a_consumer_killed_in_get_leaves_the_queues_lock_an_orphan(runner: Any, method: str, queue: str) -> None:
    main = f"""
items = context.{queue}()
process = context.Process(target=child, args=(items,), name="consumer")
process.start()
while items._rlock._semlock._get_value(): time.sleep(0.05)
time.sleep(0.3)
process.kill()
process.join()
items.put(1)
items.get()
"""
    outcome = runner.hangs(program(method, READER_KILLED, main))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["detail"]) == ("orphaned-lock", "proven", "owner process died")
    assert [resource["name"] for resource in found["resources"]] == ["items"]


# ---------------------------------------------------------------- events, conditions, barriers

SIGNALS = """
def wait_event(event, other): event.wait()
def wait_condition(condition, other):
    with condition: condition.wait()
def wait_barrier(barrier, other): barrier.wait()
def end_event(event, other):
    time.sleep(2.5)
    event.set()
def end_condition(condition, other):
    time.sleep(2.5)
    with condition: condition.notify_all()
def end_barrier(barrier, other):
    time.sleep(2.5)
    barrier.wait()
"""
MAKES = {
    "event": ("context.Event()", "one.wait()"),
    "condition": ("context.Condition()", "one.acquire(); one.wait()"),
    "barrier": ("context.Barrier({parties})", "one.wait()"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", MAKES)
def test_a_signal_that_all_who_could_give_it_wait_for_is_a_stall(runner: Any, method: str, what: str) -> None:
    make, wait = MAKES[what]
    main = f"""
one = {make.format(parties=3)}
other = {make.format(parties=3)}
process = context.Process(target=wait_{what}, args=({"one" if what == "barrier" else "other"}, one), name="child")
process.start()
{wait}
"""
    outcome = runner.hangs(program(method, SIGNALS, main))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("stall", "proven", f"mp-{what}")
    assert waits_for(found) == dict.fromkeys(["MainProcess", "child"], f"mp-{what}")
    assert "one" in {resource["name"] for resource in found["resources"]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", MAKES)
def test_twin_a_signal_that_comes_late_is_silent(runner: Any, method: str, what: str) -> None:
    make, wait = MAKES[what]
    main = f"""
one = {make.format(parties=2)}
process = context.Process(target=end_{what}, args=(one, None))
process.start()
{wait}
process.join()
"""
    runner.silent(program(method, SIGNALS, main))


@pytest.mark.parametrize("method", METHODS)
def test_a_waiter_killed_in_its_sleep_keeps_who_sets_the_event(runner: Any, method: str) -> None:
    main = """
event = context.Event()
process = context.Process(target=wait_event, args=(event, None), name="waiter")
process.start()
while not event._cond._sleeping_count.get_value(): time.sleep(0.05)
time.sleep(0.3)
process.kill()
process.join()
event.set()
"""
    outcome = runner.hangs(program(method, SIGNALS, main))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("stall", "proven", "mp-event")
    assert [one["detail"] for one in found["resources"]] == ["somebody who was notified has not woken"]
    assert "waiter (pid" in found["reason"]


@pytest.mark.parametrize("what", MAKES)
def test_twin_waits_with_a_time_limit_are_silent(runner: Any, what: str) -> None:
    make, wait = MAKES[what]
    timed = wait.replace("wait()", "wait(3)")
    timed = f"try: {timed}\nexcept threading.BrokenBarrierError: pass" if what == "barrier" else timed

    runner.silent(program("fork", SIGNALS, f"one = {make.format(parties=2)}\n{timed}"))


# ---------------------------------------------------------------- managers

MANAGED = """
def child(first, second, meeting):
    first.acquire()
    meeting.wait()
    second.acquire()
def calm(first, second, meeting):
    with first:
        meeting.wait(0)
        time.sleep(1)
        with second: pass
"""


@pytest.mark.parametrize("method", METHODS)
def test_h01_locks_of_a_manager_taken_in_opposite_order_name_the_clients(runner: Any, method: str) -> None:
    main = """
manager = context.Manager()
a, b, meeting = manager.Lock(), manager.Lock(), manager.Barrier(2)
one = context.Process(target=child, args=(a, b, meeting), name="one")
two = context.Process(target=child, args=(b, a, meeting), name="two")
one.start(), two.start()
one.join()
"""
    outcome = runner.hangs(program(method, MANAGED, main))

    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    assert {"one", "two"} == {actor["name"].split(" ")[0] for actor in found["actors"]}


@pytest.mark.parametrize("method", METHODS)
def test_h01_twin_locks_of_a_manager_taken_in_one_order_are_silent(runner: Any, method: str) -> None:
    main = """
manager = context.Manager()
a, b, meeting = manager.Lock(), manager.Lock(), manager.Event()
meeting.set()
processes = [context.Process(target=calm, args=(a, b, meeting)) for _ in range(3)]
for process in processes: process.start()
for process in processes: process.join()
"""
    runner.silent(program(method, MANAGED, main))


def test_twin_a_manager_that_was_killed_leaves_its_clients_their_own_errors(runner: Any) -> None:
    main = """
manager = context.Manager()
values = manager.list()
os.kill(manager._process.pid, signal.SIGKILL)
try:
    values.append(1)
except (EOFError, OSError) as error:
    print(type(error).__name__)
"""
    outcome = runner.silent(program("fork", MANAGED, main))

    assert outcome.stdout.split()[0] in {
        "EOFError",
        "ConnectionResetError",
        "BrokenPipeError",
        "ConnectionRefusedError",
    }


# ---------------------------------------------------------------- shown


def test_a_report_shows_what_is_waited_for_and_not_what_it_is_made_of(runner: Any) -> None:
    functions = "def child(items, ready):\n    ready.set()\n    time.sleep(30)\n"
    main = """
items = context.Queue()
ready = context.Event()
go = context.Event()
context.Process(target=child, args=(items, ready), daemon=True).start()
threading.Thread(target=go.wait, name="for the event", daemon=True).start()
threading.Thread(target=items.get, name="first", daemon=True).start()
ready.wait()
time.sleep(0.5)
threading.Thread(target=items.get, name="second", daemon=True).start()
time.sleep(0.5)
print("READY", flush=True)
time.sleep(30)
"""
    child = runner.start(program("fork", functions, main))
    child.until(lambda: "READY" in child.stdout())
    child.signal(signal.SIGUSR1)
    child.until(lambda: "How well the agent sees" in child.stderr())

    text = child.end().stderr
    oldest = text[text.index("Oldest waits") : text.index("What is held")]

    assert '"go"' in oldest
    assert oldest.count('"items"') == 2
    assert "lock" not in oldest
    assert "semaphore" not in oldest
