"""A real Prometheus server scrapes the endpoint, and its answers are what the agent counted.

The server is ours alone: a temporary directory, a port of the system's choice, loopback only, ended by the fixture.
Nothing here waits for a fixed time; everything is asked for again until it is so or a deadline passes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from concagent import _real
from concagent.exporters import prometheus
from concagent.exporters.http import TEXT, Endpoint
from concagent.model import AgentStats, ClassStatistics

PROMETHEUS = shutil.which("prometheus")
RULES = Path(__file__).parents[2] / "exporters" / "rules.yml"
DEADLINE_SECONDS = 40

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus server is installed (Debian package prometheus)"),
]


class Server:
    """A running Prometheus; `query` asks its HTTP API."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self._port = port
        self._process = process
        self._log = log

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
            return json.load(answer)

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        answer = self.get("/api/v1/query?" + urllib.parse.urlencode({"query": promql}))
        assert answer["status"] == "success"
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]

    def value(self, promql: str) -> float | None:
        """Return the value of the only series that matches, None while there is none."""
        samples = self.query(promql)
        assert len(samples) <= 1, samples
        return samples[0][1] if samples else None

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            assert self._process.poll() is None, self._log.read_text()
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                if condition():
                    return
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            select.select([], [], [], 0.05)

    def wait_for(self, promql: str, expected: float) -> None:
        self.wait_until(lambda: self.value(promql) == expected)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[[int], Server]]:
    """Return a function that starts a server which scrapes one port of this machine."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(scraped: int) -> Server:
        config = {
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "shop", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}],
        }
        # JSON is YAML.
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))
        port = free_port()
        log = tmp_path / "prometheus.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    str(PROMETHEUS),
                    f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        processes.append(process)
        server = Server(port, process, log)
        server.wait_until(lambda: bool(server.get("/api/v1/status/buildinfo")))
        return server

    yield start

    for process in processes:
        process.kill()
        process.wait(30)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[], AgentStats]], int]]:
    """Return a function that serves statistics on a port, from a poll loop such as the monitor's."""
    ends: list[Callable[[], None]] = []

    def start(statistics: Callable[[], AgentStats]) -> int:
        collector = prometheus.Collector(statistics, "1.2.3", top=2, limit=3)
        endpoint = Endpoint(
            "127.0.0.1",
            0,
            {
                "/metrics": lambda: (prometheus.CONTENT_TYPE, collector.render()),
                "/healthz": lambda: (TEXT, b"ok\n"),
            },
        )
        wake, woken = os.pipe()
        ended = _real.allocate_lock()
        ended.acquire()

        def loop() -> None:
            watched = (endpoint.fileno(), wake)
            while True:
                readable, _, _ = select.select(watched, [], [])
                if wake in readable:
                    break
                endpoint.handle()
            endpoint.close()
            ended.release()

        _real.start_new_thread(loop, ())

        def end() -> None:
            os.write(woken, b"x")
            assert ended.acquire(timeout=10)
            os.close(wake)
            os.close(woken)

        ends.append(end)
        return endpoint.port

    yield start

    for end in ends:
        end()


def test_a_prometheus_server_sees_what_the_agent_counts(
    start_server: Callable[[int], Server], serve: Callable[[Callable[[], AgentStats]], int]
) -> None:
    def classes(*busy: tuple[str, int, int]) -> tuple[ClassStatistics, ...]:
        return tuple(
            ClassStatistics(
                name, "lock", acquisitions=a, contentions=c, wait_seconds=c / 100, wait_buckets=(0, 0, 0, c)
            )
            for name, a, c in busy
        )

    calm = AgentStats(core="python", classes=classes(("a", 100, 9), ("b", 50, 8), ("c", 20, 1)))
    present = [calm]
    server = start_server(serve(lambda: present[0]))

    server.wait_for('up{job="shop"}', 1)
    server.wait_for('concagent_build_info{version="1.2.3", core="python"}', 1)
    server.wait_for("concagent_deadlocked_threads", 0)
    server.wait_for('concagent_lock_acquisitions_total{lock_class="a"}', 100)
    server.wait_for('concagent_lock_contentions_total{lock_class="other"}', 1)
    server.wait_for('concagent_lock_wait_seconds_bucket{lock_class="b", le="0.01"}', 8)
    server.wait_for("sum without (lock_class) (concagent_lock_acquisitions_total)", 170)
    assert server.query('ALERTS{alertname="ConcagentDeadlock"}') == []

    # A deadlock, and another class is the busiest now.
    present[0] = AgentStats(
        deadlocked_threads=2,
        deadlocks_open=1,
        blocked_threads=2,
        findings=((("deadlock", "lock", "proven"), 1),),
        classes=classes(("a", 100, 9), ("b", 50, 8), ("c", 70, 41)),
    )

    server.wait_for("concagent_deadlocked_threads", 2)
    server.wait_for("concagent_open_deadlocks", 1)
    server.wait_for("sum(concagent_findings_total)", 1)
    server.wait_for('concagent_lock_contentions_total{lock_class="c"}', 40)
    server.wait_for('concagent_lock_contentions_total{lock_class="other"}', 1)
    server.wait_for("sum without (lock_class) (concagent_lock_contentions_total)", 58)
    server.wait_for('count(ALERTS{alertname="ConcagentDeadlock", alertstate="firing", instance=~"127.*"})', 1)

    # After recovery the gauge is 0 again and the alert is gone; no counter was ever taken for a restart.
    present[0] = AgentStats(classes=present[0].classes, findings=present[0].findings)

    server.wait_for("concagent_deadlocked_threads", 0)
    server.wait_until(lambda: server.query('ALERTS{alertname="ConcagentDeadlock"}') == [])
    server.wait_for("max(resets(concagent_lock_contentions_total[5m]))", 0)
    server.wait_for("max(resets(concagent_lock_wait_seconds_count[5m]))", 0)


PROGRAM = """
import sys, threading

import concagent

concagent.install(metrics_port=int(sys.argv[1]))

accounts, audit = threading.Lock(), threading.Lock()
both = threading.Barrier(2)

def take(first, second):
    with first:
        both.wait()
        with second:
            pass

print("ready", flush=True)
sys.stdin.readline()
for pair in ((accounts, audit), (audit, accounts)):
    threading.Thread(target=take, args=pair, daemon=True).start()
sys.stdin.readline()
"""


def test_a_prometheus_server_sees_a_real_deadlock(start_server: Callable[[int], Server], tmp_path: Path) -> None:
    """M11: during AB-BA the gauge of deadlocked threads is 2 and that of deadlocks 1."""
    concagent = pytest.importorskip("concagent")
    if not hasattr(concagent, "install"):
        pytest.skip("this build of concagent has no install yet")
    script = tmp_path / "deadlock.py"
    script.write_text(textwrap.dedent(PROGRAM))
    port = free_port()
    with (tmp_path / "program.log").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, str(script), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=tmp_path,
        )
    assert program.stdin
    assert program.stdout
    try:
        assert program.stdout.readline() == b"ready\n", (tmp_path / "program.log").read_text()
        server = start_server(port)
        server.wait_for("concagent_deadlocked_threads", 0)

        program.stdin.write(b"go\n")
        program.stdin.flush()

        server.wait_for("concagent_deadlocked_threads", 2)
        server.wait_for("concagent_open_deadlocks", 1)
        server.wait_for("concagent_blocked_threads", 2)
        server.wait_for('sum(concagent_findings_total{kind="deadlock", confidence="proven"})', 1)
        server.wait_for("sum(concagent_agent_errors_total)", 0)
        server.wait_for('count(ALERTS{alertname="ConcagentDeadlock", alertstate="firing"})', 1)
    finally:
        program.kill()
        program.stdin.close()
        program.stdout.close()
        program.wait(30)
