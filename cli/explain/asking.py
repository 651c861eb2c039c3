"""Asking routers what they know of a request: through their consoles, which only operators reach."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from slos_serve import Client, RetryPolicy, SlosServeError, Tls

ANSWER_TIMEOUT_S = 5.0
LOOKS_PER_PROCESS = 8
"""Number of connections to a shared port, for each process behind it, after which those never met are left out."""


class NoAnswerError(Exception):
    """Nobody could be asked; the message says who, and why."""


class UnknownRequestError(Exception):
    """Whoever was asked does not know the request, or does not any more."""


def ask_cluster(router: str, tls: Tls | None, request_id: str) -> dict[str, Any]:
    """Return what the router at an address, or one of the processes that share it, knows of a request.

    Raises:
        NoAnswerError: the router or its console cannot be reached.
        UnknownRequestError: none of them knows it.
    """
    unknown = ""
    for router_id, url in _consoles(router, tls):
        if not url:
            raise NoAnswerError(
                f"router {router_id} has no console (console.enabled), which is what remembers requests; "
                "`router.record` and --recording work without"
            )
        try:
            return ask_console(url, request_id)
        except UnknownRequestError as error:
            unknown = unknown or str(error)
        except NoAnswerError as error:
            raise NoAnswerError(
                f"{error}; on another machine than router {router_id}, forward its console's port "
                "(`ssh -L`) and say --console"
            ) from error
    raise UnknownRequestError(unknown)


def ask_console(url: str, request_id: str) -> dict[str, Any]:
    """Return what the console at a URL knows of a request.

    Raises:
        NoAnswerError: no console answers there.
        UnknownRequestError: its router does not know the request.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_TIMEOUT_S)
    except ValueError as error:
        raise NoAnswerError(f"{url} is no URL of a console: {error}") from error
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/api/requests/{quote(request_id, safe='')}")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(f"no console answers at {url}: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()
    content = _object(body)
    if not {"error", "request_id"} & content.keys():
        raise NoAnswerError(f"what answers at {url} is no console: HTTP {answer.status}")
    if answer.status == http.HTTPStatus.NOT_FOUND:
        raise UnknownRequestError(f"request {request_id}: {content['error']}")
    if "request_id" not in content:
        raise NoAnswerError(f"the console at {url} answers: {content['error']}")
    return content


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; an empty one if it holds none."""
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _consoles(router: str, tls: Tls | None) -> Iterator[tuple[str, str]]:
    """Yield the id and the console of every router process behind an address, as new connections meet them."""
    seen: set[int] = set()
    processes = 1
    looks = 0
    while len(seen) < processes and looks < LOOKS_PER_PROCESS * processes:
        looks += 1
        with Client(router, tls=tls, retry=RetryPolicy(max_attempts=1)) as client:
            try:
                state = client.cluster_state(timeout_s=ANSWER_TIMEOUT_S)
            except SlosServeError as error:
                raise NoAnswerError(f"no router answers at {router}: {error.detail}") from error
        processes = state.processes
        if state.process not in seen:
            seen.add(state.process)
            yield state.router_id, state.console_url
