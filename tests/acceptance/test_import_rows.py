"""Imports that threads wait for: rings through a module's lock and something else, which importlib does not break by itself.

A program writes its modules first, beside itself.
"""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

HEAD = """
    import pathlib, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    from scaffold import Gate, Meeting, finish, pause, until, waiting
    def module(name, *lines):
        pathlib.Path(f"{name}.py").write_text("\\n".join(lines))
    def start(function, *args, name=None):
        thread = threading.Thread(target=function, args=args, name=name)
        thread.start()
        return thread
    def importing(name):
        __import__(name)
    shared, began = threading.Lock(), Gate()
    """


def program(body: str) -> str:
    tail = "from concagent import state; assert not state.errors(), state.error_texts()\nfinish()\n"
    return textwrap.dedent(HEAD) + textwrap.dedent(body) + tail


def assert_found(found: dict[str, Any], members: list[str]) -> None:
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven"), found["title"]
    assert sorted(a["name"] for a in found["actors"] if a["role"] == "member") == members, found["title"]
    assert "import-lock" in {resource["kind"] for resource in found["resources"]}


MODULE_JOINS = """
    module("app", "import threading", "def work():", "    import {wanted}",
           "t = threading.Thread(target=work, name='worker')", "t.start()", "t.join({limit})")
    import app
    """
MODULE_ASKS_A_POOL = """
    module("app", "from concurrent.futures import ThreadPoolExecutor", "def work():", "    import {wanted}",
           "ThreadPoolExecutor(1, 'worker').submit(work).result()")
    import app
    """
LOCK_AROUND_AN_IMPORT = """
    module("app", "import __main__", "__main__.began.open()", "__main__.until(lambda: __main__.shared.locked())",
           "with __main__.{lock}: pass")
    thread = start(importing, "app", name="worker")
    began.wait()
    with shared:
        import app
    thread.join()
    """


def test_a_module_that_joins_a_thread_that_imports_it_is_a_deadlock(runner: Any, shape: str) -> None:
    body = MODULE_JOINS.replace("{wanted}", "app").replace("{limit}", "")

    outcome = runner.hangs(program(body), shape=shape)

    assert_found(outcome.only, ["MainThread", "worker"])
    assert 'import-lock "app"' in outcome.only["title"]


@pytest.mark.parametrize(("wanted", "limit"), [("app", "1.3"), ("json", "")])
def test_a_module_that_joins_a_thread_that_can_go_on_is_silent(runner: Any, wanted: str, limit: str) -> None:
    runner.silent(program(MODULE_JOINS.replace("{wanted}", wanted).replace("{limit}", limit)))


def test_a_module_that_waits_for_a_task_that_imports_it_is_a_deadlock(runner: Any) -> None:
    outcome = runner.hangs(program(MODULE_ASKS_A_POOL.replace("{wanted}", "app")))

    assert_found(outcome.only, ["MainThread", "worker_0"])


def test_a_module_that_waits_for_a_task_that_imports_another_is_silent(runner: Any) -> None:
    runner.silent(program(MODULE_ASKS_A_POOL.replace("{wanted}", "json")))


def test_a_lock_held_around_an_import_and_wanted_by_the_module_is_a_deadlock(runner: Any) -> None:
    outcome = runner.hangs(program(LOCK_AROUND_AN_IMPORT.replace("{lock}", "shared")))

    assert_found(outcome.only, ["MainThread", "worker"])


def test_a_lock_held_around_an_import_that_does_not_want_it_is_silent(runner: Any) -> None:
    runner.silent(program(LOCK_AROUND_AN_IMPORT.replace("{lock}", "threading.Lock()")))


SOUND = {
    "a ring of imports, which importlib breaks": """
    module("one", "import __main__", "__main__.meeting.wait()", "import two")
    module("two", "import __main__", "__main__.meeting.wait()", "import one")
    meeting = Meeting(2)
    for thread in [start(importing, name) for name in ("one", "two")]:
        thread.join()
    """,
    "a slow import that others wait for": """
    module("slow", "import __main__", "__main__.began.open()", "__main__.pause(1.3)")
    threads = [start(importing, "slow")]
    began.wait()
    threads += [start(importing, "slow") for _ in range(3)]
    import slow
    for thread in threads:
        thread.join()
    """,
    "a module that waits while another thread imports it": """
    module("app", "import threading, __main__", "done = threading.Event()",
           "threading.Timer(1.3, done.set).start()", "__main__.began.open()", "done.wait()")
    thread = start(importing, "app")
    began.wait()
    import app
    thread.join()
    """,
}


@pytest.mark.parametrize("body", SOUND.values(), ids=SOUND)
def test_imports_that_come_to_an_end_are_silent(runner: Any, body: str) -> None:
    runner.silent(program(body))
