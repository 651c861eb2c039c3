"""The committed stubs are what `make proto` generates from `proto/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[4]
PROTOS = REPOSITORY / "proto"
STUBS = REPOSITORY / "slos_serve" / "v1"


def generate(target: Path) -> dict[str, str]:
    """Text of every stub by file name, generated into `target`."""
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    outputs = [f"--{kind}_out={target}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("slos_serve/v1/*.proto"))
    assert sources, f"no protocol in {PROTOS}"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), *outputs, *sources]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    return {path.name: path.read_text() for path in (target / "slos_serve" / "v1").iterdir()}


def test_committed_stubs_are_what_the_protocol_generates(tmp_path: Path) -> None:
    generated = generate(tmp_path)
    committed = {path.name: path.read_text() for path in STUBS.iterdir() if "_pb2" in path.name and path.is_file()}
    assert sorted(committed) == sorted(generated), "run `make proto`"
    stale = [name for name, text in generated.items() if committed[name] != text]
    assert not stale, "run `make proto`"
