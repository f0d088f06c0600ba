"""The board: claims, holders, slots; what a reader sees of those who die or write, and who may use it."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from concagent import board as board_module
from concagent.board import LOCKS, PAYLOAD_LIMIT, UNUSED_NS, Board, clean, is_alive, start_time

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a board on Linux only")

ME = os.getpid()
NOW = 1_000_000_000_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(board_module, "folders", lambda: [os.fspath(tmp_path)])
    return tmp_path


@pytest.fixture
def board(folder: Path) -> Iterator[Board]:  # noqa: ARG001 - it has to be there first
    made = Board.make(ME, start_time(ME))
    yield made
    made.remove()


def test_who_opens_the_file_sees_the_holder_that_another_mapping_wrote(board: Board) -> None:
    cell = board.claim_lock(77, NOW)
    other = Board.open(board.path)
    assert other is not None

    board.take(cell, 11, 22, 33, 5 << 32 | 6, 44)

    seen = other.holder(other.find_lock(77))
    assert seen is not None
    assert seen[:6] == (11, 22, 33, 5, 6, 44)


def test_a_lock_that_was_given_back_has_no_holder(board: Board) -> None:
    cell = board.claim_lock(77, NOW)
    board.take(cell, 11, 22, 33, 0, 0)

    board.drop(cell)

    assert board.holder(cell) is None


def test_each_hold_has_a_generation_of_its_own(board: Board) -> None:
    cell = board.claim_lock(77, NOW)

    board.take(cell, 11, 22, 33, 0, 0)
    first = board.holder(cell)
    board.drop(cell)
    board.take(cell, 11, 22, 33, 0, 0)

    assert first != board.holder(cell)


def test_each_hold_is_told_of_once_also_that_of_a_lock_that_nobody_came_to_sign(board: Board) -> None:
    cell, me = board.claim_lock(77, NOW), (ME, start_time(ME))
    for _ in range(2):
        assert not board.was_told(cell)
        assert board.may_tell(cell, *me)
        board.told(cell, *me)
        assert board.was_told(cell)
        assert not board.may_tell(cell, *me)
        board.take(cell, 11, 22, 33, 0, 0)


def test_who_claims_to_tell_and_lives_is_not_forestalled_and_who_was_killed_is_replaced(board: Board) -> None:
    cell, other = board.claim_lock(77, NOW), os.getppid()
    board.take(cell, 11, 22, 33, 0, 0)

    assert board.may_tell(cell, other, start_time(other))
    assert not board.may_tell(cell, ME, start_time(ME))
    assert not board.was_told(cell)

    board.told(cell, ME, start_time(ME))  # it is not this process that claimed it
    assert not board.was_told(cell)

    assert board.may_tell(cell, other, start_time(other)), "who claimed it may claim it again"
    board._words[cell + 7] ^= 1  # now it was a process that had the number before
    assert board.may_tell(cell, ME, start_time(ME))
    board.told(cell, ME, start_time(ME))
    assert board.was_told(cell)


def test_of_two_locks_with_one_key_the_later_is_found(board: Board) -> None:
    board.claim_lock(77, NOW)
    later = board.claim_lock(77, NOW)

    assert board.find_lock(77) == later
    assert board.find_lock(78) == 0


def test_a_lock_that_has_a_cell_is_given_the_same(board: Board) -> None:
    cell = board.claim_lock(77, NOW)

    assert board.claim_lock(77, NOW, fresh=False) == cell
    assert board.claim_lock(78, NOW, fresh=False) not in {0, cell}


def test_a_key_is_not_found_in_what_is_no_key(board: Board) -> None:
    cell = board.claim_lock(77, NOW)
    board.take(cell, 0, 4711, 0, 4711, 4711)

    assert board.find_lock(4711) == 0


@pytest.fixture
def full(board: Board) -> Board:
    for key in range(1, LOCKS + 1):
        board._give((board_module._LOCKS_AT + (key - 1) * board_module._LOCK_BYTES) // 8, key, NOW)
    board._words[board_module._H_LOCKS] = LOCKS
    return board


def test_a_table_whose_locks_are_all_in_use_gives_no_cell(full: Board) -> None:
    assert full.claim_lock(LOCKS + 1, NOW + UNUSED_NS - 1) == 0
    assert full.is_full()


def test_a_cell_that_was_not_used_for_long_is_given_to_another_lock(full: Board) -> None:
    given = full.claim_lock(LOCKS + 1, NOW + UNUSED_NS + 1)

    assert given
    assert full.is_of(given, LOCKS + 1)
    assert full.find_lock(LOCKS + 1) == given
    assert full.find_lock(1) == 0  # whose cell it was
    assert full.find_lock(2) not in {0, given}


def test_a_cell_whose_lock_is_held_is_not_given_to_another(full: Board) -> None:
    held = full.find_lock(1)
    full.take(held, ME, start_time(ME), 1, 0, NOW)

    given = full.claim_lock(LOCKS + 1, NOW + 100 * UNUSED_NS)

    assert given not in {0, held}
    assert full.find_lock(1) == held


def test_a_cell_of_a_dead_holder_is_kept_longer_than_a_free_one(full: Board) -> None:
    for number in range(board_module._LOOKS * 2):
        full.take(full.find_lock(number + 1), 1 << 22, 1, 1, 0, NOW)

    assert full.claim_lock(LOCKS + 1, NOW + 5 * UNUSED_NS) == 0
    assert full.claim_lock(LOCKS + 1, NOW + 20 * UNUSED_NS) != 0


def test_a_claim_does_not_wait_for_a_process_that_has_stopped_in_one(board: Board) -> None:
    descriptor = os.open(board.path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    cell = board.claim_lock(77, NOW)

    os.close(descriptor)
    assert cell == 0


def test_one_text_has_one_number_and_a_stranger_none(board: Board) -> None:
    one, two = board.claim_site(b"here"), board.claim_site(b"there")

    assert board.claim_site(b"here") == one != two
    assert (board.site(one), board.site(two), board.site(99), board.site(0)) == (b"here", b"there", b"", b"")


def test_the_last_words_of_a_process_are_read(board: Board) -> None:
    board.publish(ME, 5, b"first")
    board.publish(ME, 5, b"second")

    assert [tuple(slot) for slot in board.slots()] == [(ME, 5, b"second")]


def test_a_slot_whose_writer_died_in_the_midst_is_not_read(board: Board) -> None:
    board.publish(ME, 5, b"whole")
    board._words[board._slot // 8] |= 1

    assert board.slots() == []


def test_a_slot_that_was_torn_is_not_read(board: Board) -> None:
    board.publish(ME, 5, b"whole")
    at = board._slot + board_module._SLOT_HEAD.size
    board._map[at : at + 1] = b"h"

    assert board.slots() == []


def test_what_does_not_fit_is_refused(board: Board) -> None:
    assert not board.publish(ME, 5, b"x" * (PAYLOAD_LIMIT + 1))


def test_the_slot_of_a_dead_process_is_used_again(board: Board) -> None:
    dead = Board.open(board.path)
    assert dead is not None
    dead.publish(ME, start_time(ME) + 1, b"a process that had our number")

    board.publish(ME, start_time(ME), b"we")

    assert [slot.payload for slot in board.slots()] == [b"we"]


def test_a_process_that_executed_another_program_says_what_that_one_says(board: Board) -> None:
    me = start_time(ME)
    board.publish(ME, me, b"before")
    executed = Board.open(board.path)
    assert executed is not None

    executed.publish(ME, me, b"after")

    assert [slot.payload for slot in board.slots()] == [b"after"]


def test_a_process_with_the_same_number_and_another_start_is_another() -> None:
    assert is_alive(ME, start_time(ME))
    assert not is_alive(ME, start_time(ME) + 1)


def test_a_child_that_has_ended_and_is_not_waited_for_is_dead() -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", ""], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    start = start_time(pid)

    os.waitpid(pid, 0)
    assert start == 0


@pytest.mark.parametrize("word", ["_H_MAGIC", "_H_VERSION", "_H_SPACE"])
def test_a_board_of_another_kind_version_or_name_space_is_not_used(board: Board, word: str) -> None:
    board._words[getattr(board_module, word)] += 1

    assert Board.open(board.path) is None


def test_a_board_that_others_may_write_or_that_is_a_link_is_not_used(board: Board, folder: Path) -> None:
    link = folder / "link"
    link.symlink_to(board.path)

    assert Board.open(os.fspath(link)) is None
    os.chmod(board.path, 0o666)
    assert Board.open(board.path) is None


def test_a_board_is_for_its_user_only(board: Board) -> None:
    assert os.stat(board.path).st_mode & 0o777 == 0o600


def test_only_boards_that_nobody_alive_uses_are_cleaned(board: Board) -> None:
    stale = Board.make(ME, 1)  # its maker is gone: the number is ours, the start is not
    in_use = Board.make(ME, 2)
    in_use.publish(ME, start_time(ME), b"still here")

    clean()

    assert not os.path.exists(stale.path)
    assert os.path.exists(in_use.path)
    assert os.path.exists(board.path)


def test_without_a_folder_there_is_an_error_and_no_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(board_module, "folders", lambda: ["/nonexistent"])

    with pytest.raises(OSError, match="No such file"):
        Board.make(ME, 1)

    assert list(folder.iterdir()) == []
