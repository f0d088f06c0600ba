"""A finding becomes an alert that a real Alertmanager shows (Debian's package prometheus-alertmanager)."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from concagent import _real
from concagent.delivery import Delivery
from concagent.exporters.alerts import AlertError, Alertmanager, Webhook
from concagent.model import KINDS, Finding

BINARY = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
SOON = 30.0

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(BINARY is None, reason="no Alertmanager here (apt-get install prometheus-alertmanager)"),
]

CONFIGURATION = """
route:
  receiver: nobody
receivers:
  - name: nobody
"""


def finding(kind: str = "deadlock", fingerprint: str = "abc123", **changes: object) -> Finding:
    return Finding(
        kind=kind,
        resource_kind="lock",
        confidence="proven",
        id="f1",
        fingerprint=fingerprint,
        time=_real.wall_seconds(),
        pid=4711,
        title="2 threads wait for each other: \u201ea\u201c and b",
        advice="take the locks in one order",
        suppress=f'{kind}: fingerprint={fingerprint}  reason="..."',
    ).with_changes(**changes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def alerts(port: int) -> list[dict[str, Any]]:
    status, body = get(port, "/api/v2/alerts")
    assert status == 200
    found: list[dict[str, Any]] = json.loads(body)
    return found


def wait_until(condition: Callable[[], object]) -> None:
    deadline_ns = _real.monotonic_ns() + int(SOON * 1e9)
    while not condition():
        assert _real.monotonic_ns() < deadline_ns, "waited in vain"
        _real.sleep(0.02)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start an Alertmanager on loopback, alone, and return its port."""
    assert BINARY is not None
    folder: Path = tmp_path_factory.mktemp("alertmanager")
    (folder / "config.yml").write_text(CONFIGURATION, encoding="utf-8")
    port = free_port()
    command = [
        BINARY,
        f"--config.file={folder / 'config.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
            try:
                return get(port, "/-/ready")[0] == 200
            except OSError:
                return False

        try:
            wait_until(ready)
            yield port
        finally:
            process.terminate()
            process.wait(SOON)


def test_each_kind_of_finding_is_accepted_and_shown(port: int) -> None:
    sink = Alertmanager(f"http://127.0.0.1:{port}")

    for kind in KINDS:
        sink(finding(kind, "each-kind"))

    def shown() -> set[str]:
        return {a["labels"]["kind"] for a in alerts(port) if a["labels"]["fingerprint"] == "each-kind"}

    wait_until(lambda: shown() == set(KINDS))


def test_an_alert_that_came_by_delivery_fires_and_says_what_to_do(port: int) -> None:
    errors: list[object] = []
    delivery = Delivery(lambda: None, errors.append, lambda *problem: errors.append(problem))
    delivery.add_sink("alertmanager", Alertmanager(f"http://127.0.0.1:{port}/"))
    told = finding(fingerprint="by-delivery")

    delivery.put(told)

    assert delivery.drain(SOON)
    assert errors == []
    wait_until(lambda: any(a["labels"]["fingerprint"] == "by-delivery" for a in alerts(port)))
    (alert,) = [a for a in alerts(port) if a["labels"]["fingerprint"] == "by-delivery"]
    assert alert["labels"]["alertname"] == "ConcagentDeadlock"
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["title"] == told.title
    assert alert["annotations"]["advice"] == told.advice
    assert alert["annotations"]["suppress"] == told.suppress
    assert alert["status"]["state"] in ("active", "unprocessed")


def test_the_same_finding_twice_is_one_alert(port: int) -> None:
    sink = Alertmanager(f"http://127.0.0.1:{port}/")
    told = finding(fingerprint="twice")

    sink(told)
    sink(told.with_changes(count=2))

    wait_until(lambda: [a["labels"]["fingerprint"] for a in alerts(port)].count("twice") == 1)


def test_what_it_does_not_accept_is_an_error_with_its_words(port: int) -> None:
    not_an_alert = Webhook(f"http://127.0.0.1:{port}/api/v2/alerts")

    with pytest.raises(AlertError, match=r"\(attempt 1 of 5\): answered 4..: .*unmarshal") as caught:
        not_an_alert(finding())

    assert caught.value.status in (400, 422)
