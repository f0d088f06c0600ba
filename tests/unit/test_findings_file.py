from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from concagent.errors import ConfigError
from concagent.exporters.findings_file import FindingsFile
from concagent.exporters.json import finding_from_dict
from concagent.model import Finding


def finding(title: str = "t") -> Finding:
    return Finding("deadlock", "lock", "proven", "1", "f", 1.0, 7, title)


def lines(path: Path) -> list[Finding]:
    return [finding_from_dict(json.loads(line)) for line in path.read_text("ascii").splitlines()]


def test_each_finding_is_a_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    file = FindingsFile(path)

    file.write(finding("a"))
    file.write(finding("b\nc"))

    assert lines(path) == [finding("a"), finding("b\nc")]
    file.close()


def test_new_file_is_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"

    FindingsFile(path).close()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_existing_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    first = FindingsFile(path)
    first.write(finding("a"))
    first.close()

    second = FindingsFile(path)
    second.write(finding("b"))
    second.close()

    assert lines(path) == [finding("a"), finding("b")]


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    code = (
        "import sys; from concagent.exporters.findings_file import FindingsFile; from concagent.model import Finding\n"
        "file = FindingsFile(sys.argv[1])\n"
        "for i in range(200):\n"
        "    file.write(Finding('deadlock', 'lock', 'proven', '1', 'f', 1.0, 7, sys.argv[2] * 3000))\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abcd"]

    assert [child.wait(timeout=60) for child in children] == [0] * 4

    titles = [found.title for found in lines(path)]
    assert sorted(titles) == [name * 3000 for name in "abcd" for _ in range(200)]


@pytest.mark.parametrize("name", ["missing/f.jsonl", ".", "nul\0byte"])
def test_path_that_cannot_be_opened_is_a_config_error(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/{name}"

    with pytest.raises(ConfigError, match="cannot append findings to") as caught:
        FindingsFile(path)

    assert caught.value.option == "findings"
    assert caught.value.value == repr(path)


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")

    with pytest.raises(ConfigError, match="symbolic link; give the path it leads to"):
        FindingsFile(tmp_path / "link")

    assert not (tmp_path / "target").exists()


def test_pipe_without_a_reader_does_not_stop_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ConfigError, match="cannot append findings"):
        FindingsFile(tmp_path / "pipe")


def test_findings_can_go_to_the_error_stream() -> None:
    code = (
        "from concagent.exporters.findings_file import FindingsFile; from concagent.model import Finding\n"
        "FindingsFile('/dev/stderr').write(Finding('leak', 'file', 'proven', '1', 'f', 1.0, 7, 't'))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)

    assert finding_from_dict(json.loads(done.stderr)).kind == "leak"


def test_partial_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FindingsFile(tmp_path / "f.jsonl")
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data)[:50]))

    file.write(finding())

    monkeypatch.undo()
    assert lines(tmp_path / "f.jsonl") == [finding()]
    file.close()


def test_line_after_a_torn_one_begins_at_the_start_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.jsonl"
    file = FindingsFile(path)
    real_write = os.write
    answers = iter([lambda fd, data: real_write(fd, bytes(data)[:10]), disk_full])
    monkeypatch.setattr(os, "write", lambda fd, data: next(answers)(fd, data))

    with pytest.raises(OSError, match="No space"):
        file.write(finding("lost"))
    monkeypatch.undo()
    file.write(finding("kept"))
    file.write(finding("too"))

    torn, *whole = path.read_text().splitlines()
    assert torn == '{"schema":'
    assert [json.loads(line)["title"] for line in whole] == ["kept", "too"]
    file.close()


def disk_full(_descriptor: int, _data: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_descriptor_that_the_program_closed_is_opened_again(tmp_path: Path) -> None:
    file = FindingsFile(tmp_path / "f.jsonl")
    os.close(file._descriptor)

    file.write(finding())

    assert lines(tmp_path / "f.jsonl") == [finding()]
    file.close()


def test_descriptor_that_now_belongs_to_another_file_is_never_written_to_nor_closed(tmp_path: Path) -> None:
    file = FindingsFile(tmp_path / "f.jsonl")
    other = os.open(tmp_path / "database", os.O_RDWR | os.O_CREAT)
    os.dup2(other, file._descriptor)
    stolen = file._descriptor

    file.close()
    again = FindingsFile(tmp_path / "f.jsonl")
    os.dup2(other, again._descriptor)
    also_stolen = again._descriptor
    again.write(finding())

    assert (tmp_path / "database").read_bytes() == b""
    assert lines(tmp_path / "f.jsonl") == [finding()]
    os.fstat(stolen)
    again.close()
    for descriptor in {other, stolen, also_stolen}:
        os.close(descriptor)


def test_write_after_close_is_an_os_error(tmp_path: Path) -> None:
    file = FindingsFile(tmp_path / "f.jsonl")
    file.close()
    file.close()

    with pytest.raises(OSError, match="closed"):
        file.write(finding())
