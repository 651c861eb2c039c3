"""Credentials of both clients: sent with every call, never in the clear over a network, and never shown."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

import grpc
import pytest

from services.rpc import errors as server
from slos_serve import (
    AsyncClient,
    CallOptions,
    Client,
    Credential,
    CredentialError,
    PermissionDeniedError,
    RetryPolicy,
    Tls,
    UnauthenticatedError,
)
from slos_serve.connection import is_loopback
from tests.support.certificates import authority
from tests.unit.client.scripted import Script, scripted, whole_stream

KEY = "sk-0123456789abcdef"
both = pytest.mark.parametrize("blocking", [False, True])


async def ask(address: str, credential: Credential | None, *, blocking: bool, **options: object) -> None:
    given: CallOptions = options  # type: ignore[assignment]

    def every_call() -> None:
        with Client(address, api_key=credential) as client:
            client.generate("x", **given).completion()
            client.quote("x", **given)
            client.cluster_state()
            client.cancel("r-1")

    if blocking:
        await asyncio.to_thread(every_call)
        return
    async with AsyncClient(address, api_key=credential) as client:
        await client.generate("x", **given).completion()
        await client.quote("x", **given)
        await client.cluster_state()
        await client.cancel("r-1")


async def generate(address: str, credential: Credential, *, blocking: bool, tls: Tls | None = None) -> None:
    def once() -> None:
        with Client(address, tls=tls, api_key=credential) as client:
            client.generate("x").completion()

    if blocking:
        await asyncio.to_thread(once)
        return
    async with AsyncClient(address, tls=tls, api_key=credential) as client:
        await client.generate("x").completion()


@both
async def test_every_call_carries_the_key(*, blocking: bool) -> None:
    with scripted(whole_stream()) as router:
        router.cancelled.append("r-1")
        await ask(router.address, KEY, blocking=blocking)
        assert router.credentials == [f"Bearer {KEY}"] * 4


@both
async def test_without_a_key_no_call_carries_one(*, blocking: bool) -> None:
    with scripted(whole_stream()) as router:
        router.cancelled.append("r-1")
        await ask(router.address, None, blocking=blocking)
        assert router.credentials == [None] * 4


@both
async def test_a_function_is_asked_for_every_attempt(*, blocking: bool) -> None:
    tokens = (f"token-{number}" for number in range(9))
    refusal: Script = [server.OverloadedError("full", retry_after_s=0.01)]
    with scripted(refusal, refusal, whole_stream()) as router:
        await generate(router.address, lambda: next(tokens), blocking=blocking)
        assert router.credentials == ["Bearer token-0", "Bearer token-1", "Bearer token-2"]


@both
async def test_a_credential_of_one_call_goes_before_the_clients(*, blocking: bool) -> None:
    with scripted(whole_stream()) as router:
        router.cancelled.append("r-1")
        await ask(router.address, KEY, blocking=blocking, metadata={"Authorization": "Bearer other"})
        assert router.credentials == ["Bearer other"] * 2 + [f"Bearer {KEY}"] * 2


@both
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (server.UnauthenticatedError("no valid credential", retry_after_s=0.01), UnauthenticatedError),
        (server.PermissionDeniedError("needs the right to observe"), PermissionDeniedError),
    ],
)
async def test_refused_credentials_are_typed_and_not_sent_again(
    *, blocking: bool, error: server.RequestError, kind: type[Exception]
) -> None:
    with scripted([error], whole_stream()) as router:
        with pytest.raises(kind) as raised:
            await ask(router.address, KEY, blocking=blocking)
        assert len(router.requests) == 1
        assert KEY not in "".join(traceback.format_exception(raised.value))


FAR = ["10.0.0.7:50051", "router:50051", "router.example.com:443", "0.0.0.0:50051", "127.0.0.1.example.com:1"]


@pytest.mark.parametrize("address", FAR)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_credential_is_not_sent_unencrypted_over_a_network(kind: type[Client | AsyncClient], address: str) -> None:
    for credential in (KEY, lambda: KEY):
        with pytest.raises(CredentialError, match="unencrypted") as raised:
            kind("127.0.0.1:50051", address, api_key=credential)
        assert address in str(raised.value)
        assert KEY not in str(raised.value)
    kind(address)
    kind(address, api_key=KEY, tls=Tls())
    kind(address, api_key=KEY, insecure_credentials=True)


async def test_the_credential_of_a_call_is_not_sent_unencrypted_either() -> None:
    options: CallOptions = {"metadata": {"authorization": f"Bearer {KEY}"}, "timeout_s": 5.0}
    with Client("192.0.2.1:50051", retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(CredentialError):
            next(client.generate("x", **options))
        with pytest.raises(CredentialError):
            client.quote("x", **options)
    async with AsyncClient("192.0.2.1:50051", retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(CredentialError):
            await anext(client.generate("x", **options))


@pytest.mark.parametrize("bad", ["", " ", f"{KEY}\n", f" {KEY}", f"{KEY}\r\nx-admin: 1", "schlüssel", "a\x00b"])
def test_a_credential_that_no_header_can_carry_is_refused_without_being_shown(bad: str) -> None:
    for make in (lambda: Client("127.0.0.1:1", api_key=bad), lambda: signed_by(lambda: bad)):
        with pytest.raises(CredentialError) as raised:
            make()
        assert not bad.strip() or bad.strip() not in str(raised.value)


def signed_by(credential: Credential) -> None:
    with Client("127.0.0.1:1", api_key=credential) as client:
        client.cluster_state(timeout_s=5.0)


def test_nothing_that_a_program_prints_of_a_client_shows_its_key() -> None:
    for client in (Client("127.0.0.1:1", api_key=KEY), AsyncClient("127.0.0.1:1", api_key=KEY)):
        assert KEY not in repr(client)
        assert KEY not in repr(vars(client))


@both
async def test_metadata_that_cannot_be_sent_shows_no_other_entry(*, blocking: bool) -> None:
    with scripted(whole_stream()) as router:
        for name, value in (("x-name", "schlüssel"), ("no name", "x"), ("x", "a\nb")):
            with pytest.raises(ValueError, match=f"metadata '{name}'") as raised:
                await ask(
                    router.address, KEY, blocking=blocking, metadata={"authorization": f"Bearer {KEY}", name: value}
                )
            assert KEY not in "".join(traceback.format_exception(raised.value))
            assert value not in str(raised.value) or value == "x"
        assert not router.requests


@both
async def test_over_tls_the_key_is_sent(tmp_path: Path, *, blocking: bool) -> None:
    trusted = authority(tmp_path, "trusted")
    certificate, key = trusted.sign("localhost")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    with scripted(whole_stream(), credentials=credentials) as router:
        tls = Tls(root_certificates=trusted.file.read_bytes(), server_name="localhost")
        await generate(router.address, KEY, blocking=blocking, tls=tls)
        assert router.credentials == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.9.1:50051", True),
        ("[::1]:50051", True),
        ("localhost:50051", True),
        ("LOCALHOST.:50051", True),
        ("api.localhost:50051", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("unix:/run/router", True),
        ("dns://192.0.2.1/localhost:50051", False),
        ("ipv4:127.0.0.1:50051,10.0.0.7:50051", False),
        ("10.0.0.7:50051", False),
        ("router:50051", False),
        ("localhost.example.com:50051", False),
        ("[fe80::1]:50051", False),
        ("0.0.0.0:50051", False),
    ],
)
def test_who_is_on_this_machine(address: str, *, loopback: bool) -> None:
    assert is_loopback(address) is loopback
