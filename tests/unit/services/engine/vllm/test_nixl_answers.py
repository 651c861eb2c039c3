"""What anybody who answers at an exporter's address can say to the engine that asks it for a KV cache."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.engine.vllm.frontend.nixl_backend import NixlBackend
from services.engine.vllm.shared.nixl_terms import DIGEST_KEY

TERMS: dict[str, Any] = {
    "remote_block_ids": [[1, 2, 3]],
    "remote_engine_id": "engine",
    "remote_request_id": "request",
    "remote_host": "127.0.0.1",
    "remote_port": 4000,
    "tp_size": 1,
    "remote_num_tokens": 40,
    DIGEST_KEY: "digest",
}
LONG = int("9" * 400)


def line(remaining_s: object = 10.0, **changes: object) -> bytes:
    return json.dumps({"terms": {**TERMS, **changes}, "remaining_s": remaining_s}).encode() + b"\n"


def test_a_grant_is_read() -> None:
    grant = NixlBackend(16).parse_answer(line())
    assert (grant.remaining_s, grant.terms.block_ids, grant.terms.tokens) == (10.0, (1, 2, 3), 40)


@pytest.mark.parametrize(
    "answer",
    [
        line(LONG),
        line(-1),
        line(float("nan")),
        line(float("inf")),
        line(1e300),
        line(None),
        line(True),
        line("10"),
        line(remote_num_tokens=LONG),
        line(remote_num_tokens=2**31),
        line(remote_block_ids=[[1, LONG]]),
        line(remote_block_ids=[[1, -1]]),
        line(remote_block_ids=[[True]]),
        line(remote_block_ids=5),
        line(remote_port=LONG),
        line(remote_host=5),
        line(tp_size=1.5),
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b"null\n",
        b"\n",
    ],
    ids=lambda answer: answer[-40:].decode(errors="replace"),
)
def test_an_answer_that_makes_no_sense_is_a_value_error(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        NixlBackend(16).parse_answer(answer)
