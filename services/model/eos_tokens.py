"""The end-of-sequence tokens of a model, as its files name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def eos_token_ids(model_dir: Path) -> tuple[int, ...]:
    """Return the end-of-sequence tokens of generation_config.json, else those of config.json, else none.

    Multi-modal models keep the language model's configuration one level down in config.json.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no JSON.
    """
    for name in ("generation_config.json", "config.json"):
        path = model_dir / name
        if not path.is_file():
            continue
        content: dict[str, Any] = json.loads(path.read_text())
        found = content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return ()
