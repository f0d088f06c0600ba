"""One line of a source file, as evidence: quickly, because the first finding waits for it.

``linecache`` decodes a whole file and keeps it as a list of strings, at some milliseconds for a large one, and reads with
the program's own ``open``, which we watch.  A finding quotes a few lines of several files.  So a file is read as bytes,
split, and only the line that is wanted is decoded.

What ``linecache`` knows comes first, since only it knows the sources of notebooks and doctests.  It is also asked where a
file declares an encoding or cannot be read by its name: it knows more places to look.

Limits     a file that changes while the program runs is quoted as it was when first read, as by ``linecache``.
Cost       first line of a file: one read (0.1 ms for 100 KB); further ones: a look-up.  At most ``_FILE_LIMIT`` files.
"""

from __future__ import annotations

import linecache
import os
import stat
from typing import Any, Final

from concagent import _real

_FILE_LIMIT: Final = 128
_SIZE_LIMIT: Final = 8 << 20
_files: dict[str, list[bytes]] = {}


def source_line(file: str, line: int) -> str:
    """Return the stripped text of a line (from 1), empty where it cannot be read."""
    if (
        file == "<string>"
    ):  # since 3.13 linecache knows one such text, of ``-c``; ``exec`` gives the name to all of its own
        return ""
    known: Any = linecache.cache.get(file)
    if known is not None:
        return linecache.getline(file, line).strip()
    lines = _files.get(file)
    if lines is None:
        lines = _read(file)
        if lines is None:
            return linecache.getline(file, line).strip()
        if len(_files) >= _FILE_LIMIT:
            _files.clear()
        _files[file] = lines
    return lines[line - 1].decode("utf-8", "replace").strip() if 0 < line <= len(lines) else ""


def _read(file: str) -> list[bytes] | None:
    """Return the lines of a UTF-8 file, None where that is better left to ``linecache``."""
    if file.startswith("<"):
        return None
    try:
        status = os.stat(file)
        # A code object may name anything as its file; opening a pipe would wait for a writer.
        if not stat.S_ISREG(status.st_mode) or status.st_size > _SIZE_LIMIT:
            return []
        with _real.open_file(file, "rb", buffering=0) as stream:
            data: bytes = stream.readall()
    except OSError:
        return None
    except ValueError:  # a name that no file can have
        return []
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    return None if any(b"coding" in head for head in lines[:2]) else lines
