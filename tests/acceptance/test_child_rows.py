"""Row H06 and its kin: a thread waits for a child that cannot write any more, as nobody reads; and I/O that takes long."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="how full a pipe is can be asked on Linux only"
)

HEAD = """
    import os, select, socket, subprocess, sys, threading, time
    from subprocess import DEVNULL, PIPE, Popen
    from scaffold import Gate, finish, pause, until, waiting
    def python(code, **options):
        return Popen([sys.executable, "-S", "-c", code], **options)
    def wait_and_close(child):
        with child:
            return child.wait()
    def start(function, *args, **options):
        thread = threading.Thread(target=function, args=args, **options)
        thread.start()
        return thread
    MUCH, LITTLE = "print('x' * 300000)", "print('x' * 3000)"
    """


def program(body: str) -> str:
    body = body if body.startswith("\n") else f"\n    {body}\n"
    tail = "from concagent import state; assert not state.errors(), state.error_texts()\nfinish()\n"
    return textwrap.dedent(HEAD) + textwrap.dedent(body) + tail


def assert_stuck(found: dict[str, Any], waiter: str, stream: str) -> None:
    assert (found["kind"], found["resource_kind"]) == ("deadlock", "process"), found["title"]
    members = {actor["type"]: actor["name"] for actor in found["actors"] if actor["role"] == "member"}
    assert members.keys() == {"thread", "process"}, found["title"]
    assert members["thread"] == waiter
    assert f'pipe "{stream}" (full' in found["title"]
    assert "drain" in found["advice"]


STUCK = {
    "wait": ("python(MUCH, stdout=PIPE).wait()", "MainThread", "stdout"),
    "wait with errors": (
        "python(f'import sys; sys.stdout = sys.stderr; {MUCH}', stderr=PIPE).wait()",
        "MainThread",
        "stderr",
    ),
    "call": ("subprocess.call([sys.executable, '-S', '-c', MUCH], stdout=PIPE)", "MainThread", "stdout"),
    "a shell": (
        "Popen(f'{sys.executable} -S -c \"{MUCH}\"; true', shell=True, stdout=PIPE).wait()",
        "MainThread",
        "stdout",
    ),
    "small writes": ("python('while 1: print(\"x\" * 3000, flush=True)', stdout=PIPE).wait()", "MainThread", "stdout"),
    "text": ("python(MUCH, stdout=PIPE, text=True).wait()", "MainThread", "stdout"),
    "a thread": ("start(lambda: python(MUCH, stdout=PIPE).wait(), name='one').join()", "one", "stdout"),
}


@pytest.mark.parametrize("case", STUCK.values(), ids=STUCK)
def test_h06_a_wait_for_a_child_whose_full_pipe_nobody_drains_is_stuck(runner: Any, case: tuple[str, str, str]) -> None:
    body, waiter, stream = case

    outcome = runner.hangs(program(body))

    assert outcome.only["confidence"] == "proven"
    assert_stuck(outcome.only, waiter, stream)


def test_h06_it_is_suspected_while_another_thread_could_read(runner: Any) -> None:
    body = "start(pause, 600, daemon=True); python(MUCH, stdout=PIPE).wait()"

    outcome = runner.hangs(program(body), stall_after=1)

    assert outcome.only["confidence"] == "suspected"
    assert_stuck(outcome.only, "MainThread", "stdout")


SOUND = {
    "communicate": "assert len(python(MUCH, stdout=PIPE).communicate()[0]) > 300000",
    "communicate with two pipes": "python(MUCH, stdout=PIPE, stderr=PIPE).communicate()",
    "run": "assert len(subprocess.run([sys.executable, '-S', '-c', MUCH], capture_output=True).stdout) > 300000",
    "a child that takes long": "assert wait_and_close(python('import time; time.sleep(2.4)', stdout=PIPE)) == 0",
    "a child that has written all and takes long": """
    wait_and_close(python(f'{LITTLE}; import time; time.sleep(2.4)', stdout=PIPE))
    """,
    "a child that is asleep beside a full pipe": """
    wait_and_close(python('import os, time; os.set_blocking(1, 0); os.write(1, bytes(9999999)); time.sleep(2.4)', stdout=PIPE))
    """,
    "a shell that has something else to wait for": """
    Popen(f'({sys.executable} -S -c "{MUCH}" 2>{os.devnull} &) ; sleep 2.4', shell=True, stdout=PIPE).wait()
    """,
    "a reader that is slow": """
    child = python(MUCH, stdout=PIPE)
    def drain():
        while os.read(child.stdout.fileno(), 65536):
            pause(0.6)
    start(drain)
    assert child.wait() == 0
    """,
    "a reader that is very slow": """
    child = python(MUCH, stdout=PIPE)
    def drain():
        while os.read(child.stdout.fileno(), 150000):
            pause(1.4)
    start(drain)
    assert child.wait() == 0
    """,
    "a reader in another process": """
    child = python(MUCH, stdout=PIPE)
    if os.fork() == 0:
        pause(2.5)
        while os.read(child.stdout.fileno(), 65536):
            pass
        os._exit(0)
    assert child.wait() == 0
    os.wait()
    """,
    "a wait with a limit": """
    child = python(MUCH, stdout=PIPE)
    try:
        child.wait(2.4)
    except subprocess.TimeoutExpired:
        child.communicate()
    """,
    "a pipe that goes nowhere": "assert python(MUCH, stdout=DEVNULL).wait() == 0",
}


@pytest.mark.parametrize("body", SOUND.values(), ids=SOUND)
def test_h06_a_child_that_can_go_on_is_waited_for_in_silence(runner: Any, body: str) -> None:
    runner.silent(program(body))


READS = {
    "recv": "there.recv(1)",
    "accept": "server = socket.create_server(('127.0.0.1', 0)); address = server.getsockname(); server.accept()",
    "select": "select.select([there], [], [])",
    "poll": "poll = select.poll(); poll.register(there, select.POLLIN); poll.poll()",
    "read of a pipe": "os.read(pipe, 1)",
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_f49_a_thread_that_waits_for_input_counts_as_alive(runner: Any, read: str) -> None:
    body = f"""
    here, there = socket.socketpair()
    pipe, end = os.pipe()
    address = None
    def send():
        pause(1.6)
        here.send(b"x")
        os.write(end, b"x")
        if address:
            socket.create_connection(address)
    import _thread
    from concagent import _real
    _real.start_new_thread(send, ())
    come = threading.Event()
    threads = [start(come.wait) for _ in range(3)]
    {read}
    come.set()
    for thread in threads:
        thread.join()
    """

    runner.silent(program(body))
