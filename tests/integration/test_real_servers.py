"""Programs that many people run, as they are: servers that fork workers under load, task queues on a real Redis, pools of loky.

Each runs bare and under the agent.  Asked of both is the same: the answers, the exit status, the lines of the log (but for
numbers).  Of the agent: silence, and that every process of the program can be seen.  One application has a deadlock, on
purpose; its worker and its two threads have to be named, from outside, while the other worker serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

for _package in ("gunicorn", "flask", "sqlalchemy", "celery", "redis", "huey", "joblib"):
    pytest.importorskip(_package, reason="pip install '.[test,servers]'")

WRK = shutil.which("wrk")
REDIS = shutil.which("redis-server")
DEADLINE_SECONDS = 60.0
LOAD_SECONDS = 2
NUMBER_OF_TASKS = 60

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(180),
    pytest.mark.skipif(WRK is None, reason="no wrk is installed (Debian package wrk)"),
    pytest.mark.skipif(REDIS is None, reason="no Redis server is installed (Debian package redis-server)"),
]

APPLICATION = """
import os, threading, time
import flask, sqlalchemy
from sqlalchemy import text

app = flask.Flask(__name__)
engine = sqlalchemy.create_engine("sqlite:///shop.db", connect_args={"timeout": 30})
stock, orders = threading.Lock(), threading.RLock()
sold = 0

@app.get("/")
def sell():
    global sold
    with orders, stock:
        sold += 1
    with engine.connect() as connection:
        name = connection.execute(text("select name from item where id = 1")).scalar_one()
    return {"pid": os.getpid(), "name": name}

@app.get("/rush/<int:turn>")
def rush(turn):
    first, second = (orders, stock) if turn else (stock, orders)
    with first:
        time.sleep(0.5)
        with second:
            return {"pid": os.getpid()}
"""
PREPARE = """
import sqlite3
with sqlite3.connect("shop.db") as connection:
    connection.execute("create table item (id integer primary key, name text)")
    connection.execute("insert into item values (1, 'lamp')")
"""


def until(condition: Callable[[], Any], what: str, process: subprocess.Popen[Any], log: Path) -> Any:
    """Return what the condition returns as soon as that is true; fail after the deadline, or when the process ends."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        with contextlib.suppress(OSError, ValueError):
            if answer := condition():
                return answer
        assert process.poll() is None, f"ended while waiting for {what}: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"{what}: {log.read_text()[-3000:]}"
        select.select([], [], [], 0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Program:
    """A program in a folder of its own, bare or under the agent."""

    def __init__(self, folder: Path, agent: bool) -> None:
        self.folder = folder
        self.agent = agent
        self.log = folder / "log"
        self.findings = folder / "findings.jsonl"
        self.scrape_port = free_port()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("CONCAGENT", "PYTHON"))}
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> list[str]:
        if not self.agent:
            return [sys.executable, *arguments]
        options = [
            "--findings",
            str(self.findings),
            "--metrics-port",
            str(self.scrape_port),
            "--report-signal",
            "SIGRTMIN",
        ]
        return [sys.executable, "-m", "concagent", "run", *options, *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def run(self, *arguments: str) -> str:
        """Run it to its end and return what it printed."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def stop(self) -> int:
        """Ask it to end, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        assert self.process is not None
        return until(condition, what, self.process, self.log)

    def found(self) -> list[dict[str, Any]]:
        text = self.findings.read_text() if self.findings.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def family(self) -> list[dict[str, Any]]:
        """Return the processes of the program, as ``concagent report --tree`` sees them."""
        assert self.process is not None
        command = [sys.executable, "-m", "concagent", "report", str(self.process.pid), "--tree", "--format", "json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
        assert done.returncode == 0, done.stderr
        processes: list[dict[str, Any]] = json.loads(done.stdout)["processes"]
        return processes

    def scrape(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.scrape_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


def without_numbers(text: str) -> set[str]:
    """Return the lines of a log, without numbers and times; workers start in any order, and end before they are told or after."""
    lines = {re.sub(r"0x[0-9a-f]+|\d+", "N", line) for line in text.splitlines()}
    return {line for line in lines if "was sent SIGTERM" not in line}


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[bool], Program]]:
    programs: list[Program] = []

    def make(agent: bool) -> Program:
        folder = tmp_path / ("agent" if agent else "bare")
        folder.mkdir()
        programs.append(Program(folder, agent))
        return programs[-1]

    yield make
    for one in programs:
        one.kill()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    assert REDIS is not None
    port, log = free_port(), tmp_path / "redis.log"
    with log.open("wb") as file:
        command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:

        def answers() -> bool:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")

        until(answers, "Redis", process, log)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


# ---------------------------------------------------------------- gunicorn


def serve(one: Program, workers: str) -> str:
    """Start gunicorn with two workers and return the URL that it serves."""
    (one.folder / "shop.py").write_text(APPLICATION)
    subprocess.run([sys.executable, "-c", PREPARE], cwd=one.folder, check=True)
    port = free_port()
    threads = ["--threads", "4"] if workers == "gthread" else []
    one.start("-m", "gunicorn", "-k", workers, "-w", "2", *threads, "-b", f"127.0.0.1:{port}", "shop:app")
    url = f"http://127.0.0.1:{port}"
    one.until(lambda: get(url)["name"] == "lamp", "the first answer")
    return url


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
        return json.load(answer)


def load(url: str) -> str:
    """Put load on a server; return wrk's words after all answers were good."""
    assert WRK is not None
    command = [WRK, "-t", "2", "-c", "16", "-d", f"{LOAD_SECONDS}s", "--timeout", "30s", url]
    words = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True).stdout
    assert "Non-2xx" not in words, words
    assert "Socket errors" not in words, words
    return words


@pytest.mark.parametrize("workers", ["sync", "gthread"])
def test_gunicorn_under_load_is_as_bare_silent_and_all_of_it_is_seen(
    program: Callable[[bool], Program], workers: str
) -> None:
    bare, watched = program(False), program(True)
    for one in (bare, watched):
        url = serve(one, workers)
        words = load(url)
        assert int(re.search(r"(\d+) requests in", words).group(1)) > 50, words  # type: ignore[union-attr]
        if one.agent:
            processes = one.family()
            scrape = one.scrape()
        assert one.stop() == 0, one.log.read_text()

    assert len(processes) == 3
    assert all(process["report"] is not None for process in processes)
    for process in processes[1:]:
        assert "concagent_lock_acquisitions_total{lock_class=" in scrape
        assert f'pid="{process["pid"]}"' in scrape
    assert watched.found() == []
    assert without_numbers(watched.log.read_text()) == without_numbers(bare.log.read_text())


def test_a_deadlock_in_one_worker_is_told_while_the_other_serves(program: Callable[[bool], Program]) -> None:
    watched = program(True)
    url = serve(watched, "gthread")
    # On one connection, so that one worker has both: its two requests take the locks in opposite order.
    asked: list[socket.socket] = []
    try:

        def told() -> bool:
            for turn in (0, 1):
                connection = socket.create_connection(url[len("http://") :].split(":"), timeout=10)  # type: ignore[arg-type]
                connection.sendall(f"GET /rush/{turn} HTTP/1.0\r\n\r\n".encode())
                asked.append(connection)
            time.sleep(1.0)
            return bool(watched.found())

        watched.until(told, "a finding")
        (found,) = watched.found()[:1]

        assert found["kind"] == "deadlock"
        assert found["confidence"] == "proven"
        assert len([actor for actor in found["actors"] if actor["role"] == "member"]) == 2
        workers = [process["pid"] for process in watched.family()[1:]]
        assert {actor["pid"] for actor in found["actors"]} < set(workers)
        assert "with second:" in json.dumps(found)
    finally:
        for connection in asked:
            connection.close()


# ---------------------------------------------------------------- task queues on Redis


CELERY = """
import os, threading
from celery import Celery

app = Celery("jobs", broker="{url}", backend="{url}")
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False
lock = threading.Lock()

@app.task
def square(n):
    with lock:
        return n * n, os.getpid()
"""
CELERY_CLIENT = """
from celery import group
import celery_jobs
results = group(celery_jobs.square.s(n) for n in range({number})).apply_async().get(timeout=50)
assert [value for value, _ in results] == [n * n for n in range({number})], results
print("squares", len({{pid for _, pid in results}}) in (1, 2))
"""


def test_celery_with_forked_workers_on_redis_is_as_bare_and_silent(
    program: Callable[[bool], Program], redis_url: str
) -> None:
    said = {}
    for agent in (False, True):
        one = program(agent)
        (one.folder / "celery_jobs.py").write_text(CELERY.replace("{url}", redis_url))
        (one.folder / "client.py").write_text(CELERY_CLIENT.format(number=NUMBER_OF_TASKS))
        one.start(
            "-m", "celery", "-A", "celery_jobs", "worker", "-c", "2", "-P", "prefork", "-l", "info", "--without-mingle"
        )
        one.until(lambda one=one: "ready." in one.log.read_text(), "the workers")
        client = Program(one.folder, agent)
        said[agent] = client.run("client.py")
        if agent:
            processes = one.family()
            assert len(processes) == 3
            assert all(process["report"] is not None for process in processes)
        assert one.stop() == 0, one.log.read_text()
        assert one.found() == []

    assert said[True] == said[False] == "squares True\n"


HUEY = """
import os, threading
from huey import RedisHuey

huey = RedisHuey("jobs", url="{url}")
lock = threading.Lock()

@huey.task()
def square(n):
    with lock:
        return n * n
"""
HUEY_CLIENT = """
import huey_jobs
results = [huey_jobs.square(n) for n in range({number})]
print([result(blocking=True, timeout=50) for result in results])
"""


@pytest.mark.parametrize("workers", ["process", "thread"])
def test_huey_on_redis_is_as_bare_and_silent(program: Callable[[bool], Program], redis_url: str, workers: str) -> None:
    consumer = shutil.which("huey_consumer", path=str(Path(sys.executable).parent)) or shutil.which(
        "huey_consumer.py", path=str(Path(sys.executable).parent)
    )
    assert consumer is not None
    said = {}
    for agent in (False, True):
        one = program(agent)
        (one.folder / "huey_jobs.py").write_text(HUEY.replace("{url}", redis_url))
        (one.folder / "client.py").write_text(HUEY_CLIENT.format(number=NUMBER_OF_TASKS))
        one.environment["PYTHONPATH"] = str(one.folder)
        one.start(consumer, "huey_jobs.huey", "-k", workers, "-w", "2")
        one.until(lambda one=one: "huey_jobs.square" in one.log.read_text(), "the consumer")
        client = Program(one.folder, agent)
        said[agent] = client.run("client.py")
        assert one.stop() == 0, one.log.read_text()
        assert one.found() == []

    assert said[True] == said[False] == f"{[n * n for n in range(NUMBER_OF_TASKS)]}\n"


# ---------------------------------------------------------------- pools


POOLS = {
    "loky": """
        import joblib, os
        def work(n):
            return n * n
        if __name__ == "__main__":
            print(joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(work)(n) for n in range(40)))
        """,
    "loky-numbers-of-processes": """
        import joblib, os, sys
        def work(n):
            agent = sys.modules.get("concagent.bootstrap")
            return agent is not None and agent._agent is not None
        if __name__ == "__main__":
            seen = joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(work)(n) for n in range(40))
            here = "concagent" in sys.modules
            print(all(one == here for one in seen))
        """,
    "threads": """
        import joblib
        def work(n):
            return n * n
        if __name__ == "__main__":
            print(joblib.Parallel(n_jobs=4, backend="threading")(joblib.delayed(work)(n) for n in range(400)))
        """,
    # A loader of batches as trainers have: an index queue for each worker, one queue of results, a thread that collects.
    "loader": """
        import multiprocessing, multiprocessing.resource_tracker, multiprocessing.shared_memory, queue, threading
        SIZE = 1 << 12
        def worker(number, indices, results, stop):
            while not stop.is_set():
                try:
                    index = indices.get(timeout=5)
                except queue.Empty:
                    continue
                if index is None:
                    break
                memory = multiprocessing.shared_memory.SharedMemory(create=True, size=SIZE)
                memory.buf[:SIZE] = bytes([index % 251]) * SIZE
                memory.close()
                results.put((index, memory.name))
        def collect(results, out, number):
            for _ in range(number):
                index, name = results.get()
                memory = multiprocessing.shared_memory.SharedMemory(name)
                out.put((index, sum(memory.buf[:SIZE])))
                memory.close()
                memory.unlink()
        if __name__ == "__main__":
            multiprocessing.resource_tracker.ensure_running()  # else each forked worker has one of its own
            context = multiprocessing.get_context("METHOD")
            results, stop = context.Queue(), context.Event()
            indices = [context.Queue() for _ in range(2)]
            workers = [context.Process(target=worker, args=(n, indices[n], results, stop), daemon=True) for n in range(2)]
            for one in workers:
                one.start()
            out = queue.Queue(4)
            thread = threading.Thread(target=collect, args=(results, out, 40), daemon=True)
            thread.start()
            for n in range(40):
                indices[n % 2].put(n)
            batches = dict(out.get() for _ in range(40))
            for one in indices:
                one.put(None)
            for one in workers:
                one.join()
            thread.join()
            print(sorted(batches.items()), [one.exitcode for one in workers])
        """,
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("loky", ""),
        ("loky-numbers-of-processes", ""),
        ("threads", ""),
        ("loader", "fork"),
        ("loader", "spawn"),
        ("loader", "forkserver"),
    ],
)
def test_a_pool_of_a_library_is_as_bare_and_silent(program: Callable[[bool], Program], name: str, method: str) -> None:
    said = []
    for agent in (False, True):
        one = program(agent)
        (one.folder / "pool.py").write_text(textwrap.dedent(POOLS[name]).replace("METHOD", method))
        said.append(one.run("pool.py"))
        assert one.found() == []

    assert said[0] == said[1] != ""
