"""The run directory of a local cluster: what is written there, and what is made of what is found there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psutil
import pytest

from deploy.local.errors import RunDirectoryError
from deploy.local.processes import RunningProcess
from deploy.local.run_directory import (
    STATE_FILE,
    RunningCluster,
    forget_state,
    read_state,
    run_directory,
    stop_command,
    write_state,
)
from services.config.settings import LauncherSettings

OURSELVES = RunningProcess("router", os.getpid(), psutil.Process().create_time(), "router.log")
GONE = RunningProcess("prefill-0", os.getpid(), 1.0, "prefill-0.log")


def cluster(*processes: RunningProcess) -> RunningCluster:
    return RunningCluster(
        "127.0.0.1:7", "redis://:hunter2@cache/0", processes, "127.0.0.1:8", {"router": "127.0.0.1:9"}
    )


def test_what_runs_is_found_again_without_the_password(tmp_path: Path) -> None:
    run_dir = tmp_path / "a" / "run"
    write_state(run_dir, cluster(OURSELVES, GONE))
    found = read_state(run_dir)
    assert found == RunningCluster(
        "127.0.0.1:7", "redis://:***@cache/0", (OURSELVES,), "127.0.0.1:8", {"router": "127.0.0.1:9"}
    )
    assert stat.S_IMODE((run_dir / STATE_FILE).stat().st_mode) == 0o600
    forget_state(run_dir)
    assert list(run_dir.iterdir()) == []


def test_a_cluster_whose_processes_have_all_ended_does_not_run(tmp_path: Path) -> None:
    write_state(tmp_path, cluster(GONE))
    assert read_state(tmp_path) is None
    assert read_state(tmp_path / "nowhere") is None
    assert read_state(tmp_path / STATE_FILE) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"{}", b'{"processes": [{"pid": 1}]}', b"\xff\xfe\x00"])
def test_a_state_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"cluster\.json is not what `slos-serve up` writes; .* remove it"):
        read_state(tmp_path)


def test_a_directory_in_place_of_the_state_is_named(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).mkdir()
    with pytest.raises(RunDirectoryError, match=r"cluster\.json cannot be read: Is a directory"):
        read_state(tmp_path)
    with pytest.raises(RunDirectoryError, match=rf"launcher\.run_dir {tmp_path} cannot be written: "):
        write_state(tmp_path, cluster())
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "{}/file/run", "{}/file"])
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"launcher\.run_dir .* cannot be written: "):
        write_state(Path(place.format(tmp_path)), cluster())


def test_a_run_directory_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert run_directory(LauncherSettings(run_dir=Path("~/run"))) == Path("/home/somebody/run")
    with pytest.raises(RunDirectoryError, match=r"launcher\.run_dir ~nobody-of-this-name/run: "):
        run_directory(LauncherSettings(run_dir=Path("~nobody-of-this-name/run")))


def test_the_command_that_stops_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert stop_command(tmp_path / ".slos-serve") == "slos-serve down"
    assert stop_command(Path("/var/my clusters/a")) == "slos-serve down --run-dir '/var/my clusters/a'"
