"""The table in shared memory through which the processes of one program see each other's holds and waits.

A file in ``/dev/shm`` (else the temporary directory), 0600, made by the first process that makes a shared lock, and called
after it: whoever is forked has the mapping, whoever is executed finds the file by the environment or by its ancestors' names.

A *lock cell* belongs to one shared lock and is written by whoever holds the lock, so by one at a time: who, since when, where.
It is written after the lock was taken and cleared before it is given back; so it may lack a holder for a moment, it never has
a stale one while the holder lives.  Who is killed leaves his cell as it was: that is the orphan, with its site.  The word
that says *who* is a single store, the last one of an acquisition and the first one of a release, so what is torn has no holder.
A release only marks it.  Who finds a lock free says that he tries to take it, and who waits for one says in words of his slot
what for, each until he has signed, or has given it back: these are asked about a lock that is taken and that nobody has signed.

Cells are as many as locks are in use.  When all are given out, one that was not used for a minute, and is not held, is given to
another lock; it has another key then.  Who finds another key in his cell asks for a new one.

A *slot* belongs to one process and is written by it alone: a counter (odd while it writes), and what it has to say, with a
checksum.  A reader copies and compares the counter, and needs no lock.  A process may die at any instruction; what is half
written then is not read.

``flock`` is taken to claim cells, sites and slots, which is rare, and never waited for: a stopped process may have it, and
then the newcomer goes without (its lock has no cell: nobody claims to know who holds it).

Assumes    Linux: ``/proc/PID/stat`` has a process's start time, and ``CLOCK_MONOTONIC`` is the same for all.  The processes
           are of one PID name space; a process of another one does not use the board.
Limits     more than ``LOCKS`` locks in use within a minute have no cells.  Sites are never used again: they are lines of the
           program, not locks.  Slots of the dead are used again.
Cost       6 MB in a file that a program with shared locks makes once, reserved: a page that is missing later is a signal,
           SIGBUS.  An acquisition is six stores, a release is one.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import sys
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real
from concagent.procfs import is_alive as is_alive
from concagent.procfs import is_stopped as is_stopped
from concagent.procfs import parent_of as parent_of
from concagent.procfs import pid_space
from concagent.procfs import start_time as start_time

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = int.from_bytes(b"concagnt", "little")
VERSION: Final = 3
PREFIX: Final = "concagent-board-"

_PAGE: Final = 4096
LOCKS: Final = 8192
_LOCK_BYTES: Final = 64
SITES: Final = 2048
_SITE_BYTES: Final = 256
SLOTS: Final = 512
_SLOT_BYTES: Final = 8192
_SLOT_HEAD: Final = struct.Struct("<QQQII")  # counter, pid, start, length, checksum
PAYLOAD_LIMIT: Final = _SLOT_BYTES - _SLOT_HEAD.size

_KEYS_AT: Final = _PAGE  # of the lock cells, once more: to be found in one go
_LOCKS_AT: Final = _KEYS_AT + LOCKS * 8
_SITES_AT: Final = _LOCKS_AT + LOCKS * _LOCK_BYTES
_SLOTS_AT: Final = _SITES_AT + SITES * _SITE_BYTES
_WANTED_AT: Final = _SLOTS_AT + SLOTS * _SLOT_BYTES
WANTED: Final = 8  # words a slot, for its threads' waits
_SIZE: Final = _WANTED_AT + SLOTS * WANTED * 8

# Words of the header.
_H_MAGIC, _H_VERSION, _H_SPACE, _H_LOCKS, _H_SITES, _H_ASKED, _H_HAND = range(7)
# Words of a lock cell: one line of the processor's cache.
_KEY, _WHO, _START, _WHERE, _SINCE, _TRYING, _SIGNAL, _TOLD = range(8)
_LOW: Final = (1 << 32) - 1
# The word that says who: freed (1 bit), number of the hold (19), process (22), thread (22: Linux has no larger ids).
_ID_BITS: Final = 22
_ID: Final = (1 << _ID_BITS) - 1
_ONE_HOLD: Final = 1 << 2 * _ID_BITS
_FREED: Final = 1 << 63
# The word that says who tells of a hold: freed and number of the hold, whether it is done (1 bit), process, bits of its start.
_HOLD_AT: Final = 2 * _ID_BITS
_IS_TOLD: Final = 1 << _HOLD_AT - 1
_START_BITS: Final = _HOLD_AT - 1 - _ID_BITS
_START_MASK: Final = (1 << _START_BITS) - 1
UNUSED_NS: Final = 60_000_000_000  # after which a cell may be given to another lock
_MAKING_LOOKS: Final = 50  # a millisecond apart, at a board that another process is making
_LOOKS: Final = 64  # at cells, when all are given out


class Holder(NamedTuple):
    """Who holds a lock: process and its start, the thread's OS id and record's serial, where, since, and which hold it is."""

    pid: int
    start: int
    native_id: int
    serial: int
    site: int
    since_ns: int
    generation: int


class Slot(NamedTuple):
    """What a process said of itself."""

    pid: int
    start: int
    payload: bytes


def _lives(pid: int, start_bits: int) -> bool:
    """Return whether a process lives of whose start only the low bits are known."""
    try:
        start = start_time(pid)
    except (OSError, ValueError, IndexError):
        return False
    return start != 0 and start & _START_MASK == start_bits


def folders() -> list[str]:
    """Return where a board may lie, the best place first."""
    return ["/dev/shm", os.environ.get("TMPDIR") or "/tmp"]


def path_in(folder: str, pid: int, start: int) -> str:
    """Return the path of the board that a process makes."""
    return os.path.join(folder, f"{PREFIX}{os.getuid()}-{pid}-{start}")


class Board:
    """One mapped board.  Any thread may call; what a method does not say to be rare takes no lock."""

    def __init__(self, path: str, descriptor: int) -> None:
        """Map an open file of the right size; the descriptor stays the caller's."""
        self.path = path
        options: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        self._map = mmap.mmap(descriptor, _SIZE, **options)
        self._words = self.words = memoryview(self._map).cast("Q")
        self._slot = 0
        self._slot_owner = (0, 0)

    # ------------------------------------------------------------ made, found, cleaned

    @classmethod
    def make(cls, pid: int, start: int) -> Board:
        """Make a board that is called after this process; where there is one already, return that.

        Raises:
            OSError: There is no place for one.
        """
        failure: OSError | None = None
        for folder in folders():
            path = path_in(folder, pid, start)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileExistsError as error:  # a relative was faster, or the file is none that we can use
                failure = error
                made = cls._open_soon(path)
                if made is not None:
                    return made
                continue
            except OSError as error:
                failure = error
                continue
            try:
                os.ftruncate(descriptor, _SIZE)
                os.posix_fallocate(descriptor, 0, _SIZE)
                board = cls(path, descriptor)
            except OSError as error:
                failure = error
                os.unlink(path)
                continue
            finally:
                os.close(descriptor)
            board._words[_H_VERSION] = VERSION
            board._words[_H_SPACE] = pid_space()
            board._words[_H_SITES] = 1  # site 0 is none
            board._words[_H_MAGIC] = MAGIC
            return board
        raise failure or OSError(errno.ENOENT, "no folder for a board")

    @classmethod
    def open(cls, path: str) -> Board | None:
        """Return an existing board; None if there is none, or it is not one that this process can use."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.getuid() or status.st_mode & 0o077 or status.st_size != _SIZE:
                return None
            board = cls(path, descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        words = board._words
        fits = words[_H_MAGIC] == MAGIC and words[_H_VERSION] == VERSION and words[_H_SPACE] == pid_space()
        return board if fits else None

    @classmethod
    def _open_soon(cls, path: str) -> Board | None:
        for _ in range(_MAKING_LOOKS):
            board = cls.open(path)
            if board is not None:
                return board
            _real.sleep(0.001)
        return None

    def root(self) -> int:
        """Return the pid of the process that the board is called after."""
        return int(self.path.rpartition("-")[0].rpartition("-")[2])

    def remove(self) -> None:
        """Take the file away; who has mapped it keeps it."""
        try:
            os.unlink(self.path)
        except OSError:
            pass

    @contextmanager
    def _claiming(self) -> Iterator[bool]:
        """Hold the lock for claims; yields False at once if somebody else has it, or the file is gone."""
        import fcntl

        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            yield False
            return
        try:
            free = False
            for _ in range(200):  # claims last microseconds; a process that is stopped in one is not waited for
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    free = True
                    break
                except OSError:
                    os.sched_yield()
            yield free
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------ locks

    def claim_lock(self, key: int, now_ns: int, *, fresh: bool = True) -> int:
        """Return a cell for a new lock, or the one that it has if it is not ``fresh``; 0 if there is none; rare."""
        with self._claiming() as free:
            if not free:
                return 0
            known = self.find_lock(key)
            if known and not fresh:
                return known
            if known:  # of a lock that had the same name
                self._give(known, 0, now_ns)
            number = self._words[_H_LOCKS]
            if number >= LOCKS:
                return self._give(self._find_unused(now_ns), key, now_ns)
            self._words[_H_LOCKS] = number + 1
            return self._give((_LOCKS_AT + number * _LOCK_BYTES) // 8, key, now_ns)

    def _find_unused(self, now_ns: int) -> int:
        """Return a cell whose lock is free and was not used for long, 0 if there is none among the next."""
        words = self._words
        for _ in range(_LOOKS):
            number = words[_H_HAND] % LOCKS
            words[_H_HAND] = number + 1
            cell = (_LOCKS_AT + number * _LOCK_BYTES) // 8
            who = words[cell + _WHO]
            ended = who and not who & _FREED and not is_alive(who >> _ID_BITS & _ID, words[cell + _START])
            if now_ns - words[cell + _SINCE] > (10 * UNUSED_NS if ended else UNUSED_NS) and (
                not who or who & _FREED or ended
            ):
                return cell
        return 0

    def _give(self, cell: int, key: int, now_ns: int) -> int:
        if cell:
            words = self._words
            words[cell + _KEY] = 0  # first: nobody writes into it from now on
            words[cell + _WHO] |= _FREED
            for word in (_TRYING, _SIGNAL, _TOLD):
                words[cell + word] = 0
            words[cell + _SINCE] = now_ns
            words[(_KEYS_AT + (cell * 8 - _LOCKS_AT) // _LOCK_BYTES * 8) // 8] = key
            words[cell + _KEY] = key
        return cell

    def find_lock(self, key: int) -> int:
        """Return the cell with this key, 0 if there is none."""
        end = _KEYS_AT + min(self._words[_H_LOCKS], LOCKS) * 8
        wanted = key.to_bytes(8, sys.byteorder)
        at = self._map.find(wanted, _KEYS_AT, end)
        while at >= 0 and at % 8:
            at = self._map.find(wanted, at + 1, end)
        return (_LOCKS_AT + (at - _KEYS_AT) // 8 * _LOCK_BYTES) // 8 if at >= 0 else 0

    def is_full(self) -> bool:
        """Return whether all cells were given out, so that only unused ones are left."""
        return self._words[_H_LOCKS] >= LOCKS

    def is_of(self, cell: int, key: int) -> bool:
        """Return whether the cell still belongs to the lock with this key."""
        return self._words[cell + _KEY] == key

    def attempt(self, cell: int, pid: int, native_id: int) -> None:
        """Note who is about to try to take a lock, if it seems to be free.

        If another says so, he has it and will sign, or was killed before he could: then nobody else would know of it.
        """
        who = self._words[cell + _WHO]
        if (not who or who & _FREED) and not self._words[cell + _TRYING]:
            self._words[cell + _TRYING] = pid << _ID_BITS | native_id

    def done(self, cell: int, pid: int, native_id: int) -> None:
        """Note that the attempt has failed, or the lock was given back."""
        if self._words[cell + _TRYING] == pid << _ID_BITS | native_id:
            self._words[cell + _TRYING] = 0

    def was_signed(self, cell: int) -> bool:
        """Return whether anybody ever signed as the holder."""
        return bool(self._words[cell + _WHO] % _FREED)

    def trying(self, cell: int) -> int:
        """Return the process that said that it tries to take the lock, and has not been done since; 0 for none."""
        return self._words[cell + _TRYING] >> _ID_BITS

    def take(self, cell: int, pid: int, start: int, native_id: int, where: int, since_ns: int) -> None:
        """Note the holder of a lock that was taken; ``where`` is (serial << 32 | site)."""
        words = self._words
        words[cell + _START] = start
        words[cell + _WHERE] = where
        words[cell + _SINCE] = since_ns
        words[cell + _TRYING] = pid << _ID_BITS | native_id
        number = (words[cell + _WHO] + _ONE_HOLD) % _FREED // _ONE_HOLD
        words[cell + _WHO] = number * _ONE_HOLD | pid << _ID_BITS | native_id

    def drop(self, cell: int) -> None:
        """Note that a lock is about to be given back."""
        self._words[cell + _WHO] |= _FREED

    def holder(self, cell: int) -> Holder | None:
        """Return who holds a lock, None if nobody is known to; two readings must agree."""
        words = self._words
        one = tuple(words[cell + _KEY : cell + _TRYING])
        two = tuple(words[cell + _KEY : cell + _TRYING])
        if one != two or not one[_WHO] or one[_WHO] & _FREED:
            return None
        _, who, start, where, since_ns = one
        number = who >> 2 * _ID_BITS
        return Holder(who >> _ID_BITS & _ID, start, who & _ID, where >> 32, where & _LOW, since_ns, number)

    def mark_signal(self, cell: int) -> None:
        """Note that a lock was given back by somebody who did not hold it: its holder says nothing from now on."""
        self._words[cell + _SIGNAL] = 1

    def is_signal(self, cell: int) -> bool:
        """Return whether that ever happened."""
        return bool(self._words[cell + _SIGNAL])

    def may_tell(self, cell: int, pid: int, start: int) -> bool:
        """Claim to tell of the present hold; False if it was told of, or somebody else claims to and lives.

        It counts as told of only after `told`: who claims may be killed before he has written a word.
        """
        word = self._words[cell + _TOLD]
        if word and word >> _HOLD_AT == self._words[cell + _WHO] >> _HOLD_AT:
            if word & _IS_TOLD:
                return False
            claimed = word >> _START_BITS & _ID, word & _START_MASK
            if claimed != (pid, start & _START_MASK) and _lives(*claimed):
                return False
        self._words[cell + _TOLD] = self._claim(cell, pid, start)
        return self._words[cell + _TOLD] == self._claim(cell, pid, start)

    def told(self, cell: int, pid: int, start: int) -> None:
        """Note that the hold that this process claimed was told of."""
        if self._words[cell + _TOLD] == self._claim(cell, pid, start):
            self._words[cell + _TOLD] |= _IS_TOLD

    def was_told(self, cell: int) -> bool:
        """Return whether the present hold was told of; a lock that nobody came to sign has one, too."""
        word = self._words[cell + _TOLD]
        return bool(word & _IS_TOLD) and word >> _HOLD_AT == self._words[cell + _WHO] >> _HOLD_AT

    def _claim(self, cell: int, pid: int, start: int) -> int:
        hold = self._words[cell + _WHO] >> _HOLD_AT
        return hold << _HOLD_AT | pid << _START_BITS | start & _START_MASK

    # ------------------------------------------------------------ sites

    def claim_site(self, text: bytes) -> int:
        """Return the number of a text, 0 if there is no room; rare: once a text and process."""
        text = text[: _SITE_BYTES - 8]
        entry = len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little") + text
        with self._claiming() as free:
            number = self._words[_H_SITES]
            at = self._map.find(entry, _SITES_AT, _SITES_AT + number * _SITE_BYTES)
            if at >= 0 and (at - _SITES_AT) % _SITE_BYTES == 0:
                return (at - _SITES_AT) // _SITE_BYTES
            if not free or number >= SITES:
                return 0
            at = _SITES_AT + number * _SITE_BYTES
            self._map[at : at + len(entry)] = entry
            self._words[_H_SITES] = number + 1
            return number

    def site(self, number: int) -> bytes:
        """Return the text with this number, empty where there is none."""
        if not 0 < number < min(self._words[_H_SITES], SITES):
            return b""
        at = _SITES_AT + number * _SITE_BYTES
        length = int.from_bytes(self._map[at : at + 4], "little")
        text = self._map[at + 8 : at + 8 + length]
        return text if zlib.crc32(text) == int.from_bytes(self._map[at + 4 : at + 8], "little") else b""

    # ------------------------------------------------------------ slots

    def publish(self, pid: int, start: int, payload: bytes) -> bool:
        """Say something of this process, in place of what it said before; False without room.  One thread a process."""
        if len(payload) > PAYLOAD_LIMIT:
            return False
        at = self._slot_of(pid, start)
        if not at:
            self._slot_owner = (0, 0)  # another try next time
            return False
        words, head = self._words, at // 8
        counter = words[head] | 1
        words[head] = counter
        self._map[at + _SLOT_HEAD.size : at + _SLOT_HEAD.size + len(payload)] = payload
        _SLOT_HEAD.pack_into(self._map, at, counter, pid, start, len(payload), zlib.crc32(payload))
        words[head] = counter + 1
        return True

    def _slot_of(self, pid: int, start: int) -> int:
        if self._slot_owner != (pid, start):
            self._slot = self._claim_slot(pid, start)
            self._slot_owner = (pid, start)
        return self._slot

    def _claim_slot(self, pid: int, start: int) -> int:
        with self._claiming() as free:
            if not free:
                return 0
            second_best = 0
            for at in range(_SLOTS_AT, _WANTED_AT, _SLOT_BYTES):
                owner, since = self._words[at // 8 + 1], self._words[at // 8 + 2]
                if (owner, since) == (pid, start):
                    return at  # another thread was faster, or this process has executed another program
                if owner and is_alive(owner, since):
                    continue
                if not any(self._wanted(at)):
                    return self._take_slot(at, pid, start)
                second_best = second_best or at  # its owner was killed when it wanted a lock: it may still be asked for
            return self._take_slot(second_best, pid, start) if second_best else 0

    def _take_slot(self, at: int, pid: int, start: int) -> int:
        counter = self._words[at // 8] | 1
        self._words[at // 8] = counter
        _SLOT_HEAD.pack_into(self._map, at, counter, pid, start, 0, 0)  # nothing said, and whole
        self._words[at // 8] = counter + 1
        wanted = self._wanted(at)
        for thread in range(WANTED):
            wanted[thread] = 0
        return at

    def _wanted(self, at: int) -> memoryview:
        first = (_WANTED_AT + (at - _SLOTS_AT) // _SLOT_BYTES * WANTED * 8) // 8
        return self._words[first : first + WANTED]

    def want(self, pid: int, start: int, thread: int, cell: int) -> None:
        """Note that a thread of this process is about to wait for a lock; 0: that it has it, and has signed, or gave up."""
        at = self._slot_of(pid, start)
        if at:
            self._wanted(at)[thread % WANTED] = cell

    def wanting(self, cell: int) -> list[tuple[int, int]]:
        """Return the processes, pid and start, that wait for a lock or have not signed since; the dead, too."""
        found = []
        for at in range(_SLOTS_AT, _WANTED_AT, _SLOT_BYTES):
            owner = self._words[at // 8 + 1]
            if not owner:
                break
            if cell in self._wanted(at).tolist():
                found.append((owner, self._words[at // 8 + 2]))
        return found

    def slots(self) -> list[Slot]:
        """Return what the processes say, those that have ended included; one that is just writing is left out."""
        found = []
        for at in range(_SLOTS_AT, _WANTED_AT, _SLOT_BYTES):
            head = at // 8
            before = self._words[head]
            if not self._words[head + 1]:
                break  # they are claimed from the front
            _, pid, start, length, checksum = _SLOT_HEAD.unpack_from(self._map, at)
            if before & 1 or length > PAYLOAD_LIMIT:
                continue
            payload = self._map[at + _SLOT_HEAD.size : at + _SLOT_HEAD.size + length]
            if self._words[head] == before and zlib.crc32(payload) == checksum:
                found.append(Slot(pid, start, payload))
        return found

    def cells(self) -> list[int]:
        """Return the cells that were given out."""
        given = min(self._words[_H_LOCKS], LOCKS)
        return [(_LOCKS_AT + number * _LOCK_BYTES) // 8 for number in range(given)]

    def owners(self) -> list[tuple[int, int]]:
        """Return the processes, pid and start, that have or had a slot."""
        owners = [
            (self._words[at // 8 + 1], self._words[at // 8 + 2]) for at in range(_SLOTS_AT, _WANTED_AT, _SLOT_BYTES)
        ]
        return [owner for owner in owners if owner[0]]

    def has_others(self, pid: int) -> bool:
        """Return whether a process other than this one, that lives, has a slot."""
        for at in range(_SLOTS_AT, _WANTED_AT, _SLOT_BYTES):
            owner, since = self._words[at // 8 + 1], self._words[at // 8 + 2]
            if not owner:
                return False
            if owner != pid and is_alive(owner, since):
                return True
        return False

    # ------------------------------------------------------------ asking the others

    def ask(self) -> None:
        """Ask all processes to say again how they stand; two who ask at once may count as one."""
        self._words[_H_ASKED] += 1

    def asked(self) -> int:
        """Return how often somebody has asked."""
        return self._words[_H_ASKED]


def clean() -> None:
    """Remove the boards of this user whose makers are gone and that no living process has a slot in."""
    prefix = f"{PREFIX}{os.getuid()}-"
    for folder in folders():
        try:
            names = [name for name in os.listdir(folder) if name.startswith(prefix)]
        except OSError:
            continue
        for name in names:
            pid, _, start = name[len(prefix) :].partition("-")
            if not (pid.isdigit() and start.isdigit()) or is_alive(int(pid), int(start)):
                continue
            board = Board.open(os.path.join(folder, name))
            if board is not None and not board.has_others(0):
                board.remove()
