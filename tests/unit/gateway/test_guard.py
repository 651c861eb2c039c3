"""Credentials at the gateway, over real HTTP: who is let in, what others learn, and what goes to the router."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from grpc_health.v1 import health_pb2

from gateway.app import serve
from services.config.auth import AuthSettings
from services.config.settings import GatewaySettings, Settings
from services.identity.principal import Role
from services.rpc import errors as server
from tests.support.audit_log import AuditLog
from tests.support.principals import Keys
from tests.unit.client.scripted import INFERENCE, Script, scripted, whole_stream
from tests.unit.gateway.serving import http_server

BODY = {"prompt": "hi"}
COMPLETIONS = "/v1/completions"


async def ask(port: int, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    return await ask_with(port, method, path, headers, **options)


async def ask_with(
    port: int, method: str, path: str, headers: list[tuple[bytes, bytes]], **options: Any
) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
        return await client.request(method, path, headers=headers, **options)


def assert_unauthenticated(answer: httpx.Response) -> None:
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_a_client_is_served_and_the_router_learns_who_it_is() -> None:
    keys = Keys()
    with scripted(whole_stream()) as router:
        router.model = "m"
        async with http_server(router.address, authenticator=keys.authenticator) as port:
            assert (await ask(port, "POST", COMPLETIONS, keys.client, json=BODY)).status_code == 200
            assert (await ask(port, "POST", COMPLETIONS, keys.client, json={**BODY, "stream": True})).status_code == 200
            models = await ask(port, "GET", "/v1/models", keys.client)
            assert models.json()["data"][0]["id"] == "m"
        assert router.credentials == [f"Bearer {keys.client}"] * 3


async def test_whoever_has_no_valid_credential_reaches_no_router(audit_log: AuditLog) -> None:
    keys = Keys()
    revoked = keys.add("acme", Role.CLIENT)
    keys.revoke(revoked)
    with scripted(whole_stream()) as router:
        async with http_server(router.address, authenticator=keys.authenticator) as port:
            for key in (None, "-", "sk-something", keys.unknown, keys.expired, revoked, keys.client[:-1], "x" * 20_000):
                for path in (COMPLETIONS, "/v1/chat/completions"):
                    assert_unauthenticated(await ask(port, "POST", path, key, json=BODY))
                assert_unauthenticated(await ask(port, "GET", "/v1/models", key))
        assert not router.credentials
    noted = audit_log.lines()
    assert {event["event"] for event in noted} == {"authentication"}
    assert noted[0]["target"] == "POST /v1/completions"
    assert keys.expired not in json.dumps(noted)


async def test_a_credential_that_does_not_carry_the_right_is_refused() -> None:
    keys = Keys()
    with scripted(whole_stream()) as router:
        async with http_server(router.address, authenticator=keys.authenticator) as port:
            answer = await ask(port, "POST", COMPLETIONS, keys.operator, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
        assert not router.credentials


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 4000000\r\n\r\n",
        b"content-length: 4000000\r\nexpect: 100-continue\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n",
        b'content-length: 100\r\n\r\n{"prompt": ',
    ],
)
async def test_the_answer_comes_before_the_body(head: bytes) -> None:
    async with http_server(authenticator=Keys().authenticator) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: door\r\n" + head)
        async with asyncio.timeout(30.0):
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401 ")
        writer.close()


PATHS = (
    *("/v1/models", "/v1/models/", "//v1/models", "/v1//models", "/V1/models", "/%76%31/models", "/v1%2fmodels"),
    *("/./v1/models", "/v1/../v1/models", "/health/../v1/models", "/health/", "//health", "/health/x", "/health;x"),
    *(
        "/health%2f",
        "/%2e/health",
        "/ping/",
        "/",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/nowhere",
        "/v1/models?x=/health",
    ),
    *("/v1/completions", "/v1/completions/", "//v1/completions", "/v1/chat/completions/"),
)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_no_other_spelling_of_a_path_leads_around_the_guard(method: str) -> None:
    with scripted(whole_stream()) as router:
        async with http_server(router.address, authenticator=Keys().authenticator) as port:
            for path in PATHS:
                status = await raw_status(port, f"{method} {path} HTTP/1.1")
                assert status == 401, f"{method} {path}"
            # A request target may name a whole URL.
            assert await raw_status(port, f"{method} http://door/v1/models HTTP/1.1") == 401
        assert not router.credentials


async def raw_status(port: int, line: str) -> int:
    """Return the status of the answer to a request line that no client library has tidied up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{line}\r\nhost: door\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
    async with asyncio.timeout(30.0):
        status = (await reader.readuntil(b"\r\n")).split()[1]
    writer.close()
    return int(status)


@pytest.mark.parametrize("checked", [True, False])
async def test_several_credentials_are_none(*, checked: bool) -> None:
    keys = Keys()
    both = [(b"authorization", f"Bearer {key}".encode()) for key in (keys.client, keys.admin)]
    with scripted(whole_stream()) as router:
        async with http_server(router.address, authenticator=keys.authenticator if checked else None) as port:
            answer = await ask_with(port, "POST", COMPLETIONS, both, json=BODY)
        if checked:
            assert_unauthenticated(answer)
        else:
            assert router.credentials == [f"Bearer {keys.client}, Bearer {keys.admin}"], "which no router takes"


async def test_health_is_open_and_says_nothing_else() -> None:
    with scripted(whole_stream()) as router:
        async with http_server(router.address, authenticator=Keys().authenticator) as port:
            for path in ("/health", "/ping"):
                answer = await ask(port, "GET", path)
                assert (answer.status_code, answer.content) == (200, b"")
            router.health.set(INFERENCE, health_pb2.HealthCheckResponse.NOT_SERVING)
            answer = await ask(port, "GET", "/health")
            assert (answer.status_code, answer.json()["error"]["message"]) == (503, "no worker takes requests")
    async with http_server("127.0.0.1:1", authenticator=Keys().authenticator) as port:
        answer = await ask(port, "GET", "/health")
    assert (answer.status_code, answer.json()["error"]["message"]) == (502, "no router answers")


async def test_one_of_several_routers_is_enough_for_health() -> None:
    with scripted(whole_stream()) as router:
        async with http_server("127.0.0.1:1", router.address) as port:
            assert (await ask(port, "GET", "/health")).status_code == 200


async def test_no_answer_names_the_address_of_a_router() -> None:
    async with http_server("127.0.0.1:1") as port:
        for answer in (
            await ask(port, "POST", COMPLETIONS, json=BODY),
            await ask(port, "GET", "/v1/models"),
            await ask(port, "GET", "/health"),
        ):
            assert answer.status_code == 502
            assert "127.0.0.1" not in answer.text


async def test_without_a_check_here_the_router_decides() -> None:
    refused: Script = [server.UnauthenticatedError("the credential is not valid")]
    with scripted(refused) as router:
        async with http_server(router.address) as port:
            assert_unauthenticated(await ask(port, "POST", COMPLETIONS, "sk-x", json=BODY))
            assert_unauthenticated(await ask(port, "POST", COMPLETIONS, json=BODY))
        assert router.credentials == ["Bearer sk-x", None]


@pytest.mark.parametrize("given", ["Bearer schlüssel", "Bearer a\tb", f"Bearer {'x' * 9000}"])
async def test_what_metadata_cannot_carry_stays_here(given: str) -> None:
    with scripted(whole_stream()) as router:
        async with http_server(router.address) as port:
            headers = [(b"authorization", given.encode("latin-1"))]
            assert (await ask_with(port, "POST", COMPLETIONS, headers, json=BODY)).status_code == 200
        assert router.credentials == [None]


def test_a_credential_is_not_handed_on_where_others_can_listen() -> None:
    from gateway.app import overheard_at
    from slos_serve import Tls

    far = ("127.0.0.1:50051", "router:50051")
    assert overheard_at(GatewaySettings(), far, None) == "router:50051"
    assert overheard_at(GatewaySettings(), far, Tls()) == ""
    assert overheard_at(GatewaySettings(insecure_credentials=True), far, None) == ""
    assert overheard_at(GatewaySettings(), ("127.0.0.1:50051", "[::1]:50051"), None) == ""


@pytest.mark.parametrize(
    ("options", "auth", "words"),
    [
        ({"host": "0.0.0.0"}, {}, "gateway.host = 0.0.0.0"),
        ({"routers": ("192.0.2.1:50051",)}, {"keys": True}, "unencrypted to 192.0.2.1:50051"),
        ({}, {"keys_file": "/nonexistent/keys.json"}, "/nonexistent/keys.json"),
        ({}, {"keys_in_redis": True}, "redis.url is empty"),
    ],
)
async def test_a_gateway_that_would_let_strangers_in_does_not_start(
    options: dict[str, Any],
    auth: dict[str, Any],
    words: str,
    caplog: pytest.LogCaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if auth.pop("keys", False):
        auth["keys_file"] = tmp_path_factory.mktemp("keys") / "keys.json"
        auth["keys_file"].write_text('{"keys": []}')
    settings = Settings(gateway=GatewaySettings(port=0, **options), auth=AuthSettings.model_validate(auth))
    assert await serve(settings) == 2
    assert words in caplog.text
