"""Findings pushed over HTTP: to a webhook as they are, to an Alertmanager as alerts.

An alert is worth sending only if it arrives on the night when half of the network is down too.  So what may pass by
itself is tried again, with growing pauses: no connection, a time-out, a 5xx.  What will not pass, a 4xx or a redirect,
is not: we never follow a redirect, since a URL given by the user must not become one given by a server.  The number of
attempts and the time for each are bounded, also against a server that sends one byte a second; a finding that could not
be sent is an ``AlertError``, which the delivery counts.

Assumes    called from a delivery thread only: one call can last ``attempts`` time-outs and all pauses between.
Invariants A1 one attempt ends within ``timeout`` for each of: connecting to one address, sending, the whole answer.
           A2 messages name scheme, host and port of a URL only: path and user may be secrets (webhook tokens).
Limits     at least once: an answer that is lost makes us send again; receivers know a finding by its ``id``,
           Alertmanager an alert by its labels.  Proxies of the environment are not used.  Resolving a name has no time-out.
Cost       http.client (and with it ssl) is imported at the first finding, not before.
Sources    Alertmanager api/v2/openapi.yaml; RFC 9110, 15.5 and 15.6 (which status may be repeated).
"""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from concagent import _real
from concagent.errors import ConcagentError
from concagent.exporters.log import WARNING_KINDS
from concagent.model import Finding

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

ATTEMPTS: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0

# An alert that is not renewed is resolved after the Alertmanager's resolve_timeout, five minutes by default, although
# the deadlock is still there.  We send a finding once, so we say for how long it stands.
FIRING_SECONDS: Final = 3600.0

_ALERTS_PATH: Final = "/api/v2/alerts"


class AlertError(ConcagentError):
    """A finding could not be sent.

    Attributes:
        target: Scheme, host and port of the URL.
        status: The last HTTP status, None where no answer came.
        attempts: How many times we tried.
    """

    def __init__(self, message: str, *, target: str = "", status: int | None = None, attempts: int = 0) -> None:
        """Keep the parts in fields beside the message."""
        super().__init__(message)
        self.target = target
        self.status = status
        self.attempts = attempts


class _HttpSink:
    """Posts JSON to one URL, again and again if need be."""

    def __init__(
        self,
        url: str,
        timeout: float = 5.0,
        *,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], object] = _real.sleep,
    ) -> None:
        """Keep the parts of the URL; nothing is connected yet.

        Args:
            url: An http or https URL, as ``config`` has checked; ``user:password@`` is sent as basic authentication.
            timeout: Seconds for one attempt; see invariant A1.
            attempts: How many times to try, at least once.
            sleep: Waits the seconds between two attempts.
        """
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._path = parts.path
        self._query = f"?{parts.query}" if parts.query else ""
        self._user = (parts.username, parts.password or "") if parts.username is not None else None
        self._timeout = timeout
        self._attempts = max(1, attempts)
        self._sleep = sleep

    @property
    def target(self) -> str:
        """Return scheme, host and port: what may be shown of the URL."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http{'s' if self._secure else ''}://{host}:{self._port}"

    def _post(self, path: str, document: object) -> None:
        """Send the document; return when it was accepted.

        Raises:
            AlertError: It was refused, or all attempts failed.
        """
        from http.client import HTTPException

        body = json.dumps(document, default=str).encode()
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, self._attempts + 1):
            status: int | None = None
            try:
                status, answer = self._attempt(path or "/", body)
                problem = f"answered {status}"
                if 200 <= status < 300:
                    return
                if status < 500:
                    hint = "redirects are not followed" if status < 400 else answer
                    raise self._error(f"{problem}: {hint}", status, attempt)
            except (OSError, HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt < self._attempts:
                self._sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        raise self._error(problem, status, self._attempts)

    def _attempt(self, path: str, body: bytes) -> tuple[int, str]:
        """Return the status of one POST and the beginning of an answer that refuses it."""
        from http.client import HTTPResponse

        connection = self._connection()
        try:
            connection.request("POST", path + self._query, body, self._headers())
            deadline_ns = _real.monotonic_ns() + int(self._timeout * 1e9)
            # Not connection.getresponse(): its time-out is for each recv, and a server that drips could hold us for hours.
            response = HTTPResponse(_Dripproof(connection.sock, deadline_ns), method="POST")  # type: ignore[arg-type]
            try:
                response.begin()
                return response.status, _beginning(response)
            finally:
                response.close()
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        """Return an unconnected connection."""
        from http.client import HTTPConnection, HTTPSConnection

        kind = HTTPSConnection if self._secure else HTTPConnection
        return kind(self._host, self._port, timeout=self._timeout)

    def _headers(self) -> dict[str, str]:
        """Return the request's headers."""
        headers = {"Content-Type": "application/json", "User-Agent": "concagent", "Connection": "close"}
        if self._user is not None:
            from base64 import b64encode
            from urllib.parse import unquote

            name, password = self._user
            pair = f"{unquote(name)}:{unquote(password)}".encode()
            headers["Authorization"] = f"Basic {b64encode(pair).decode()}"
        return headers

    def _error(self, problem: str, status: int | None, attempts: int) -> AlertError:
        """Return the error for a finding that was not accepted."""
        return AlertError(
            f"cannot send a finding to {self.target} (attempt {attempts} of {self._attempts}): {problem}",
            target=self.target,
            status=status,
            attempts=attempts,
        )


class Webhook(_HttpSink):
    """Posts each finding as the JSON object of the findings file."""

    def __call__(self, finding: Finding) -> None:
        """Send the finding; wait until it is accepted or given up.

        Raises:
            AlertError: It was not accepted.
        """
        self._post(self._path, finding.to_dict())


class Alertmanager(_HttpSink):
    """Posts each finding as an alert of the Alertmanager API v2.

    Labels say which alert it is, and are what routes and silences match: ``alertname`` (``ConcagentDeadlock``,
    ``ConcagentLockOrderInversion`` ...), ``severity`` (``critical`` or ``warning``), ``kind``, ``resource_kind``,
    ``confidence``, ``fingerprint``, ``instance`` (host name), ``pid``.  Annotations say what to read: ``title``,
    ``advice``, ``reason``, ``suppress``.
    """

    def __call__(self, finding: Finding) -> None:
        """Send the alert; wait until it is accepted or given up.

        Raises:
            AlertError: It was not accepted.
        """
        base = self._path.rstrip("/").removesuffix(_ALERTS_PATH)
        self._post(base + _ALERTS_PATH, [alert_for(finding)])


def alert_for(finding: Finding) -> dict[str, Any]:
    """Return the finding as an alert of the API v2; it fires for ``FIRING_SECONDS`` from the time of the finding."""
    camel = "".join(word.capitalize() for word in finding.kind.split("-"))
    annotations = {
        "title": finding.title,
        "advice": finding.advice,
        "reason": finding.reason or "",
        "suppress": finding.suppress,
    }
    return {
        "labels": {
            "alertname": f"Concagent{camel}",
            "severity": "warning" if finding.kind in WARNING_KINDS else "critical",
            "kind": finding.kind,
            "resource_kind": finding.resource_kind,
            "confidence": finding.confidence,
            "fingerprint": finding.fingerprint,
            "instance": os.uname().nodename,
            "pid": str(finding.pid),
        },
        "annotations": {name: text for name, text in annotations.items() if text},
        "startsAt": _rfc3339(finding.time),
        "endsAt": _rfc3339(finding.time + FIRING_SECONDS),
    }


def _beginning(response: HTTPResponse) -> str:
    """Return why the server refuses, in at most 200 bytes of its words; what it says to an accepted finding is not read."""
    from http.client import HTTPException

    answer = b""
    if 400 <= response.status < 500:
        # The status is known and final: an answer that does not come must not turn a refusal into another attempt.
        try:
            answer = response.read(200)
        except (OSError, HTTPException):
            pass
    return answer.decode("utf-8", "replace").strip() or response.reason


def _rfc3339(wall_seconds: float) -> str:
    """Return the time in UTC as RFC 3339 wants it."""
    from datetime import datetime, timezone

    return datetime.fromtimestamp(wall_seconds, timezone.utc).isoformat(timespec="milliseconds")


class _Dripproof(io.RawIOBase):
    """A socket to read from until a deadline, however small the pieces in which data come."""

    def __init__(self, connected: socket.socket, deadline_ns: int) -> None:
        self._connected = connected
        self._deadline_ns = deadline_ns

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a buffered reader: the one thing that HTTPResponse wants of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Return True: this is for reading only."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Return how many bytes came, 0 at the end.

        Raises:
            TimeoutError: The deadline is over.
        """
        left_ns = self._deadline_ns - _real.monotonic_ns()
        if left_ns <= 0:
            raise TimeoutError("the answer took too long")
        self._connected.settimeout(left_ns / 1e9)
        return self._connected.recv_into(buffer)
