from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from concagent.errors import ConfigError
from concagent.exporters.report_file import KEPT, ReportDirectory


def test_directory_and_report_are_for_their_user_only(tmp_path: Path) -> None:
    directory = ReportDirectory(tmp_path / "a" / "reports")

    path = Path(directory.write("text", "report"))

    assert path.read_text() == "text"
    assert path == tmp_path / "a" / "reports" / f"report-{os.getpid()}-000001.txt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_mode_does_not_depend_on_the_umask_of_the_program(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = Path(ReportDirectory(tmp_path / "reports").write("text", "report"))
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_existing_directory_of_this_user_is_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    path = ReportDirectory(tmp_path).write("text", "report")

    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_only_the_last_reports_of_this_process_are_kept(tmp_path: Path) -> None:
    directory = ReportDirectory(tmp_path)
    (tmp_path / "report-1-000001.txt").write_text("of another process")
    (tmp_path / "notes.txt").write_text("of somebody")

    paths = [directory.write(str(i), "report", ".json" if i % 2 else ".txt") for i in range(KEPT + 5)]

    kept = {os.path.basename(path) for path in paths[-KEPT:]}
    assert set(os.listdir(tmp_path)) == kept | {"report-1-000001.txt", "notes.txt"}
    assert paths[-1].endswith(f"-{KEPT + 5:06d}.txt")


def test_report_that_is_gone_already_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ReportDirectory(tmp_path)
    for i in range(KEPT):
        directory.write(str(i), "report")
    monkeypatch.setattr(os, "unlink", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))

    assert os.path.exists(directory.write("last", "report"))


@pytest.mark.parametrize(
    ("stem", "safe"), [("../../etc/passwd", "_.._etc_passwd"), ("...", "report"), ("a b\0c", "a_b_c"), ("", "report")]
)
def test_stem_cannot_lead_out_of_the_directory(tmp_path: Path, stem: str, safe: str) -> None:
    path = ReportDirectory(tmp_path).write("text", stem)

    assert path == str(tmp_path / f"{safe}-{os.getpid()}-000001.txt")


def test_text_that_utf8_cannot_hold_is_escaped(tmp_path: Path) -> None:
    path = ReportDirectory(tmp_path).write("a\udcffb ü", "report")

    assert Path(path).read_text("utf-8") == "a\\udcffb ü"


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")

    with pytest.raises(ConfigError, match="symbolic link") as caught:
        ReportDirectory(tmp_path / "link")

    assert caught.value.option == "report_dir"


def test_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")

    with pytest.raises(ConfigError, match="symbolic link"):
        ReportDirectory(tmp_path / "link")


def test_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="not a directory"):
        ReportDirectory(tmp_path / "file")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)

    with pytest.raises(ConfigError, match="chmod 700"):
        ReportDirectory(tmp_path / "shared")


def test_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(ConfigError, match="belongs to user id"):
        ReportDirectory(tmp_path)


def test_owner_is_not_asked_for_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.delattr(os, "geteuid")

    assert ReportDirectory(tmp_path).path == str(tmp_path)


@pytest.mark.parametrize("name", ["file/below", "nul\0byte"])
def test_directory_that_cannot_be_made_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot keep reports in") as caught:
        ReportDirectory(f"{tmp_path}/{name}", option="other")

    assert caught.value.option == "other"


def test_directory_that_was_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    directory = ReportDirectory(tmp_path / "reports")
    (tmp_path / "reports").rmdir()

    assert os.path.exists(directory.write("text", "report"))


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ReportDirectory(tmp_path)

    def disk_full(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", disk_full)

    with pytest.raises(OSError, match="No space"):
        directory.write("text", "report")

    assert os.listdir(tmp_path) == []


def test_partial_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data)[:3]))

    path = ReportDirectory(tmp_path).write("ten letters", "report")

    assert Path(path).read_text() == "ten letters"


def test_temporary_file_of_a_killed_process_of_the_same_id_is_replaced_not_followed(tmp_path: Path) -> None:
    directory = ReportDirectory(tmp_path)
    (tmp_path / "target").write_text("untouched")
    (tmp_path / f".report-{os.getpid()}-000001.tmp").symlink_to(tmp_path / "target")

    path = directory.write("text", "report")

    assert Path(path).read_text() == "text"
    assert not Path(path).is_symlink()
    assert (tmp_path / "target").read_text() == "untouched"
