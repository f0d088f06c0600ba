"""A thread that was woken and has not run since waits for nobody any more: no picture may show its wait."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from eventually import until

from concagent import _real


class Resource:
    def hold_seen_by(self, _wait: Any) -> Any:
        return None


@pytest.mark.usefixtures("recorder")
def test_a_wait_is_over_once_its_thread_was_woken_though_it_has_not_run(twin: Any) -> None:
    lock = twin.waiter_lock()
    lock.acquire()
    records = []

    def sleep() -> None:
        mark = twin.wait_mark()
        twin.begin_wait(Resource(), False, None)
        records.append(twin.current_record())
        lock.acquire()
        twin.end_waits(mark)

    thread = threading.Thread(target=sleep)
    thread.start()
    until(lambda: records and records[0].waiting() is not None)
    _real.sleep(0.05)  # until it sleeps: nothing else tells

    # While nobody asks for the GIL it is not given up, neither by a release nor by a look.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        lock.release()
        seen = records[0].waiting()
    finally:
        sys.setswitchinterval(interval)
    thread.join(20)

    assert seen is None
    assert not thread.is_alive()
    assert records[0].waiting() is None
