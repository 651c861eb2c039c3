"""Asking routers what they know of a request: through their consoles, which only operators reach."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from cli.status_details import without_state
from cli.target import Target
from services.config.environment import API_KEY_VARIABLE
from slos_serve import RetryPolicy, SlosServeError, Tls
from slos_serve.connection import is_loopback

ANSWER_TIMEOUT_S = 5.0
LOOKS_PER_PROCESS = 8
"""Number of connections to a shared port, for each process behind it, after which those never met are left out."""


class NoAnswerError(Exception):
    """Nobody could be asked; the message says who, and why."""


class UnknownRequestError(Exception):
    """Whoever was asked does not know the request, or does not any more."""


def ask_cluster(router: Target, request_id: str) -> dict[str, Any]:
    """Return what a router, or one of the processes that share its address, knows of a request.

    Raises:
        NoAnswerError: the router or its console cannot be reached.
        UnknownRequestError: none of them knows it.
    """
    unknown = ""
    for router_id, url in _consoles(router):
        if not url:
            raise NoAnswerError(
                f"router {router_id} has no console (console.enabled), which is what remembers requests; "
                "`router.record` and --recording work without"
            )
        try:
            return ask_console(url, request_id, router)
        except UnknownRequestError as error:
            unknown = unknown or str(error)
        except NoAnswerError as error:
            raise NoAnswerError(
                f"{error}; on another machine than router {router_id}, forward its console's port "
                "(`ssh -L`) and say --console"
            ) from error
    raise UnknownRequestError(unknown)


def ask_console(url: str, request_id: str, router: Target) -> dict[str, Any]:
    """Return what the console at a URL knows of a request.

    Args:
        router: the router whose console it is; the console takes the same credential and shows the same certificate.

    Raises:
        NoAnswerError: no console answers there, or not to this caller.
        UnknownRequestError: its router does not know the request.
    """
    parts = urlsplit(url)
    try:
        connection = _connection(parts, router.tls)
        headers = _headers(parts, router)
    except ValueError as error:
        raise NoAnswerError(f"{url} is no URL of a console: {error}") from error
    try:
        connection.request(
            "GET", f"{parts.path.rstrip('/')}/api/requests/{quote(request_id, safe='')}", headers=headers
        )
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(f"no console answers at {url}: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()
    content = _object(body)
    if answer.status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
        raise NoAnswerError(
            f"the console at {url} answers {answer.status}; {API_KEY_VARIABLE} or --api-key-file say who asks"
        )
    if not {"error", "request_id"} & content.keys():
        raise NoAnswerError(f"what answers at {url} is no console: HTTP {answer.status}")
    if answer.status == http.HTTPStatus.NOT_FOUND:
        raise UnknownRequestError(f"request {request_id}: {content['error']}")
    if "request_id" not in content:
        raise NoAnswerError(f"the console at {url} answers: {content['error']}")
    return content


def _connection(parts: SplitResult, tls: Tls | None) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=ANSWER_TIMEOUT_S)
    trusted = None if tls is None or tls.root_certificates is None else tls.root_certificates.decode()
    context = ssl.create_default_context(cadata=trusted)
    # As gRPC does, trust a router's own certificate although it is no authority's.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return http.client.HTTPSConnection(host, parts.port, timeout=ANSWER_TIMEOUT_S, context=context)


def _headers(parts: SplitResult, router: Target) -> dict[str, str]:
    """Return the headers that say who asks.

    Raises:
        NoAnswerError: the credential would go unencrypted to another machine.
    """
    if router.credential is None:
        return {}
    if parts.scheme != "https" and not is_loopback(parts.netloc) and not router.insecure_credentials:
        raise NoAnswerError(
            f"a credential would go unencrypted to {parts.netloc}, which is not on this machine; use a console with "
            "TLS, or say --insecure-credentials if nobody can listen on the way"
        )
    return {"authorization": f"Bearer {router.credential}"}


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body; an empty one if it holds none."""
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _consoles(router: Target) -> Iterator[tuple[str, str]]:
    """Yield the id and the console of every router process behind an address, as new connections meet them."""
    seen: set[int] = set()
    processes = 1
    looks = 0
    while len(seen) < processes and looks < LOOKS_PER_PROCESS * processes:
        looks += 1
        with router.client(RetryPolicy(max_attempts=1)) as client:
            try:
                state = client.cluster_state(timeout_s=ANSWER_TIMEOUT_S)
            except SlosServeError as error:
                raise NoAnswerError(without_state(router.address, error)) from error
        processes = state.processes
        if state.process not in seen:
            seen.add(state.process)
            yield state.router_id, state.console_url
