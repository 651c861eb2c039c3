"""Where the public keys of whoever issues tokens are read from: a file, or a URL."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2

from services.identity.regular_file import read_regular_file

MAX_BYTES = 1024 * 1024
"""Size of the largest set of keys that is read (chosen: a hundred keys, each with its certificates, fit)."""


class JwksError(Exception):
    """The keys of the issuer of tokens cannot be had."""


async def fetch_jwks(source: str) -> Any:
    """Return the JSON of a set, of at most `MAX_BYTES`. Whoever calls sets the time that it may take.

    Args:
        source: a URL, of which no redirect is followed, or the path of a file.

    Raises:
        JwksError: the URL gives no set.
        OSError: the file cannot be read.
        ValueError, RecursionError: what was read is no JSON.
    """
    if "://" in source:
        content = await _fetch_url(source)
    else:
        content = await asyncio.to_thread(read_regular_file, Path(source), MAX_BYTES)
    # A megabyte of JSON would hold the event loop for milliseconds.
    return await asyncio.to_thread(json.loads, content)


async def _fetch_url(url: str) -> bytes:
    content = bytearray()
    try:
        # Reading the authorities of the machine takes tens of milliseconds.
        client = await asyncio.to_thread(httpx2.AsyncClient, follow_redirects=False, timeout=None)
        # An answer is bounded as it comes over the wire: a packed one could be a thousand times as large.
        async with client, client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
            if not response.is_success or "content-encoding" in response.headers:
                raise JwksError(f"status {response.status_code} {response.headers.get('content-encoding', '')}".strip())
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > MAX_BYTES:
                    raise JwksError(f"more than {MAX_BYTES} bytes")
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise JwksError(str(error) or type(error).__name__) from error
    return bytes(content)
