"""Reports as files in a directory that only its user can enter.

A report shows paths, names and the command line of the process, and its name is predictable: in a shared directory
somebody could read it, or lay a link where we will write.  So the directory is 0700 and ours, or refused, and a file is
0600, made under a temporary name that must not exist, and renamed when complete: who finds a report finds a whole one.
There is no ``fsync``: a report explains a hang of a process, not of a machine.

Invariants D1 a visible ``*.txt`` or ``*.json`` is complete.
           D2 at most ``KEPT`` reports of this process id remain after a write; those of other processes are not touched.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from concagent.errors import ConfigError

KEPT: Final = 20
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


class ReportDirectory:
    """Writes reports into one directory; used by one thread of a process at a time."""

    def __init__(self, path: str | os.PathLike[str], *, option: str = "report_dir") -> None:
        """Create the directory if it is absent, with mode 0700.

        Args:
            path: The directory.
            option: Name of the option it came from, for the error.

        Raises:
            ConfigError: It cannot be made, is a symbolic link or a file, belongs to another user, or others can write to it.
        """
        self.path = os.path.abspath(os.fspath(path))
        self._option = option
        self._prepare()

    def write(self, text: str, stem: str, suffix: str = ".txt") -> str:
        """Write a report and return its path, ``STEM-PID-NUMBER.txt``; numbers grow within a process id.

        Args:
            text: The report; what UTF-8 cannot hold is escaped.
            stem: Begins the file's name; characters unfit for one become ``_``.
            suffix: Ends it.

        Raises:
            ConfigError: The directory was replaced by something that is not safe.
            OSError: The report could not be written; nothing is left behind.
        """
        self._prepare()
        pid = os.getpid()
        earlier = self._reports_of(pid)
        number = earlier[-1][0] + 1 if earlier else 1
        safe_stem = _UNSAFE.sub("_", stem).lstrip(".") or "report"
        path = os.path.join(self.path, f"{safe_stem}-{pid}-{number:06d}{suffix}")
        temporary = os.path.join(self.path, f".{safe_stem}-{pid}-{number:06d}.tmp")
        self._write_whole(temporary, path, text.encode("utf-8", "backslashreplace"))
        for _, name in earlier[: max(0, len(earlier) + 1 - KEPT)]:
            _unlink_quietly(os.path.join(self.path, name))
        return path

    def _prepare(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                pass
            status = os.lstat(self.path)
        except (OSError, ValueError) as error:
            raise self._refusal(getattr(error, "strerror", None) or str(error)) from error
        if stat.S_ISLNK(status.st_mode):
            raise self._refusal("it is a symbolic link; give the path it leads to")
        if not stat.S_ISDIR(status.st_mode):
            raise self._refusal("it is not a directory")
        if hasattr(os, "geteuid"):
            if status.st_uid != os.geteuid():
                raise self._refusal(f"it belongs to user id {status.st_uid}, not to this user")
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise self._refusal("others can write to it; run chmod 700 on it")

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"cannot keep reports in {self.path!r}: {why}",
            option=self._option,
            value=repr(self.path),
            allowed="a directory of this user that nobody else can write to, or a path to create it at",
        )

    def _reports_of(self, pid: int) -> list[tuple[int, str]]:
        """Return number and name of the reports of a process id, the oldest first."""
        pattern = re.compile(rf"[^.].*-{pid}-(\d{{6,}})\.[a-z]+")
        matches = (pattern.fullmatch(name) for name in os.listdir(self.path))
        return sorted((int(m.group(1)), m.group()) for m in matches if m)

    def _write_whole(self, temporary: str, path: str, data: bytes) -> None:
        # Only a process of this id that was killed while writing can have left this name.
        _unlink_quietly(temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(temporary, flags, 0o600)
        try:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except OSError:
            _unlink_quietly(temporary)
            raise


def _unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
