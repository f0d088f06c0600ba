"""Alerts out, against real servers on loopback that answer, hang, refuse, drip, and change their mind."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPSConnection
from typing import Any

import pytest

from concagent import _real
from concagent.errors import ConcagentError
from concagent.exporters.alerts import (
    LONGEST_PAUSE_SECONDS,
    AlertError,
    Alertmanager,
    Webhook,
    _Dripproof,
    alert_for,
)
from concagent.model import Finding

FINDING = Finding(
    kind="lock-order-inversion",
    resource_kind="lock",
    confidence="potential",
    id="f1",
    fingerprint="abc123",
    time=1_700_000_000.25,
    pid=4711,
    title="a before b, b before a \udcff",
    advice="take them in one order",
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Server:
    """Reads one request a connection, and does with the connection what the script says next; the last for ever."""

    def __init__(self, *script: bytes | Callable[[socket.socket], None]) -> None:
        self.script = script
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.open: list[socket.socket] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def url(self, path: str = "/hook") -> str:
        return f"http://{self.netloc}{path}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.open.append(connection)
            step = self.script[min(len(self.requests), len(self.script) - 1)]
            self.requests.append(self.read_request(connection))
            if callable(step):
                step(connection)
            else:
                connection.sendall(step)
                connection.close()

    @staticmethod
    def read_request(connection: socket.socket) -> tuple[str, dict[str, str], bytes]:
        with connection.makefile("rb") as file:
            line = file.readline().decode().strip()
            headers = {}
            while text := file.readline().decode().strip():
                name, _, value = text.partition(": ")
                headers[name.lower()] = value
            return line, headers, file.read(int(headers.get("content-length", 0)))

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        for each in (self.listener, *self.open):
            each.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*script: bytes | Callable[[socket.socket], None]) -> Server:
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def pauses() -> list[float]:
    return []


def hang(_: socket.socket) -> None:
    """Leave the connection open and say nothing."""


def drip(connection: socket.socket) -> None:
    """Send an endless header, a byte at a time, until the other side has had enough."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    try:
        while True:
            connection.sendall(b"x")
            _real.sleep(0.01)
    except OSError:
        connection.close()


def test_a_webhook_gets_the_finding_as_it_is_in_the_findings_file(serve: Callable[..., Server]) -> None:
    server = serve(OK)

    Webhook(server.url("/hook?token=x"))(FINDING)

    ((line, headers, body),) = server.requests
    assert line == "POST /hook?token=x HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert headers["host"] == server.netloc
    assert json.loads(body) == FINDING.to_dict()


def test_a_url_without_path_is_posted_to_the_root(serve: Callable[..., Server]) -> None:
    server = serve(OK)

    Webhook(f"http://{server.netloc}")(FINDING)

    assert server.requests[0][0] == "POST / HTTP/1.1"


def test_user_and_password_of_the_url_are_sent_as_basic_authentication(serve: Callable[..., Server]) -> None:
    server = serve(OK)

    Webhook(f"http://me%40here:s%3Acret@{server.netloc}/")(FINDING)
    Webhook(f"http://me@{server.netloc}/")(FINDING)

    sent = [base64.b64decode(headers["authorization"].split()[1]) for _, headers, _ in server.requests]
    assert sent == [b"me@here:s:cret", b"me:"]


@pytest.mark.parametrize("path", ["", "/", "/api/v2/alerts", "/api/v2/alerts/"])
def test_an_alertmanager_gets_one_alert_at_its_v2_path(serve: Callable[..., Server], path: str) -> None:
    server = serve(OK)

    Alertmanager(server.url("/prefix" + path))(FINDING)

    line, _, body = server.requests[0]
    assert line == "POST /prefix/api/v2/alerts HTTP/1.1"
    assert json.loads(body) == json.loads(json.dumps([alert_for(FINDING)]))


def test_an_alert_has_labels_for_routing_and_annotations_for_reading() -> None:
    alert = alert_for(FINDING)

    instance = alert["labels"].pop("instance")
    assert instance == socket.gethostname()
    assert alert["labels"] == {
        "alertname": "ConcagentLockOrderInversion",
        "severity": "warning",
        "kind": "lock-order-inversion",
        "resource_kind": "lock",
        "confidence": "potential",
        "fingerprint": "abc123",
        "pid": "4711",
    }
    assert alert["annotations"] == {"title": FINDING.title, "advice": "take them in one order"}
    assert alert["startsAt"] == "2023-11-14T22:13:20.250+00:00"
    assert alert["endsAt"] == "2023-11-14T23:13:20.250+00:00"


def test_a_deadlock_is_critical() -> None:
    labels = alert_for(FINDING.with_changes(kind="deadlock"))["labels"]

    assert (labels["alertname"], labels["severity"]) == ("ConcagentDeadlock", "critical")


def test_500_is_tried_again_and_200_ends_it(serve: Callable[..., Server], pauses: list[float]) -> None:
    server = serve(answer(500), answer(503), OK)

    Webhook(server.url(), sleep=pauses.append)(FINDING)

    assert len(server.requests) == 3
    assert pauses == [0.5, 1.0]


def test_the_pauses_grow_up_to_a_limit_and_the_attempts_end(serve: Callable[..., Server], pauses: list[float]) -> None:
    server = serve(answer(500, b"out of order"))

    with pytest.raises(AlertError) as caught:
        Webhook(server.url(), attempts=9, sleep=pauses.append)(FINDING)

    assert pauses == [0.5, 1, 2, 4, 8, 16, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]
    assert (caught.value.status, caught.value.attempts) == (500, 9)
    assert str(caught.value) == f"cannot send a finding to http://{server.netloc} (attempt 9 of 9): answered 500"


def test_400_is_not_tried_again_and_its_answer_is_in_the_error(
    serve: Callable[..., Server], pauses: list[float]
) -> None:
    server = serve(answer(400, b"no such thing " + b"x" * 1000))

    with pytest.raises(AlertError, match=r"\(attempt 1 of 5\): answered 400: no such thing x{186}$") as caught:
        Webhook(server.url(), sleep=pauses.append)(FINDING)

    assert isinstance(caught.value, ConcagentError)
    assert (caught.value.target, caught.value.status) == (f"http://{server.netloc}", 400)
    assert (len(server.requests), pauses) == (1, [])


def test_a_refusal_whose_words_do_not_come_is_not_tried_again(serve: Callable[..., Server]) -> None:
    def refuse_and_hang(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\n")

    server = serve(refuse_and_hang)

    with pytest.raises(AlertError, match=r"\(attempt 1 of 5\): answered 400: Bad Request$"):
        Webhook(server.url(), timeout=0.1)(FINDING)

    assert len(server.requests) == 1


def test_a_refusal_without_words_is_named_by_its_reason(serve: Callable[..., Server]) -> None:
    with pytest.raises(AlertError, match=r"answered 404: Whatever$"):
        Webhook(serve(answer(404)).url())(FINDING)


def test_a_redirect_is_not_followed(serve: Callable[..., Server], pauses: list[float]) -> None:
    other = serve(OK)
    server = serve(answer(302, b"", f"Location: {other.url()}"))

    with pytest.raises(AlertError, match=r"answered 302: redirects are not followed$"):
        Webhook(server.url(), sleep=pauses.append)(FINDING)

    assert (len(server.requests), other.requests, pauses) == (1, [], [])


def test_a_server_that_refuses_the_connection_is_tried_again(pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]

    with pytest.raises(AlertError, match="ConnectionRefusedError") as caught:
        Webhook(f"http://127.0.0.1:{port}/", sleep=pauses.append)(FINDING)

    assert (caught.value.status, len(pauses)) == (None, 4)


@pytest.mark.parametrize("trouble", [hang, drip])
def test_a_server_that_hangs_or_drips_costs_one_time_out_for_each_attempt(
    serve: Callable[..., Server], pauses: list[float], trouble: Callable[[socket.socket], None]
) -> None:
    server = serve(trouble)
    begin_ns = _real.monotonic_ns()

    with pytest.raises(AlertError, match=r"TimeoutError|timeout") as caught:
        Webhook(server.url(), timeout=0.1, attempts=2, sleep=pauses.append)(FINDING)

    assert caught.value.attempts == 2
    assert 0.2 <= (_real.monotonic_ns() - begin_ns) / 1e9 < 5


def test_after_the_deadline_nothing_is_read() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"HTTP/1.1 200 OK")

        with pytest.raises(TimeoutError, match="the answer took too long"):
            _Dripproof(near, _real.monotonic_ns()).readinto(bytearray(10))


def test_a_server_that_hangs_once_gets_the_finding_the_second_time(
    serve: Callable[..., Server], pauses: list[float]
) -> None:
    server = serve(hang, OK)

    Webhook(server.url(), timeout=0.1, sleep=pauses.append)(FINDING)

    assert server.requests[0][2] == server.requests[1][2]


@pytest.mark.parametrize("noise", [b"", b"220 mail.example ESMTP\r\n"])
def test_a_server_that_does_not_speak_http_is_tried_again(
    serve: Callable[..., Server], pauses: list[float], noise: bytes
) -> None:
    server = serve(noise, OK)

    Webhook(server.url(), sleep=pauses.append)(FINDING)

    assert pauses == [0.5]


def test_the_path_of_the_url_is_a_secret_and_in_no_message(serve: Callable[..., Server]) -> None:
    server = serve(answer(403))

    with pytest.raises(AlertError) as caught:
        Webhook(f"http://me:hidden@{server.netloc}/T000/s3cr3t?key=k3y")(FINDING)

    assert not [word for word in ("hidden", "s3cr3t", "k3y", "me:") if word in str(caught.value)]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://a.example/x", "https://a.example:443"),
        ("http://[::1]/x", "http://[::1]:80"),
        ("http://a.example:9093", "http://a.example:9093"),
    ],
)
def test_the_target_is_scheme_host_and_port(url: str, target: str) -> None:
    assert Webhook(url).target == target


def test_https_is_spoken_with_certificates_checked() -> None:
    connection: Any = Webhook("https://a.example/")._connection()

    assert isinstance(connection, HTTPSConnection)
    assert connection._context.check_hostname  # type: ignore[attr-defined]


def test_what_json_does_not_know_is_sent_as_text(serve: Callable[..., Server]) -> None:
    server = serve(OK)

    Webhook(server.url())(FINDING.with_changes(order=({"gates": frozenset({"g"})},)))

    assert json.loads(server.requests[0][2])["order"] == [{"gates": "frozenset({'g'})"}]
