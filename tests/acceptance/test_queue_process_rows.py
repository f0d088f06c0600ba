"""Row H05: a process that is joined before its queue is drained, on all start methods, with its silent twins."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")

METHODS = ["fork", "spawn", "forkserver"]

H05 = """
    import multiprocessing as mp, threading, time
    def produce(queue, items):
        for _ in range(items):
            queue.put(bytes(16 * 1024))
    def read(queue, items, pause):
        for _ in range(items):
            time.sleep(pause)
            queue.get()
    def main():
        context = mp.get_context("{method}")
        queue = context.Queue()
        producer = context.Process(target=produce, args=(queue, 24), name="producer")
        producer.start()
        {before}
        producer.join()
        {after}
        print("DONE", flush=True)
    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("method", METHODS)
def test_h05_a_process_joined_before_its_queue_is_drained_never_ends(runner: Any, method: str) -> None:
    outcome = runner.hangs(H05.format(method=method, before="", after="read(queue, 24, 0)"))

    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    names = [actor["name"].split(" (")[0] for actor in found["actors"]]
    assert sorted(names) == ["MainThread", "producer"]
    assert {resource["kind"] for resource in found["resources"]} == {"process", "pipe"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "before",
    [
        "read(queue, 24, 0)",
        "threading.Thread(target=read, args=(queue, 24, 0.1)).start()",
        "context.Process(target=read, args=(queue, 24, 0.1)).start()",
    ],
    ids=["drained first", "a slow reader in a thread", "a slow reader in a process"],
)
def test_h05_twin_a_queue_that_is_drained_in_time_is_silent(runner: Any, method: str, before: str) -> None:
    runner.silent(H05.format(method=method, before=before, after="pass"))


@pytest.mark.parametrize("method", METHODS)
def test_h05_twin_a_reader_that_comes_late_in_another_thread_makes_it_a_suspicion(runner: Any, method: str) -> None:
    before = "threading.Thread(target=lambda: (time.sleep(4), read(queue, 24, 0))).start()"
    outcome = runner.ends(H05.format(method=method, before=before, after="pass"), stall_after=1)

    assert {found["confidence"] for found in outcome.findings} <= {"suspected"}
