"""Commands, options and make targets that the documentation shows: the programs know them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel
from typer.exceptions import TyperException

from cli.app import app
from services.config.settings import ENVIRONMENT_PREFIX, Settings
from tests.support.markdown_pages import ROOT, code_blocks, pages, prose

CONSOLE = {"", "console", "sh", "bash"}
INLINE = re.compile(r"`([^`\n]+)`")
ASSIGNMENT = re.compile(r"^[A-Z_][A-Z0-9_]*=")
# Names of files such as `router.py`.
FILE_ENDINGS = {"py", "md", "toml", "proto", "log", "lock", "yml", "json", "svg", "png", "sh", "key", "pem"}
# Spans of a worker have names with a section's name in front.
SPANS = {"engine.wait", "engine.prefill", "engine.decode"}
COMMAND: Any = typer.main.get_command(app)
DEFAULTS = Settings()


PAGES = tuple(page for page in pages() if page.name != "CHANGELOG.md")


def lines_of_blocks(page: Path) -> Iterator[str]:
    """Lines of a page's blocks that begin with one of our commands, continued lines joined."""
    for block in code_blocks(page):
        if block.language in CONSOLE:
            joined = re.sub(r"\s*\\\n\s*", " ", block.text)
            for line in joined.splitlines():
                words = line.strip().removeprefix("$ ").strip()
                while ASSIGNMENT.match(words):
                    words = words.partition(" ")[2].strip()
                if re.match(r"(?:slos-serve|make)(?: |$)", words):
                    yield words


def split(line: str) -> list[str]:
    """The words of a command line up to its comment, its pipe or what follows it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|;&<>"):
            break
        words.append(word)
    return words


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Follow the words to the command that they name; return it and the words that are left.

    Raises:
        LookupError: there is no such command.
    """
    command = COMMAND
    left = words[1:]
    while left and not left[0].startswith("-") and hasattr(command, "get_command"):
        found = command.get_command(None, left[0])
        if found is None:
            raise LookupError(f"no command {left[0]}")
        command, left = found, left[1:]
    return command, left


def faults_of_command(words: list[str]) -> list[str]:
    """What the command line's own parser says to the words, without running anything."""
    try:
        command, left = command_of(words)
        if not hasattr(command, "get_command") and "--help" not in left:
            command.make_context(words[0], left).close()
    except (LookupError, TyperException) as error:
        return [f"{' '.join(words)}: {error}"]
    return []


def faults_of_make(words: list[str]) -> list[str]:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [word for word in words[1:] if not ASSIGNMENT.match(word) and not word.startswith("-")]
    return [f"make {word}: no such target" for word in named if word not in targets]


def faults_of_mention(text: str) -> list[str]:
    """What is wrong with a command that is mentioned within a sentence: a part of it suffices there."""
    if text.startswith("make "):
        return faults_of_make(split(text))
    if not text.startswith("slos-serve ") or re.search(r"[|<]|\.\.\.|COMMAND", text):
        return []
    try:
        words = split(text)
        command, left = command_of(words)
    except LookupError as error:
        return [f"{text}: {error}"]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    named = [word.partition("=")[0] for word in left if word.startswith("-")]
    return [f"{text}: no option {name}" for name in named if name not in options | {"--help"}]


def unknown_option(text: str) -> bool:
    """Whether a text looks like an option of the configuration, `router.port` for example, and is none."""
    first, *names = text.split(".")
    if first not in Settings.model_fields or not names or names[-1] in FILE_ENDINGS or text in SPANS:
        return False
    if not all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names):
        return False
    section: object = getattr(DEFAULTS, first)
    for name in names:
        if isinstance(section, dict):
            return False
        if not isinstance(section, BaseModel) or name not in type(section).model_fields:
            return True
        section = getattr(section, name)
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_known(page: Path) -> None:
    faults = []
    for line in lines_of_blocks(page):
        words = split(line)
        faults += faults_of_make(words) if words[0] == "make" else faults_of_command(words)
    for text in INLINE.findall(prose(page)):
        faults += faults_of_mention(text)
    assert faults == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_of_the_configuration_are_known(page: Path) -> None:
    text = page.read_text()
    faults = [mention for mention in INLINE.findall(prose(page)) if unknown_option(mention.partition(" = ")[0])]
    faults += [
        name
        for name in re.findall(rf"{ENVIRONMENT_PREFIX}([A-Z0-9_]*[A-Z0-9])(?=[=`\s])", text)
        if not name.endswith("_OPTION") and unknown_option(name.lower().replace("__", "."))
    ]
    assert faults == []


def test_what_a_wrong_command_is(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ A=b slos-serve up --engine x \\\n    --hops 3  # all\nslos-serve: no\n```\n")
    assert list(lines_of_blocks(page)) == ["slos-serve up --engine x --hops 3  # all"]
    assert faults_of_command(split("slos-serve up --prefill 2 # some")) == []
    assert faults_of_command(split("slos-serve bench serve --target grpc://a:1 --rate 1 | tee x")) == []
    assert faults_of_command(split("slos-serve up --hops 3")) == ["slos-serve up --hops 3: No such option: --hops"]
    assert faults_of_command(split("slos-serve bench nothing")) == ["slos-serve bench nothing: no command nothing"]
    assert faults_of_command(split("slos-serve generate")) != []
    assert faults_of_mention("slos-serve generate --request-id") == []
    assert faults_of_mention("slos-serve generate --id") == ["slos-serve generate --id: no option --id"]
    assert faults_of_mention("make everything") == ["make everything: no such target"]


def test_what_a_wrong_option_is() -> None:
    assert unknown_option("router.prot")
    assert unknown_option("engine.vllm.kv_cache_byte")
    for text in ("router.port", "engine.vllm.kv_cache_bytes", "profiles.mine.value", "router.py", "numpy.random"):
        assert not unknown_option(text)
