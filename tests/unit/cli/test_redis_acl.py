"""The command that prints the access control lists of Redis."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from cli.app import app
from services.state.acl import RedisRole

runner = CliRunner()


def test_the_lines_of_all_users_are_printed_and_passwords_kept_in_files(tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text('[redis]\nprefix = "mine"\n')
    arguments = ["redis-acl", str(tmp_path / "passwords"), "--config", str(config)]
    first, again = runner.invoke(app, arguments), runner.invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert first.output == again.output
    lines = first.output.splitlines()
    assert [line.split()[1] for line in lines] == ["default", *(f"mine-{role}" for role in RedisRole)]
    files = sorted((tmp_path / "passwords").iterdir())
    assert [file.name for file in files] == sorted(f"{role}.password" for role in RedisRole)
    assert all(file.read_text().strip() not in first.output for file in files)


def test_a_prefix_that_cannot_be_written_and_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text('[redis]\nprefix = "a b"\n')
    refused = runner.invoke(app, ["redis-acl", str(tmp_path / "passwords"), "--config", str(config)])
    assert refused.exit_code == 2
    assert "redis.prefix 'a b'" in refused.output
    (tmp_path / "file").write_text("")
    assert runner.invoke(app, ["redis-acl", str(tmp_path / "file" / "passwords")]).exit_code == 1
