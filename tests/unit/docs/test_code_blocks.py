"""Blocks of code in the documentation: Python compiles, TOML is a configuration that a process would take."""

from __future__ import annotations

import ast
import os
import tomllib
from pathlib import Path

import pytest

from services.config.load import load_settings
from services.config.settings import ENVIRONMENT_PREFIX, Settings
from tests.support.markdown_pages import CodeBlock, code_blocks, pages


def blocks(language: str) -> list[CodeBlock]:
    return [block for page in pages() for block in code_blocks(page) if block.language == language]


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.where)
def test_python_compiles(block: CodeBlock) -> None:
    compile(block.text, block.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.where)
def test_toml_is_a_configuration(block: CodeBlock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(name)
    file = tmp_path / "slos-serve.toml"
    file.write_text(block.text)
    stated = {section for section in tomllib.loads(block.text) if section in Settings.model_fields}
    assert stated, "a block that is no configuration of ours must not be tagged toml"
    load_settings(file)
