"""What a web application pays: Flask and SQLAlchemy under gunicorn with threads, requests answered per second.

The same application runs three times at once: bare, with the agent, bare again; one worker of four threads each.  They are
given the same short load in turn, by one client that keeps eight connections busy and waits for them with `select`; while
one is asked the others sleep.  Each request takes a connection from SQLAlchemy's pool, reads a row from SQLite, takes two
locks of the program's own and logs nothing.  The figure is ours to bare in requests per second, at their best.

gunicorn, Flask and SQLAlchemy live in an environment of their own, ``build/bench-app-X.Y.Z``, made on first use.

    python benchmarks/bench_app.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import tempfile
from typing import Any

import _harness

ROUNDS = 60
REQUESTS = 400
CONNECTIONS = 8
PATIENCE_SECONDS = 30.0
ROW = "Flask + SQLAlchemy: requests per second"
NEEDS = ("flask", "gunicorn", "sqlalchemy")
APPLICATION = """
import threading
import flask, sqlalchemy
from sqlalchemy import text

app = flask.Flask(__name__)
engine = sqlalchemy.create_engine("sqlite:///shop.db")
stock, orders = threading.Lock(), threading.RLock()
sold = 0
with engine.begin() as connection:
    connection.execute(text("create table if not exists item (id integer primary key, name text)"))
    connection.execute(text("insert into item (name) values ('lamp')"))

@app.get("/")
def sell():
    global sold
    with orders, stock:
        sold += 1
    with engine.connect() as connection:
        return {"name": connection.execute(text("select name from item where id = 1")).scalar_one()}
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n"
END = b'{"name":"lamp"}\n'


class Server:
    """The application, served; `answer` puts a load on it."""

    def __init__(self, python: str, folder: str, agent: bool) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        with open(os.path.join(folder, "shop.py"), "w", encoding="utf-8") as file:
            file.write(APPLICATION)
        start = f"{_harness.this_concagent()}concagent.install()\n" if agent else "import sys\n"
        start += "from gunicorn.app.wsgiapp import run; sys.exit(run())"
        command = [python, "-c", start, "-k", "gthread", "-w", "1", "--threads", "4", "-b", f"127.0.0.1:{port}"]
        self.process = subprocess.Popen(
            [*command, "--log-level", "error", "shop:app"],
            cwd=folder,
            env=_harness.child_environment(PYTHONPATH=folder),
        )
        self.connections = [self._connect(port) for _ in range(CONNECTIONS)]

    def _connect(self, port: int) -> socket.socket:
        deadline = _harness.clock() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
            if self.process.poll() is not None or _harness.clock() > deadline:
                raise SystemExit("the application did not start")
            select.select([], [], [], 0.05)

    def answer(self) -> float:
        """Return the requests that were answered per second, over one load."""
        poll = select.epoll()
        parts = {connection.fileno(): (connection, bytearray()) for connection in self.connections}
        for number in parts:
            poll.register(number, select.EPOLLIN)
        started = _harness.clock()
        for connection in self.connections:
            connection.sendall(REQUEST)
        asked, answered = len(self.connections), 0
        while answered < REQUESTS:
            for number, _ in poll.poll(PATIENCE_SECONDS):
                connection, text = parts[number]
                got = connection.recv(65536)
                if not got:
                    raise SystemExit("the application closed a connection")
                text += got
                if text.endswith(END):
                    text.clear()
                    answered += 1
                    if asked < REQUESTS:
                        connection.sendall(REQUEST)
                        asked += 1
        spent = _harness.clock() - started
        poll.close()
        return REQUESTS / spent

    def close(self) -> None:
        """End it."""
        for connection in self.connections:
            connection.close()
        self.process.terminate()
        self.process.wait()


def main() -> None:
    """Measure the row."""
    report = _harness.Report(__doc__)
    try:
        python = _harness.environment_with("app", *NEEDS)
    except ImportError as error:
        report.skip(str(error))
        report.close()
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        servers: list[Any] = []
        for name, agent in (("stock", False), ("ours", True), ("control", False)):
            own = os.path.join(folder, name)
            os.mkdir(own)
            servers.append(Server(python, own, agent))
            ends.callback(servers[-1].close)
        for server in servers:
            server.answer()  # warm
        variants = [server.answer for server in servers]
        report.add(
            _harness.compare(
                ROW, *variants, rounds=report.effort.rounds(ROUNDS), better="more", scale=1.0, absolute_unit="1/s"
            )
        )
    report.close()


if __name__ == "__main__":
    main()
