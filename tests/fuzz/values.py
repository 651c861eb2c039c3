"""Values that programs have failed on."""

from __future__ import annotations

import math
from random import Random

INT32 = (0, 1, -1, 2, 7, 16, 255, 256, 1023, 1024, 8191, 8192, 65535, 2**31 - 1, -(2**31))
INT64 = (*INT32, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63))
UINT32 = (0, 1, 2, 255, 65535, 2**31, 2**32 - 1)
UINT64 = (*UINT32, 2**53 + 1, 2**63, 2**64 - 1)
FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 0.999, 1e-9, 1e-300, 5e-324, 2.0, 100.0, 1e6, 1e9, 1e15, 1e38),
    *(1.7e308, -1.7e308, math.inf, -math.inf, math.nan),
)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "\x00",
        "\n",
        "\r\n",
        "\x7f",
        "\u202e",
        "\u200b",
        "\ufeff",
        "\ufffd",
        "é" * 64,
        "😀" * 40,
        "ﷺ" * 40,
    ),
    *(
        "../../etc/passwd",
        "' or 1=1 --",
        "%s%s%n",
        "{{7*7}}",
        "${jndi:ldap://x}",
        "<script>",
        "nan",
        "inf",
        "-1",
        "1e400",
    ),
    *(
        "slos:worker:*",
        "slos:request:1",
        "prefill-0",
        "decode-0",
        "router",
        "unix:/",
        "127.0.0.1:1",
        "a" * 127,
        "a" * 128,
    ),
    *("a" * 129, "b" * 256, "c" * 257, "d" * 1024, "e" * 1025, "ab" * 4096, "\\u0000", "[" * 200, "{" * 200, "9" * 400),
)
LONG = (20_000, 100_000, 1_000_000)
"""Lengths of texts and lists of which one in a few hundred is made: each costs as much as hundreds of others."""


def text(rng: Random) -> str:
    """Return a text that may be odd, and seldom long."""
    chance = rng.random()
    if chance < 0.003:
        return rng.choice("a \nµ") * rng.choice(LONG)
    if chance < 0.2:
        return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD800), 0x1F600))) for _ in range(9))
    return rng.choice(TEXTS)


def count(rng: Random) -> int:
    """Return how many elements a list is to have; seldom many."""
    return rng.choice(LONG[:2]) if rng.random() < 0.003 else rng.choice((0, 1, 1, 2, 3, 5, 17, 65, 300))


def damaged(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Return bytes with up to four faults: flipped, cut, inserted, repeated, or spliced with others."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                end = min(len(data), at + rng.randrange(1, 33))
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 4:
                del data[at : at + rng.randrange(1, 17)]
            case _:
                data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)
