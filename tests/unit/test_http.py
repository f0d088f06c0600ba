"""Promises of the small HTTP responder: what it answers, and that no client can hold it or the program up.

The tests are their own poll loop: they connect, call ``handle`` and read.  Every answer is read to the end of the stream,
so a test that passes has seen the connection closed.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from concagent import _real
from concagent.errors import ConfigError
from concagent.exporters import http as exporter
from concagent.exporters.http import MAX_HEAD_BYTES, SVG, TEXT, Endpoint

HOST = b"Host: localhost\r\n"


def text_route() -> tuple[str, bytes]:
    return TEXT, b"fine\n"


def svg_route() -> tuple[str, bytes]:
    return SVG, b"<svg/>"


ROUTES = {"/healthz": text_route, "/graph": svg_route}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint("127.0.0.1", 0, ROUTES)
    yield made
    made.close()


def connect(endpoint: Endpoint) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", endpoint.port), timeout=10)
    client.settimeout(10)
    return client


def handle(endpoint: Endpoint) -> None:
    readable, _, _ = select.select([endpoint], [], [], 10)
    assert readable
    endpoint.handle()


def read_all(client: socket.socket) -> bytes:
    answer = b""
    while chunk := client.recv(65536):
        answer += chunk
    client.close()
    return answer


def ask(endpoint: Endpoint, request: bytes) -> bytes:
    client = connect(endpoint)
    client.sendall(request)
    handle(endpoint)
    return read_all(client)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.002)


def test_a_path_is_answered_with_its_content_and_type(endpoint: Endpoint) -> None:
    head, _, body = ask(endpoint, b"GET /graph HTTP/1.1\r\n" + HOST + b"\r\n").partition(b"\r\n\r\n")

    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Type: image/svg+xml" in lines
    assert b"Content-Length: 6" in lines
    assert b"Connection: close" in lines
    assert body == b"<svg/>"


def test_the_standard_client_understands_the_answer(endpoint: Endpoint) -> None:
    client = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)
    client.request("GET", "/healthz")
    handle(endpoint)

    response = client.getresponse()

    assert (response.status, response.read()) == (200, b"fine\n")
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert response.getheader("Cache-Control") == "no-store"
    assert "default-src 'none'" in (response.getheader("Content-Security-Policy") or "")
    assert response.getheader("Access-Control-Allow-Origin") is None
    client.close()


def test_the_date_is_written_as_http_wants_it(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_real, "wall_seconds", lambda: 784111777.0)

    answer = ask(endpoint, b"GET /healthz HTTP/1.0\r\n\r\n")

    assert b"\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n" in answer


def test_head_gets_the_length_but_no_body(endpoint: Endpoint) -> None:
    answer = ask(endpoint, b"HEAD /healthz HTTP/1.1\r\n" + HOST + b"\r\n")

    assert status(answer) == 200
    assert b"Content-Length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.0\n\n",
        b"GET /healthz HTTP/1.1\r\nhOST:127.0.0.1:9123\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: [::1]:9123\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: app.localhost:1\r\nAccept: */*\r\nX-Empty:\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: LocalHost.\r\nX-Latin: \xe9\r\n\r\n",
    ],
)
def test_requests_of_all_usual_shapes_are_answered(endpoint: Endpoint, request_head: bytes) -> None:
    assert status(ask(endpoint, request_head)) == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz/", "/healthz?x=1", "/healthz%20", "//healthz", "/../healthz", "*", "http://localhost/healthz"],
)
def test_only_exact_paths_exist(endpoint: Endpoint, path: str) -> None:
    answer = ask(endpoint, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    assert status(answer) == 404
    assert answer.endswith(b"there are: /graph /healthz\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "BREW"])
def test_other_methods_are_refused(endpoint: Endpoint, method: str) -> None:
    answer = ask(endpoint, f"{method} /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    assert status(answer) == 405
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize(
    "request_head",
    [
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /heal\x00thz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /heal\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n",
    ],
)
def test_what_is_no_request_is_a_bad_request(endpoint: Endpoint, request_head: bytes) -> None:
    assert status(ask(endpoint, request_head)) == 400


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9123", "localhost.evil.example", "[evil]", "1.2.3", ""])
def test_a_page_of_another_name_cannot_read_a_loopback_endpoint(endpoint: Endpoint, host: str) -> None:
    answer = ask(endpoint, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

    assert status(answer) == 421
    assert b"fine" not in answer


@pytest.mark.skipif(sys.platform == "win32", reason="0.0.0.0 cannot be connected to there")
def test_an_endpoint_for_other_machines_answers_to_any_name() -> None:
    endpoint = Endpoint("0.0.0.0", 0, ROUTES)

    answer = ask(endpoint, b"GET /healthz HTTP/1.1\r\nHost: metrics.example\r\n\r\n")

    assert status(answer) == 200
    endpoint.close()


def test_a_head_that_is_too_long_is_refused_and_not_stored(endpoint: Endpoint) -> None:
    request = b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * MAX_HEAD_BYTES

    assert status(ask(endpoint, request + b"\r\n\r\n")) == 400


def test_a_head_of_just_the_allowed_length_is_read(endpoint: Endpoint) -> None:
    request = b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: "
    request += b"a" * (MAX_HEAD_BYTES - len(request) - 4) + b"\r\n\r\n"

    assert len(request) == MAX_HEAD_BYTES
    assert status(ask(endpoint, request)) == 200


def test_pipelined_requests_and_bodies_are_ignored(endpoint: Endpoint) -> None:
    request = b"GET /healthz HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"

    # More than one read takes in: what is left unread at the close would reset the connection.
    answer = ask(endpoint, request + request * (3 * MAX_HEAD_BYTES // len(request)))

    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == 200


def test_what_a_client_sends_beyond_its_request_does_not_reset_the_connection() -> None:
    endpoint = Endpoint("127.0.0.1", 0, ROUTES, timeout=0.3)
    client = connect(endpoint)
    client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n" + b"x" * (3 * MAX_HEAD_BYTES))
    handle(endpoint)

    answer = client.recv(65536)

    wait_until(lambda: not endpoint._connections)
    endpoint.close()
    assert status(answer) == 200
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    client.close()


def test_a_head_that_comes_in_pieces_is_put_together(endpoint: Endpoint) -> None:
    client = connect(endpoint)
    handle(endpoint)

    for piece in (b"GET /hea", b"lthz HTTP/1.1\r", b"\nHost: localhost\r\n\r", b"\n"):
        client.sendall(piece)

    assert status(read_all(client)) == 200


def test_a_client_that_hangs_up_within_the_head_gets_a_bad_request(endpoint: Endpoint) -> None:
    client = connect(endpoint)
    client.sendall(b"GET /healthz")
    client.shutdown(socket.SHUT_WR)
    handle(endpoint)

    assert status(read_all(client)) == 400


def test_a_client_that_says_nothing_and_hangs_up_gets_nothing(endpoint: Endpoint) -> None:
    client = connect(endpoint)
    client.shutdown(socket.SHUT_WR)
    handle(endpoint)

    assert read_all(client) == b""


def test_a_slow_client_is_cut_off_however_often_it_sends_a_byte() -> None:
    endpoint = Endpoint("127.0.0.1", 0, ROUTES, timeout=0.3)
    client = connect(endpoint)
    handle(endpoint)
    began = time.monotonic()

    # Each byte comes well before a limit per read would be up.
    with contextlib.suppress(OSError):
        while not select.select([client], [], [], 0.05)[0]:
            client.sendall(b"G")
            assert time.monotonic() < began + 5

    assert status(read_all(client)) == 408
    endpoint.close()


def test_a_client_that_does_not_read_is_cut_off() -> None:
    endpoint = Endpoint("127.0.0.1", 0, {"/big": lambda: (TEXT, b"x" * 50_000_000)}, timeout=0.3)
    client = connect(endpoint)
    client.sendall(b"GET /big HTTP/1.0\r\n\r\n")

    handle(endpoint)

    wait_until(lambda: not endpoint._connections)
    client.close()
    endpoint.close()


def test_a_long_answer_arrives_whole() -> None:
    endpoint = Endpoint("127.0.0.1", 0, {"/big": lambda: (TEXT, b"x" * 5_000_000)})

    answer = ask(endpoint, b"GET /big HTTP/1.0\r\n\r\n")

    assert len(answer.partition(b"\r\n\r\n")[2]) == 5_000_000
    endpoint.close()


def test_an_exception_in_a_route_is_a_500_that_does_not_quote_it() -> None:
    told: list[Exception] = []

    def broken() -> tuple[str, bytes]:
        raise KeyError("secret")

    endpoint = Endpoint("127.0.0.1", 0, {"/report": broken}, on_error=told.append)

    answer = ask(endpoint, b"GET /report HTTP/1.0\r\n\r\n")

    assert status(answer) == 500
    assert b"KeyError" in answer
    assert b"secret" not in answer
    assert [repr(error) for error in told] == ["KeyError('secret')"]
    endpoint.close()


def test_an_on_error_that_raises_costs_nothing() -> None:
    def broken(*_: object) -> NoReturn:
        raise ValueError

    endpoint = Endpoint("127.0.0.1", 0, {"/report": broken}, on_error=broken)

    assert status(ask(endpoint, b"GET /report HTTP/1.0\r\n\r\n")) == 500
    endpoint.close()


def test_the_hook_is_called_first_thing_in_each_thread_of_ours() -> None:
    seen: list[tuple[str, int]] = []

    def route() -> tuple[str, bytes]:
        seen.append(("route", _real.get_ident()))
        return text_route()

    endpoint = Endpoint("127.0.0.1", 0, {"/": route}, on_thread=lambda: seen.append(("thread", _real.get_ident())))

    ask(endpoint, b"GET / HTTP/1.0\r\n\r\n")

    (first, ident), (second, same) = seen
    assert (first, second) == ("thread", "route")
    assert ident == same != _real.get_ident()
    endpoint.close()


def test_a_hook_that_raises_ends_the_connection_and_is_told() -> None:
    told: list[Exception] = []

    def broken() -> None:
        raise ValueError("hook")

    endpoint = Endpoint("127.0.0.1", 0, ROUTES, on_thread=broken, on_error=told.append)
    client = connect(endpoint)
    handle(endpoint)

    assert read_all(client) == b""
    assert [str(error) for error in told] == ["hook"]
    endpoint.close()


def test_clients_in_excess_are_refused_at_once() -> None:
    endpoint = Endpoint("127.0.0.1", 0, ROUTES, limit=2)
    held = [connect(endpoint) for _ in range(2)]
    for _ in held:
        handle(endpoint)

    answer = ask(endpoint, b"GET /healthz HTTP/1.0\r\n\r\n")

    assert status(answer) == 503
    assert b"\r\nRetry-After: 1\r\n" in answer
    for client in held:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert status(read_all(client)) == 200
    wait_until(lambda: not endpoint._connections)
    assert status(ask(endpoint, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200
    endpoint.close()


def test_a_client_in_excess_that_said_nothing_yet_does_not_block_the_loop() -> None:
    endpoint = Endpoint("127.0.0.1", 0, ROUTES, limit=0)
    client = connect(endpoint)
    handle(endpoint)

    assert status(read_all(client)) == 503
    endpoint.close()


def test_without_a_thread_to_be_had_the_client_is_refused(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_real, "start_new_thread", no_thread)

        assert status(ask(endpoint, b"GET /healthz HTTP/1.0\r\n\r\n")) == 503

    assert status(ask(endpoint, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200


def test_handle_without_a_client_returns_at_once(endpoint: Endpoint) -> None:
    endpoint.handle()

    assert status(ask(endpoint, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_process_without_descriptors_hangs_up_instead_of_spinning() -> None:
    # In a process of its own: pytest needs descriptors, too.
    program = textwrap.dedent(
        """
        import os, resource, select, socket
        from concagent.exporters.http import Endpoint

        endpoint = Endpoint("127.0.0.1", 0, {"/": lambda: ("text/plain", b"fine")})
        clients = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(3)]
        last = socket.create_connection(("127.0.0.1", endpoint.port))
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        for client in clients:
            endpoint.handle()
            client.settimeout(10)
            try:
                assert client.recv(100) == b""
            except ConnectionResetError:
                pass
        # Somebody takes the spare while we have given it up: no answer, but no crash and no spinning either.
        os.close(endpoint._spare)
        endpoint._spare = None
        taken.append(os.dup(0))
        endpoint.handle()
        for descriptor in taken:
            os.close(descriptor)
        endpoint.handle()
        last.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        last.settimeout(10)
        assert last.recv(8) == b"HTTP/1.1"
        endpoint.close()
        """
    )

    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_port_that_is_taken_is_a_config_error_that_names_it(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match=f"metrics_port={endpoint.port}") as caught:
        Endpoint("127.0.0.1", endpoint.port, ROUTES)

    assert (caught.value.option, caught.value.value) == ("metrics_port", str(endpoint.port))


@pytest.mark.parametrize("port", [-1, 65536, "80", 1.5])
def test_a_port_that_cannot_be_is_a_config_error(port: object) -> None:
    with pytest.raises(ConfigError, match="metrics_port") as caught:
        Endpoint("127.0.0.1", port, ROUTES)  # type: ignore[arg-type]

    assert caught.value.value == repr(port)


@pytest.mark.parametrize("address", ["", "192.0.2.1", "not an address", "[::1", "x" * 300])
def test_an_address_that_is_not_ours_is_a_config_error(address: str) -> None:
    with pytest.raises(ConfigError, match="metrics_address") as caught:
        Endpoint(address, 0, ROUTES)

    assert (caught.value.option, caught.value.value) == ("metrics_address", repr(address))


def test_a_refused_port_is_told_as_the_system_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(listener: socket.socket, _: object) -> None:
        listener.close()
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(exporter, "_bind", refuse)

    with pytest.raises(ConfigError, match=r"metrics_port=80 at 127\.0\.0\.1: Permission denied"):
        Endpoint("127.0.0.1", 80, ROUTES)


@pytest.mark.parametrize("address", ["::1", "[::1]"])
def test_ipv6_literals_are_understood(address: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")
    endpoint = Endpoint(address, 0, ROUTES)
    client = socket.create_connection(("::1", endpoint.port), timeout=10)
    client.sendall(f"GET /healthz HTTP/1.1\r\nHost: [::1]:{endpoint.port}\r\n\r\n".encode())
    handle(endpoint)

    assert status(read_all(client)) == 200
    endpoint.close()


def test_a_name_is_resolved() -> None:
    endpoint = Endpoint("localhost", 0, ROUTES)

    assert endpoint.port > 0
    endpoint.close()


def test_after_close_nobody_listens_and_the_port_is_free() -> None:
    endpoint = Endpoint("127.0.0.1", 0, ROUTES)
    port = endpoint.port

    endpoint.close()
    endpoint.close()

    assert endpoint.fileno() == -1
    endpoint.handle()
    Endpoint("127.0.0.1", port, ROUTES).close()


def test_close_hangs_up_and_waits_for_the_threads() -> None:
    endpoint = Endpoint("127.0.0.1", 0, ROUTES)
    client = connect(endpoint)
    handle(endpoint)

    endpoint.close()

    assert not endpoint._connections
    assert read_all(client) == b""


def test_close_does_not_wait_for_ever_for_a_route() -> None:
    gate = _real.allocate_lock()
    gate.acquire()

    def stuck() -> tuple[str, bytes]:
        gate.acquire()
        return text_route()

    endpoint = Endpoint("127.0.0.1", 0, {"/": stuck})
    client = connect(endpoint)
    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    handle(endpoint)
    began = time.monotonic()

    endpoint.close()

    assert time.monotonic() - began < 5
    gate.release()
    client.close()
    wait_until(lambda: not endpoint._connections)


def test_no_thread_of_ours_is_known_to_threading() -> None:
    known: list[list[threading.Thread]] = []

    def route() -> tuple[str, bytes]:
        known.append(threading.enumerate())
        return text_route()

    endpoint = Endpoint("127.0.0.1", 0, {"/": route})
    before = threading.enumerate()

    ask(endpoint, b"GET / HTTP/1.0\r\n\r\n")

    assert known == [before]
    endpoint.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_child_of_a_fork_neither_listens_nor_holds_connections_open() -> None:
    # The child sleeps until it is killed; what the client sees must not depend on it.
    program = textwrap.dedent(
        """
        import os, select, signal, socket, warnings
        warnings.simplefilter("ignore")
        from concagent.exporters.http import Endpoint

        endpoint = Endpoint("127.0.0.1", 0, {"/": lambda: ("text/plain", b"fine")})
        client = socket.create_connection(("127.0.0.1", endpoint.port))
        client.settimeout(10)
        select.select([endpoint], [], [], 10)
        endpoint.handle()
        ready, told = os.pipe()
        endpoint._lock.acquire()
        child = os.fork()
        if child == 0:
            client.close()
            (connection,) = endpoint._connections
            endpoint.after_fork_in_child()
            assert connection.fileno() == -1
            assert endpoint.fileno() == -1 and endpoint._spare is None and not endpoint._connections
            endpoint.close()
            os.write(told, b"x")
            signal.pause()
        endpoint._lock.release()
        assert os.read(ready, 1) == b"x"
        client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        answer = b""
        while chunk := client.recv(1000):
            answer += chunk
        assert answer.endswith(b"fine")
        endpoint.close()
        Endpoint("127.0.0.1", endpoint.port, {}).close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        """
    )

    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE") or not exporter._SEND_FLAGS, reason="needs MSG_NOSIGNAL")
def test_a_client_that_goes_away_does_not_kill_a_program_with_default_sigpipe() -> None:
    program = textwrap.dedent(
        """
        import select, signal, socket, struct
        from concagent.exporters.http import Endpoint

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        gone = []
        def big():
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            return "text/plain", b"x" * 20_000_000
        endpoint = Endpoint("127.0.0.1", 0, {"/": big})
        client = socket.create_connection(("127.0.0.1", endpoint.port))
        client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        client.shutdown(socket.SHUT_WR)  # or the first write after the reset fails without the signal
        select.select([endpoint], [], [], 10)
        endpoint.handle()
        while endpoint._connections:
            select.select([], [], [], 0.01)
        endpoint.close()
        """
    )

    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
