"""A folder that is whole or not there, beside others that are being written at the same time."""

import subprocess
import sys
from pathlib import Path

import pytest

from ctrkit.data.folder import whole_folder

PREPARE_IN_A_CONTAINER = """
import os, socket, sys
from pathlib import Path
os.getpid = lambda: 1
socket.gethostname = lambda: "box"
from ctrkit.data.folder import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "first").touch()
    print("begun", flush=True)
    sys.stdin.readline()
    (folder / "second").touch()
"""
"""As in a container, where every process is the first of a machine of that name."""


def test_preparations_of_the_same_number_leave_one_another_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PREPARE_IN_A_CONTAINER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    begun = [subprocess.Popen([*command, str(tmp_path / name)], **pipes) for name in ("a", "b")]
    for process in begun:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
    with whole_folder(tmp_path / "c") as folder:
        (folder / "first").touch()
        assert len(list(tmp_path.glob("*.partial-*"))) == 3
    for process in begun:
        process.communicate("go on\n")
        assert process.returncode == 0
    whole = [*("a/first", "a/second"), *("b/first", "b/second"), "c/first"]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("?/*")) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


def test_one_process_may_write_two_at_once(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a") as outer:
        (outer / "first").touch()
        with whole_folder(tmp_path / "b") as inner:
            (inner / "first").touch()
        (outer / "second").touch()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["first", "second"]


def test_what_had_the_name_before_is_gone_or_kept(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with whole_folder(tmp_path / "a") as folder:
            (folder / name).touch()
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a") as folder:
        (folder / "newer").touch()
        raise KeyboardInterrupt
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/new"]
