"""JSON documents that are valid but for a few values, and texts that are nearly JSON."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from tests.fuzz import values

RAW = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 400, "-" + "9" * 400, "1.0", "1e3", '"\\ud800"', "01")
"""Values as they are written that no JSON writer of Python writes, or that not every reader takes."""
SIMPLE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    0.5,
    1e-300,
    1.7e308,
    [],
    {},
    [[]],
    [{}],
    "",
)
MARK = "\u0001raw%d\u0001"
STANDS_FOR = {json.dumps(MARK % index): raw for index, raw in enumerate(RAW)}


def mutated(document: Any, rng: Random) -> bytes:
    """Return the text of a document of which up to four values were changed, and which may be damaged after that."""
    changed = copy.deepcopy(document)
    for _ in range(rng.randrange(5)):
        changed = _edited(changed, rng)
    text = json.dumps(changed)
    for mark, raw in STANDS_FOR.items():
        if mark in text:
            text = text.replace(mark, raw)
    content = text.encode()
    chance = rng.random()
    if chance < 0.15:
        return values.damaged(content, rng, content)
    if chance < 0.17:
        return rng.choice((b"[", b'{"a":')) * rng.choice((100, 5000, 100_000)) + content
    return content


def _edited(value: Any, rng: Random) -> Any:
    """Return a value with one change somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                del value[name]
            case 1:
                value[values.text(rng)] = _made_up(rng)
            case _:
                value[name] = _edited(value[name], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        if rng.random() < 0.2:
            number = values.count(rng)
            # Long lists of long lists would be the fuzzer's end, not the reader's.
            return value + [value[index]] * (min(number, 5) if isinstance(value[index], list | dict) else number)
        value[index] = _edited(value[index], rng)
        return value
    return _made_up(rng)


def _made_up(rng: Random) -> Any:
    match rng.randrange(5):
        case 0:
            return values.text(rng)
        case 1:
            return MARK % rng.randrange(len(RAW))
        case 2:
            return [copy.deepcopy(rng.choice(SIMPLE))] * values.count(rng)
        case 3:
            return {values.text(rng): copy.deepcopy(rng.choice(SIMPLE)) for _ in range(rng.randrange(4))}
        case _:
            return copy.deepcopy(rng.choice(SIMPLE))
