"""End-of-sequence tokens, in every place where models name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.model.eos_tokens import eos_token_ids


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": 7}, (2,)),
        ({"eos_token_id": [2, 5]}, {}, (2, 5)),
        ({}, {"eos_token_id": 7}, (7,)),
        (None, {"text_config": {"eos_token_id": [8, 9]}}, (8, 9)),
        (None, {}, ()),
        (None, None, ()),
        ({"eos_token_id": 0}, {"eos_token_id": 7}, (0,)),
    ],
)
def test_end_of_sequence_tokens(
    tmp_path: Path, generation: dict[str, object] | None, config: dict[str, object] | None, expected: tuple[int, ...]
) -> None:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert eos_token_ids(tmp_path) == expected
