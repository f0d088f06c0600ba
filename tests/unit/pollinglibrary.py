"""A library for locks on files that polls, as text: a stand-in for filelock, for programs of acceptance rows."""

from __future__ import annotations

# What filelock up to 3.20 does, as far as it matters here; the row runs with the real one, too, where it is installed.
LIBRARY = """
import fcntl, os, time

class FileLock:
    def __init__(self, path, timeout=-1):
        self.path, self.timeout, self.fd = path, timeout, None
    def _acquire(self):
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
        else:
            self.fd = fd
    def acquire(self, timeout=None):
        if timeout is None:
            timeout = self.timeout
        start = time.perf_counter()
        while True:
            self._acquire()
            if self.fd is not None:
                return self
            if 0 <= timeout < time.perf_counter() - start:
                raise TimeoutError
            time.sleep(0.05)
    def release(self):
        fd, self.fd = self.fd, None
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)
    def __enter__(self):
        return self.acquire()
    def __exit__(self, *_):
        self.release()
"""
