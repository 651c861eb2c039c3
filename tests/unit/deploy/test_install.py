"""What `deploy/install.sh` says when packages cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.local.ports import free_port
from tests.support.markdown_pages import ROOT


def installed(directory: Path, index: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a copy of what it reads, with a lock file of one package and this index alone."""
    for name in ("deploy/install.sh", "pyproject.toml", "slos_serve/pyproject.toml"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    lock = directory / "small.lock"
    lock.write_text("packaging==0.0.1\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    options = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index,
        "PIP_RETRIES": "0",
        "PIP_DEFAULT_TIMEOUT": "5",
        "XDG_CACHE_HOME": str(directory / "cache"),
        "PYTHON": sys.executable,
    }
    command = ["bash", str(directory / "deploy" / "install.sh"), str(directory / "env"), str(lock)]
    return subprocess.run(command, env=kept | options, capture_output=True, text=True, timeout=60, check=False)


def test_an_index_that_is_not_reachable_is_named(tmp_path: Path) -> None:
    index = f"http://127.0.0.1:{free_port()}/simple"
    ended = installed(tmp_path, index)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("install.sh: pip could not reach a source of packages")
    assert index in last


def test_a_package_that_no_source_has_is_no_matter_of_reach(tmp_path: Path) -> None:
    (tmp_path / "index" / "packaging").mkdir(parents=True)
    (tmp_path / "index" / "packaging" / "index.html").write_text("<!DOCTYPE html><title>none</title>")
    ended = installed(tmp_path, (tmp_path / "index").as_uri())
    assert ended.returncode == 1
    assert "No matching distribution found for packaging==0.0.1" in ended.stderr
    assert "cannot be installed; pip said why above" in ended.stderr.splitlines()[-1]
