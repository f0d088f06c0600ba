"""A very small HTTP server that is safe to have inside somebody else's process.

The standard library's servers are built of ``threading`` and ``socket``, which the agent patches: they would show up
in our own reports and could stand in a deadlock of the program that they are asked about.  So requests are read and
answered by hand, with the C socket type, original locks and raw threads.

It listens inside the monitor's poll loop, which must stay quick to see the next deadlock; so the loop only accepts, and
each connection is answered on a short-lived thread.  What a client can cost is bounded: so many connections at once, so
many bytes of request, so many seconds for all of it (a limit per read would let a client that sends a byte now and then
stay for hours).  A client in excess gets 503 at once.

When a program has run out of file descriptors - just when an operator wants to look - ``accept`` fails, the connection
stays in the queue, and a poll loop would spin.  A spare descriptor is kept for this: it is given up, the connection is
accepted and closed, and the spare is taken again.

Nothing but the path of a request means anything.  The picture can show source lines, so on a loopback address requests
are refused that name a host by anything but an address or ``localhost``: a web page can make its own name point to
127.0.0.1 and have the browser read us (DNS rebinding), but it cannot choose the ``Host`` that the browser sends.

Invariants H1 ``handle`` does not block.
           H2 at most ``limit`` connection threads exist; each ends within about three times ``timeout`` seconds, unless
              a route does not return.
           H3 ``_connections`` holds exactly the sockets that a connection thread may still use; a socket leaves it
              before it is closed, so ``close`` never shuts down a descriptor that was given to somebody else.
Limits     HTTP/1.0 and 1.1 without keep-alive, bodies, queries, compression or TLS.
Sources    RFC 9112 (message syntax), RFC 9110 §9.3 (GET, HEAD), §15.5 (status codes); libev's ev(3), "The special
           problem of accept()ing when you can't".
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import re
import time
from typing import TYPE_CHECKING, Final

from concagent import _real
from concagent.descriptors import LOST, SETTLE_NS, Descriptor, lifted
from concagent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Route = Callable[[], tuple[str, bytes]]

TEXT: Final = "text/plain; charset=utf-8"
SVG: Final = "image/svg+xml"
JSON: Final = "application/json"

MAX_HEAD_BYTES: Final = 8192

_MAX_DRAINED_BYTES: Final = 65536
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    421: "Misdirected Request",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_SECURITY_HEADERS: Final = (
    "Cache-Control: no-store",
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy: same-origin",
    "Referrer-Policy: no-referrer",
    "X-Content-Type-Options: nosniff",
    "X-Frame-Options: DENY",
)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)

_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")

# A program may have given SIGPIPE its default action back; a client that hangs up must not kill it.
_SEND_FLAGS: Final[int] = getattr(_socket, "MSG_NOSIGNAL", 0)
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class _RefusedError(Exception):
    """A request that is answered with an error; ``status`` is its code."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Endpoint:
    """A listening socket for a poll loop.

    ``fileno``, ``handle``, ``close`` and ``after_fork_in_child`` are for one thread at a time, that of the loop.
    """

    def __init__(
        self,
        address: str,
        port: int,
        routes: Mapping[str, Route],
        *,
        on_thread: Callable[[], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
        limit: int = 8,
        timeout: float = 5.0,
    ) -> None:
        """Listen at once, so that a port that is taken is known before anything is patched.

        Args:
            address: IPv4 or IPv6 address (with or without brackets), or a host name.
            port: 0 lets the system choose; see `port`.
            routes: Exact paths, and what returns content type and body.  Called on a connection thread.
            on_thread: Called first thing in each connection thread, which lets the agent know it as its own.
            on_error: Told about exceptions of routes, on the connection thread.
            limit: Connections answered at once.
            timeout: Seconds for reading a request, and again for sending the answer.

        Raises:
            ConfigError: The port is taken, not allowed or out of range, or the address is not one of this machine.
        """
        self._routes = dict(routes)
        self._on_thread = on_thread
        self._on_error = on_error
        self._limit = limit
        self._timeout = timeout
        self._closed = False
        self._connections: set[_socket.socket] = set()
        self._lock = _real.allocate_lock()
        self._idle = _real.allocate_lock()
        self._idle.acquire()
        self._listener = _listen(address, port)
        bound = self._listener.getsockname()
        self.port: int = bound[1]
        self._address: str = bound[0]
        self._loopback = bound[0].startswith("127.") or bound[0] == "::1"
        self._descriptor = Descriptor(self._listener.fileno())
        self._spare = _spare(self._listener)
        self._lost_ns = 0

    def fileno(self) -> int:
        """Return the descriptor to poll for reading, -1 once closed, or for a moment after the program closed it."""
        if self._closed:
            return -1
        if self._lost_ns:
            self._listen_again()
        elif not self._descriptor.is_ours():
            self._close_descriptors()
            self._lost_ns = _real.monotonic_ns()
            self._tell(OSError(errno.EBADF, LOST))
        return self._listener.fileno()

    def _listen_again(self) -> None:
        if _real.monotonic_ns() - self._lost_ns < SETTLE_NS or self._listener.fileno() >= 0:
            return
        try:
            self._listener = _listen(self._address, self.port)
        except ConfigError as error:  # a child of the program has it, perhaps for ever
            self._closed = True
            self._tell(error)
            return
        self._lost_ns = 0
        self._descriptor = Descriptor(self._listener.fileno())
        self._spare = _spare(self._listener)

    def handle(self) -> None:
        """Accept one connection, if there is one, and have it answered on a thread of its own."""
        if self.fileno() < 0:
            return
        try:
            descriptor = _accept(self._listener)
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                self._shed()
            return
        connection = _socket.socket(fileno=descriptor)
        with self._lock:
            admitted = not self._closed and len(self._connections) < self._limit
            if admitted:
                self._connections.add(connection)
        if not admitted:
            _refuse(connection)
            return
        try:
            _real.start_agent_thread(self._serve, (connection,))
        except RuntimeError:  # no more threads
            with self._lock:
                self._connections.discard(connection)
            _refuse(connection)

    def close(self) -> None:
        """Stop listening and hang up on everybody; return when the threads are done, after a second at the latest."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            busy = bool(self._connections)
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(_socket.SHUT_RDWR)
        self._close_descriptors()
        if busy:
            self._idle.acquire(timeout=1.0)

    def after_fork_in_child(self) -> None:
        """Close the child's copies of all sockets; the port stays the parent's alone.

        Otherwise both would accept from one queue, and a client would wait for an end of file that the child's copy
        holds back.  Nothing is shut down: that would reach the parent's clients.
        """
        self._lock = _real.allocate_lock()
        self._closed = True
        self._close_descriptors()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.close()
        self._connections = set()

    def _close_descriptors(self) -> None:
        """Close listener and spare, its duplicate, unless the program did: then the numbers are left to whom they belong now."""
        if not self._descriptor.is_ours():
            self._listener.detach()
        with contextlib.suppress(OSError):
            self._listener.close()
        if self._spare is not None:
            self._close_spare(self._spare)
            self._spare = None

    def _close_spare(self, spare: int) -> None:
        if self._descriptor.has_file(spare):
            with contextlib.suppress(OSError):
                os.close(spare)

    def _shed(self) -> None:
        """Get rid of one connection although no descriptor is left."""
        if self._spare is None:
            # Another thread was quicker than we when we wanted the spare back.  Without it the connection stays in the
            # queue and poll returns at once, so this pause is what keeps the monitor from spinning.
            _real.sleep(0.05)
        else:
            self._close_spare(self._spare)
            with contextlib.suppress(OSError):
                os.close(_accept(self._listener))
        self._spare = _spare(self._listener)

    def _serve(self, connection: _socket.socket) -> None:
        """Answer one connection; the whole life of a connection thread."""
        try:
            if self._on_thread is not None:
                self._on_thread()
            self._answer(connection)
        except OSError:
            pass  # the client went away or was too slow: its affair
        except Exception as error:  # noqa: BLE001  # a border: it would be printed into the program's stderr
            self._tell(error)
        finally:
            # A child that was forked past our hooks may hold a copy; the client shall see the end all the same.
            with contextlib.suppress(OSError):
                connection.shutdown(_socket.SHUT_RDWR)
            with self._lock:
                self._connections.discard(connection)
                last = self._closed and not self._connections
            connection.close()
            if last:
                self._idle.release()

    def _answer(self, connection: _socket.socket) -> None:
        method = b""
        try:
            head = self._read_head(connection)
            if head is None:
                return
            method, path, host = _parse(head)
            status, kind, body = self._respond(method, path, host)
        except _RefusedError as refusal:
            status, kind, body = refusal.status, TEXT, f"{refusal}\n".encode()
        connection.settimeout(self._timeout)
        connection.sendall(_response(status, kind, body, method != b"HEAD"), _SEND_FLAGS)
        self._linger(connection)

    def _respond(self, method: bytes, path: str, host: str | None) -> tuple[int, str, bytes]:
        """Return status, content type and body for a request that could be read."""
        if method not in (b"GET", b"HEAD"):
            raise _RefusedError(405, "only GET and HEAD are allowed")
        if self._loopback and host is not None and not _is_local(host):
            raise _RefusedError(421, f"not known by this name; use http://localhost:{self.port}")
        route = self._routes.get(path)
        if route is None:
            raise _RefusedError(404, "not found; there are: " + " ".join(sorted(self._routes)))
        try:
            kind, body = route()
        except Exception as error:  # a border: whatever a report stumbles over, the client gets an answer
            self._tell(error)
            # The type and not the message: a message can contain anything.
            raise _RefusedError(500, f"concagent could not make this page: {type(error).__name__}") from error
        return 200, kind, body

    def _read_head(self, connection: _socket.socket) -> bytes | None:
        """Return the request up to the empty line, None if the client said nothing and hung up."""
        deadline = _real.monotonic_ns() + int(self._timeout * 1e9)
        head = b""
        while True:
            end = re.search(rb"\r?\n\r?\n", head)
            if end:
                return head[: end.start()]
            if len(head) >= MAX_HEAD_BYTES:
                raise _RefusedError(400, f"a request head longer than {MAX_HEAD_BYTES} bytes")
            left = (deadline - _real.monotonic_ns()) / 1e9
            if left <= 0:
                raise _RefusedError(408, "the request did not end in time")
            connection.settimeout(left)
            try:
                chunk = connection.recv(MAX_HEAD_BYTES - len(head))
            except TimeoutError:
                continue
            if not chunk:
                if head:
                    raise _RefusedError(400, "the request ended within its head")
                return None
            head += chunk

    def _linger(self, connection: _socket.socket) -> None:
        """Read what the client still sends, within limits, before the socket is closed.

        Closing a socket with unread bytes resets the connection, and the reset can overtake the answer.
        """
        connection.shutdown(_socket.SHUT_WR)
        deadline = _real.monotonic_ns() + int(min(self._timeout, 1.0) * 1e9)
        drained = 0
        while drained < _MAX_DRAINED_BYTES:
            left = (deadline - _real.monotonic_ns()) / 1e9
            if left <= 0:
                return
            connection.settimeout(left)
            chunk = connection.recv(4096)
            if not chunk:
                return
            drained += len(chunk)

    def _tell(self, error: Exception) -> None:
        if self._on_error is not None:
            with contextlib.suppress(Exception):  # a border: nobody is left to be told
                self._on_error(error)


def _listen(address: str, port: int) -> _socket.socket:
    """Return a listening, non-blocking socket; ConfigError says which option is at fault."""
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigError(
            f"metrics_port must be from 0 to 65535, not {port!r}",
            option="metrics_port",
            value=repr(port),
            allowed="0 to 65535; 0 lets the system choose",
        )
    host = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        # An empty host would mean all interfaces, which nobody should get by accident.
        found = _socket.getaddrinfo(host or "?", port, _socket.AF_UNSPEC, _socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _bad_address(address, error) from error
    # A name such as localhost can have two addresses, the first of a family that this machine does not have.
    reasons: list[OSError] = []
    for family, kind, protocol, _, target in found:
        try:
            listener = _socket.socket(family, kind, protocol)
            if listener.fileno() <= 2:
                listener = _socket.socket(fileno=lifted(listener.detach()))
            return _bind(listener, target)
        except OSError as error:
            reasons.append(error)
    reason = reasons[0]
    if reason.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        raise _bad_address(address, reason) from reason
    hint = "choose another port, or 0 for any free one"
    raise ConfigError(
        f"cannot listen on metrics_port={port} at {address}: {reason.strerror}; {hint}",
        option="metrics_port",
        value=repr(port),
        allowed="a free port, or 0",
    ) from reason


def _bind(listener: _socket.socket, target: tuple[object, ...]) -> _socket.socket:
    try:
        if os.name == "posix":
            # A port in TIME_WAIT is free.  On Windows the same option would let us share a port that is in use.
            listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(16)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _accept(listener: _socket.socket) -> int:
    """Return the descriptor of the next connection."""
    # What ``socket.socket.accept`` is made of; the public method would give an object of the class that hooks replace.
    descriptor: int = listener._accept()[0]  # type: ignore[attr-defined]  # noqa: SLF001
    return descriptor


def _bad_address(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"cannot listen on metrics_address={address!r}: {error}; give an address of this machine",
        option="metrics_address",
        value=repr(address),
        allowed="an IPv4 or IPv6 address or a host name of this machine",
    )


def _spare(listener: _socket.socket) -> int | None:
    """Return a descriptor of no use, None if there is none to be had.  A duplicate: ``open`` may be patched."""
    try:
        return lifted(os.dup(listener.fileno()))
    except OSError:
        return None


def _refuse(connection: _socket.socket) -> None:
    """Send 503 and hang up, without waiting: this is the monitor's thread."""
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.recv(MAX_HEAD_BYTES)
        body = b"too many requests at once; try again\n"
        connection.send(_response(503, TEXT, body, True), _SEND_FLAGS)
    connection.close()


def _parse(head: bytes) -> tuple[bytes, str, str | None]:
    """Return method, path and ``Host`` of a request; None where HTTP/1.0 has no host."""
    first, *lines = re.split(rb"\r?\n", head)
    request = _REQUEST_LINE.fullmatch(first)
    if request is None:
        raise _RefusedError(400, "not a request of HTTP/1.0 or HTTP/1.1")
    hosts: list[str] = []
    for line in lines:
        header = _HEADER_LINE.fullmatch(line)
        if header is None:
            raise _RefusedError(400, "a header line that is none")
        if header[1].lower() == b"host":
            hosts.append(header[2].decode("latin-1").strip())
    if len(hosts) > 1 or (request[3] == b"1" and not hosts):
        raise _RefusedError(400, "a request has one Host")
    return request[1], request[2].decode("ascii"), hosts[0] if hosts else None


def _is_local(host: str) -> bool:
    """Say whether a ``Host`` is an address or ``localhost``, which no other site can call its own."""
    if host.startswith("["):
        name = host[1:].partition("]")[0]
        family = _socket.AF_INET6
    else:
        name = host.partition(":")[0].lower().rstrip(".")
        family = _socket.AF_INET
        if name == "localhost" or name.endswith(".localhost"):
            return True
    try:
        _socket.inet_pton(family, name)
    except (OSError, UnicodeError):
        return False
    return True


def _response(status: int, kind: str, body: bytes, with_body: bool) -> bytes:
    """Return the bytes of a whole answer."""
    now = time.gmtime(_real.wall_seconds())
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Date: {_DAYS[now.tm_wday]}, {now.tm_mday:02} {_MONTHS[now.tm_mon - 1]} {now.tm_year:04} "
        f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} GMT",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(["Allow: GET, HEAD"] if status == 405 else []),
        *(["Retry-After: 1"] if status == 503 else []),
        *_SECURITY_HEADERS,
        "",
        "",
    ]
    head = "\r\n".join(lines).encode("latin-1")
    return head + body if with_body else head
