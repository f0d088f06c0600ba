"""Resources that processes share, as this process knows them: their cells, their keys, and the board of the program.

A shared lock has one identity in all processes, its *key*: a hash of the semaphore's name as it was when it was made.  Who
holds it is on the board; which thread of ours holds it, with code and offset, is in the cell here as well.

Nothing is made before the program makes its first shared lock; see `board`.  Where a board cannot be made, the cells
still serve within the process, and that is said once.

Invariants S1 `hold` is set by the thread that has the lock, after it took it, and cleared before it gives it back.
           S2 after a fork the child holds nothing: what the parent held, the parent holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, following, state, whohas
from concagent.board import LOCKS, Board, Holder, clean, folders, is_alive, parent_of, path_in, start_time
from concagent.discipline import discipline
from concagent.model import CallSite
from concagent.snapshots import call_site, is_own_code

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from concagent._pycore import SharedCell
else:
    SharedCell = core.SharedCell

_GENERATIONS: Final = 64  # of ancestors that are asked for a board
_FORKERS: Final = frozenset({"multiprocessing.popen_fork", "multiprocessing.forkserver"})
_FIRM: Final = frozenset({"owned", "finally", "later"})

_board: Board | None = None
_looked = False
_full = False  # whether there were more locks than cells
_me = (0, 0)
# By the code's id, since to hash a code is slow; the code is kept so that its id stays its own.
_sites: dict[tuple[int, int, bool], tuple[CodeType, int]] = {}
_cells: dict[int, Any] = {}  # serial -> weak reference to the object that has the cell
ends: dict[int, int] = {}  # serial of a resource, the end of a child -> the child's pid
awaited: dict[int, tuple[str, ...]] = {}  # serial of a resource -> what can end a wait for it; see ``whohas``
_files: dict[int, str | None] = {}  # serial of a cell -> its semaphore, as in ``whohas``
CHILD: Final = "child"  # the first word of what `waits` has of a child that is waited for
has_waits: Callable[[], bool] = lambda: False  # noqa: E731 - whether a thread waits for any of this
has_file_waits: Callable[[], bool] = lambda: False  # noqa: E731 - the same for locks on files
waits: Callable[[], frozenset[Any]] = frozenset  # what is the same as long as the same threads wait for any of this
on_long_wait: Callable[[], None] = lambda: None  # noqa: E731 - called when a wait for a shared lock has become long


class Cell(SharedCell):
    """A shared lock or semaphore in this process; its key, its place and who holds it are the core's."""

    __slots__ = ("code", "detail", "foreign", "kind", "lasti", "name", "reference", "serial")

    def __init__(self, kind: str, key: int, place: int, target: object, code: CodeType | None, lasti: int) -> None:
        """Describe the lock with this key.

        Args:
            kind: ``mp-lock``, ``mp-rlock`` or ``mp-semaphore``.
            key: The lock's identity in all processes.
            place: Its cell on the board, 0 for none.
            target: The object that the program calls its lock; it is not kept alive.
            code: The code that made it, None if that is another process's.
            lasti: The instruction in it.
        """
        self.serial = core.next_serial()
        self.kind = kind
        self.key = key
        self.place = place
        self.code = code
        self.lasti = lasti
        self.name: str | None = None
        self.hold = None
        self.foreign = False
        self.detail = None
        self.reference = _real.weak_reference(target)

    def hold_seen_by(self, wait: Any) -> Any:  # noqa: ARG002 - the signature of all cells
        """Return the hold of a thread of this process; None if there is none, or the lock is used as a signal."""
        return None if self.foreign or self.kind == "mp-semaphore" else self.hold

    def take(self, frame: Any, entered: bool) -> None:
        """Note that the calling thread has taken the lock, in this frame."""
        record = core.current_record()
        code, lasti = frame.f_code, frame.f_lasti
        board = self._on_board()
        if board is not None:
            where = record.serial << 32 | site_number(code, lasti, entered)
            pid, start = _me
            board.take(self.place, pid, start, record.native_id, where, _real.monotonic_ns())
        self.hold = (record, code, lasti, entered)

    def attempt(self) -> None:
        """Note that the calling thread is about to try to take the lock."""
        if self.place and _board is not None:
            if not _board.is_of(self.place, self.key):
                self.find_place()
            if self.place:
                _board.attempt(self.place, _me[0], core.current_record().native_id)

    def done(self) -> None:
        """Note that the attempt has failed, or that the lock was given back."""
        board = self._on_board()
        if board is not None:
            board.done(self.place, _me[0], core.current_record().native_id)

    def want(self) -> None:
        """Note that the calling thread is about to wait for the lock."""
        board = self._on_board()
        if board is not None:
            board.want(*_me, core.current_record().serial, self.place)

    def got(self) -> None:
        """Note that the calling thread waits no more, and has signed if it has the lock."""
        if self.place and _board is not None:
            _board.want(*_me, core.current_record().serial, 0)

    def is_taken(self) -> bool:
        """Return whether no permit is left."""
        reference = _cells.get(self.serial)
        made = reference() if reference is not None else None
        return made is not None and made._get_value() == 0  # noqa: SLF001 - the original's own

    def find_place(self) -> None:
        """Find or claim a cell on the board: the one that it had was given to another lock."""
        self.place = _board.claim_lock(self.key, _real.monotonic_ns(), fresh=False) if _board is not None else 0

    def _on_board(self) -> Board | None:
        return _board if self.place and _board is not None and _board.is_of(self.place, self.key) else None

    def drop(self) -> None:
        """Note that the lock is about to be given back; by somebody who does not hold it: that it is a signal."""
        hold, self.hold = self.hold, None
        mine = hold is not None and hold[0] is core.current_record()
        board = self._on_board()
        if board is not None:
            if not mine and board.holder(self.place) is not None:
                self.foreign = True
                board.mark_signal(self.place)
            board.drop(self.place)
        elif not mine:
            self.foreign = True

    def holder(self) -> Holder | None:
        """Return who holds it, of all processes; None if nobody is known to, or it is used as a signal."""
        board = self._on_board()
        if board is None or self.kind == "mp-semaphore":
            return None
        if board.is_signal(self.place):
            self.foreign = True
            return None
        found = board.holder(self.place)
        return found if board.is_of(self.place, self.key) else None

    def is_held_by_the_living(self) -> bool:
        """Return whether somebody is known to hold it, and his process lives."""
        holder = self.holder()
        return holder is not None and is_alive(holder.pid, holder.start)


def me() -> tuple[int, int]:
    """Return this process: pid and start time; asked at the first shared lock, and in the child of a fork."""
    global _me
    pid = os.getpid()
    if _me[0] != pid:
        _me = (pid, start_time(pid))
        core.share(None, _me[1])
    return _me


def key_of(name: str) -> int:
    """Return the identity of a named semaphore."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") or 1


def board() -> Board | None:
    """Return the board that is in use, None if there is none (yet)."""
    return _board


def get_board() -> Board | None:
    """Return the program's board, looked for or made when it is first needed; None where there cannot be one."""
    global _board, _looked
    if _board is None and not _looked and sys.platform.startswith("linux"):
        _looked = True
        try:
            _board = _find()
            if _board is None:
                clean()
                _board = Board.make(*_root())
            _board.publish(*me(), b"{}")  # so that others know that somebody uses it
            core.share(_board.words, _me[1])
        except (OSError, ValueError, IndexError, ImportError) as error:
            state.count_error("board", error)
            state.post(state.CallEvent(_say_so))
    return _board


def find_board() -> Board | None:
    """Return the program's board if it is in use here, or another process has made it meanwhile."""
    if _board is None and not _looked and sys.platform.startswith("linux"):
        try:
            root = _root()
            if not any(os.path.exists(path_in(folder, *root)) for folder in folders()):
                return None
        except (OSError, ValueError, IndexError):
            return None
        return get_board()
    return _board


def _root() -> tuple[int, int]:
    """Return the first process of the program, after which the board is called: its children meet there, whoever makes it."""
    root = following.root_pid
    start = start_time(root) if root and root != os.getpid() else 0
    return (root, start) if start else me()


def _say_so() -> None:
    import logging

    logging.getLogger("concagent").info("no board in shared memory, so locks are watched within each process only")


def _find() -> Board | None:
    """Return the board of an ancestor; what is in the environment is the program's to see, so nothing is put there."""
    found: Board | None = None
    pid = os.getppid()
    for _ in range(_GENERATIONS):
        if found is not None or pid <= 1:
            break
        for folder in folders():
            found = found or Board.open(path_in(folder, pid, start_time(pid)))
        pid = parent_of(pid)
    return found


def end() -> None:
    """Remove the board if nobody else has it: at the end of the process that it is called after, or of the last one."""
    if _board is not None and _me[0] == os.getpid() == _root()[0] and not _board.has_others(_me[0]):
        _board.remove()


def site_number(code: CodeType, lasti: int, entered: bool) -> int:
    """Return the number that a line has on the board, 0 for none."""
    known = _sites.get((id(code), lasti, entered))
    if known is None:
        known = _sites[id(code), lasti, entered] = code, _claim_site(code, lasti, entered)
    return known[1]


def claim_place(key: int, *, fresh: bool) -> int:
    """Return the place on the board of a lock; 0 where there is none, and that there are too many is said once."""
    global _full
    board = get_board()
    place = board.claim_lock(key, _real.monotonic_ns(), fresh=fresh) if board is not None else 0
    if board is not None and not place and not _full and board.is_full():
        _full = True
        state.post(state.CallEvent(_say_full))
    return place


def _say_full() -> None:
    import logging

    text = "more than %d locks that processes share are in use; the others are watched within each process only"
    logging.getLogger("concagent").info(text, LOCKS)


def _claim_site(code: CodeType, lasti: int, entered: bool) -> int:
    site = call_site(code, lasti)
    if _board is None or site is None:
        return 0
    habit = "owned" if entered else discipline(code, lasti)
    text = json.dumps([habit, site.line, site.function[-60:], site.file[-150:]])
    return _board.claim_site(text.encode())


def site_of(number: int) -> tuple[str, CallSite | None]:
    """Return (discipline, site) of a hold on the board; ("bare", None) where it is not known."""
    text = _board.site(number) if _board is not None else b""
    try:
        habit, line, function, file = json.loads(text)
    except ValueError:  # cut off, or none
        return "bare", None
    return habit, CallSite(file, line, function)


def is_firm(habit: str) -> bool:
    """Return whether this discipline means that the holder itself gives back."""
    return habit in _FIRM


def register(cell: Cell, target: Any) -> None:
    """Remember whose cell this is; ``target`` can be referred to weakly."""
    serial = cell.serial
    _cells[serial] = _real.weak_reference(target, lambda _: (_cells.pop(serial, None), _files.pop(serial, None)))


def file_of(cell: Cell) -> str | None:
    """Return what names a lock's semaphore in ``whohas``; None where that cannot be told."""
    if cell.serial not in _files:
        reference = _cells.get(cell.serial)
        made = reference() if reference is not None else None
        if made is None:
            return None
        _files[cell.serial] = whohas.semaphore_key(int(made.handle), named=made.name is not None)
    return _files[cell.serial]


def cells() -> list[Cell]:
    """Return the cells of the shared locks that live in this process."""
    found = [reference() for reference in list(_cells.values())]
    return [target.cell for target in found if target is not None]


def is_taken(key: int) -> bool:
    """Return whether a lock that this process has is taken, by whomever."""
    return any(cell.key == key and cell.is_taken() for cell in cells())


def process_name() -> str:
    """Return what multiprocessing calls this process."""
    module = sys.modules.get("multiprocessing.process")
    current = getattr(module, "_current_process", None)
    return str(getattr(current, "_name", None) or "MainProcess")


def after_fork_in_child() -> None:
    """Forget what the parent's threads hold here; the board says that the parent does.

    A plain ``os.fork`` goes on in the midst of the function that called it, and leaves its ``with`` a second time: a lock that
    the calling thread holds may then be given back by either process, and its holder says nothing.
    """
    if _board is not None:
        me()
    ident, begins_anew = _real.get_ident(), _is_multiprocessings()
    for cell in cells():
        hold, cell.hold = cell.hold, None
        if hold is not None and hold[0].ident == ident and not begins_anew:
            cell.foreign = True
            if cell.place and _board is not None:
                _board.mark_signal(cell.place)


def _is_multiprocessings() -> bool:
    """Return whether it was multiprocessing that called ``fork``: its children never return from there."""
    frame: FrameType | None = _real.getframe(1)
    while frame is not None and is_own_code(frame.f_code):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in _FORKERS
