"""Who gets to see the console, over real HTTP: by a header, by signing in, and not at all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.observability.console import guard as console_guard
from router.observability.console.server import ConsoleServer
from router.observability.console.sessions import (
    FAILURE_REST_S,
    MAX_FAILURES,
    MAX_HOSTS,
    MAX_SESSIONS,
    SESSION_S,
    LoginLimit,
    Sessions,
)
from services.config.settings import ConsoleSettings
from services.identity.principal import Role
from tests.support.audit_log import AuditLog
from tests.support.certificates import authority
from tests.support.principals import Keys
from tests.unit.router.observability.test_console import Bench

PATIENCE_S = 30.0
NOW_S = 5000.0
PATHS = ("/", "/static/main.js", "/api/state", "/api/history", "/api/requests/r", "/api/events")


@asynccontextmanager
async def console(keys: Keys | None, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve a console, and yield a browser of it that follows no redirect."""
    server = ConsoleServer(
        ConsoleSettings(port=0), Bench().view, None if keys is None else keys.authenticator, options.get("certificate")
    )
    url = await server.start()
    try:
        verify = options.get("verify", True)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, verify=verify) as browser:
            yield browser
    finally:
        await server.stop()


async def sign_in(browser: httpx.AsyncClient, key: str, **headers: str) -> httpx.Response:
    return await browser.post("/login", data={"key": key}, headers=headers)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_whoever_says_nothing_sees_nothing() -> None:
    async with console(Keys()) as browser:
        for path in (
            *PATHS,
            "/api/state/",
            "//api/state",
            "/api/../api/state",
            "/static/login.html",
            "/nowhere",
            "/metrics",
        ):
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
                answer = await browser.request(method, path)
                assert answer.status_code == 401, f"{method} {path}"
                assert answer.headers["www-authenticate"] == "Bearer"
        answer = await browser.get("/", headers={"accept": "text/html,*/*"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        for path in ("/static/style.css", "/static/icon.svg", "/login"):
            assert (await browser.get(path)).status_code == 200


async def test_a_header_is_enough_for_programs() -> None:
    keys = Keys()
    async with console(keys) as browser:
        for key in (keys.operator, keys.admin):
            assert (await browser.get("/api/state", headers=bearer(key))).json()["cluster"]["router_id"] == "r"
        for key, status in ((keys.client, 403), (keys.expired, 401), (keys.unknown, 401), ("x", 401)):
            assert (await browser.get("/api/state", headers=bearer(key))).status_code == status
        assert not browser.cookies


async def test_an_operator_signs_in_looks_and_signs_out(audit_log: AuditLog) -> None:
    keys = Keys()
    async with console(keys) as browser:
        answer = await sign_in(browser, keys.operator)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        attributes = {part.strip().partition("=")[0].lower() for part in answer.headers["set-cookie"].split(";")[1:]}
        assert {"httponly", "samesite", "path", "max-age"} <= attributes
        assert "samesite=strict" in answer.headers["set-cookie"].lower()
        assert "domain" not in attributes
        assert keys.operator not in answer.headers["set-cookie"]
        for path in PATHS[:-2]:
            assert (await browser.get(path)).status_code == 200
        async with browser.stream("GET", "/api/events") as events:
            assert events.status_code == 200
            await anext(events.aiter_bytes())
        kept = dict(browser.cookies)
        answer = await browser.post("/logout")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert not browser.cookies
        assert (await browser.get("/api/state", headers=cookie(kept))).status_code == 401, "the cookie alone is no key"
    assert ("login", "done", "/login") in audit_log.told()


def cookie(kept: dict[str, str]) -> dict[str, str]:
    return {"cookie": "; ".join(f"{name}={value}" for name, value in kept.items())}


@pytest.mark.parametrize("made_up", ["", "x", "é", "a" * 5000, "\\", '"', "x; y=z"])
async def test_no_made_up_cookie_is_a_session(made_up: str) -> None:
    async with console(Keys()) as browser:
        name = f"slos-console-{browser.base_url.port}"
        headers = [(b"cookie", f"{name}={made_up}".encode())]
        assert (await browser.get("/api/state", headers=headers)).status_code == 401


async def test_whoever_may_not_observe_cannot_sign_in(audit_log: AuditLog) -> None:
    keys = Keys()
    async with console(keys) as browser:
        for key, status, said in (
            (keys.client, 403, "may not observe"),
            (keys.expired, 401, "is not valid"),
            ("<script>", 401, "is not valid"),
        ):
            answer = await sign_in(browser, key)
            assert answer.status_code == status
            assert said in answer.text
            assert "<script>" not in answer.text
            assert not browser.cookies
    assert audit_log.told() == [("login", "refused", "/login")] * 3


async def test_a_key_that_is_revoked_ends_its_sessions_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_guard, "RECHECK_S", 0.0)
    keys = Keys()
    key = keys.add("operations", Role.OPERATOR)
    async with console(keys) as browser:
        await sign_in(browser, key)
        async with browser.stream("GET", "/api/events") as events:
            frames = events.aiter_bytes()
            await anext(frames)
            keys.revoke(key)
            with pytest.raises(httpx.RemoteProtocolError):
                await asyncio.wait_for(_read_all(frames), PATIENCE_S)
        assert (await browser.get("/api/state")).status_code == 401


async def _read_all(frames: AsyncIterator[bytes]) -> None:
    async for _ in frames:
        pass


async def test_a_form_of_another_site_signs_nobody_in_or_out() -> None:
    keys = Keys()
    async with console(keys) as browser:
        strangers: tuple[dict[str, str], ...] = (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://["},
        )
        for headers in strangers:
            assert (await sign_in(browser, keys.operator, **headers)).status_code == 403
        assert not browser.cookies
        own = f"http://{browser.base_url.netloc.decode()}"
        assert (
            await sign_in(browser, keys.operator, origin=own, **{"sec-fetch-site": "same-origin"})
        ).status_code == 303
        for headers in strangers:
            assert (await browser.post("/logout", headers=headers)).status_code == 403
        for method in ("GET", "HEAD", "PUT"):
            assert (await browser.request(method, "/logout")).status_code == 405
        assert (await browser.get("/api/state")).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"key=" + b"x" * 20_000, "application/x-www-form-urlencoded"),
        (b"\xff", "application/x-www-form-urlencoded"),
        (b"key=a&key=b", "application/x-www-form-urlencoded"),
        (b"&".join([b"a=1"] * 50), "application/x-www-form-urlencoded"),
        (b"", "application/x-www-form-urlencoded"),
        (b'{"key": "x"}', "application/json"),
        (b"key=x", "text/plain"),
    ],
)
async def test_what_is_no_form_for_signing_in(content: bytes, kind: str) -> None:
    async with console(Keys()) as browser:
        answer = await browser.post("/login", content=content, headers={"content-type": kind})
        assert answer.status_code == 400


async def test_failed_attempts_are_limited_and_good_ones_are_not() -> None:
    keys = Keys()
    async with console(keys) as browser:
        for _ in range(2 * MAX_FAILURES):
            assert (await sign_in(browser, keys.operator)).status_code == 303
        answers = await asyncio.gather(*(sign_in(browser, keys.unknown) for _ in range(4 * MAX_FAILURES)))
        assert [answer.status_code for answer in answers].count(401) == MAX_FAILURES
        assert (await sign_in(browser, keys.operator)).status_code == 429, "who guesses right now learns nothing"
        late = next(answer for answer in answers if answer.status_code == 429)
        assert 1 <= int(late.headers["retry-after"]) <= FAILURE_REST_S
        assert (await browser.get("/api/state")).status_code == 200, "sessions go on"


async def test_pages_cannot_be_framed_or_extended() -> None:
    keys = Keys()
    async with console(keys) as browser:
        for answer in (
            await browser.get("/login"),
            await browser.get("/api/state"),
            await sign_in(browser, "x"),
            await browser.get("/", headers=bearer(keys.operator)),
        ):
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_with_a_certificate_the_console_is_encrypted_and_so_is_its_cookie(tmp_path: Path) -> None:
    keys, trusted = Keys(), authority(tmp_path, "trusted")
    verify = ssl.create_default_context(cafile=str(trusted.file))
    async with console(keys, certificate=trusted.sign("router"), verify=verify) as browser:
        assert browser.base_url.scheme == "https"
        answer = await sign_in(browser, keys.operator)
        said = answer.headers["set-cookie"]
        assert said.startswith("__Host-slos-console-")
        assert "secure" in said.lower()
        assert (await browser.get("/api/state")).status_code == 200


async def test_without_a_check_everybody_sees_everything() -> None:
    async with console(None) as browser:
        page = await browser.get("/")
        assert page.status_code == 200
        assert "logout" not in page.text
        assert (await browser.get("/login")).status_code == 404
    async with console(keys := Keys()) as browser:
        assert 'action="/logout"' in (await browser.get("/", headers=bearer(keys.operator))).text


def test_sessions_end_and_are_bounded() -> None:
    sessions = Sessions()
    first = sessions.open("Bearer a", NOW_S)
    assert first != sessions.open("Bearer a", NOW_S)
    assert "Bearer" not in repr(sessions.find(first, NOW_S))
    assert sessions.find(first, NOW_S + SESSION_S - 1) is not None
    assert sessions.find(first, NOW_S + SESSION_S) is None
    second = sessions.open("Bearer b", NOW_S)
    others = [sessions.open(f"Bearer {number}", NOW_S) for number in range(MAX_SESSIONS)]
    assert len(sessions) == MAX_SESSIONS
    assert sessions.find(second, NOW_S) is None, "the oldest has ended"
    assert all(sessions.find(cookie, NOW_S) is not None for cookie in others)
    sessions.close(others[0])
    assert sessions.find(others[0], NOW_S) is None


def test_a_host_that_failed_may_try_again_later_and_others_at_once() -> None:
    limit = LoginLimit()
    for _ in range(MAX_FAILURES):
        assert limit.wait_s("10.0.0.1", NOW_S) == 0
        limit.tries("10.0.0.1", NOW_S)
    assert limit.wait_s("10.0.0.1", NOW_S) == FAILURE_REST_S
    assert limit.wait_s("10.0.0.2", NOW_S) == 0
    assert limit.wait_s("10.0.0.1", NOW_S + FAILURE_REST_S - 1) == 1
    limit.tries("10.0.0.1", NOW_S + FAILURE_REST_S)
    assert limit.wait_s("10.0.0.1", NOW_S + FAILURE_REST_S) > 0
    assert limit.wait_s("10.0.0.1", NOW_S + 10 * FAILURE_REST_S) == 0


def test_many_hosts_that_fail_do_not_fill_the_memory() -> None:
    limit = LoginLimit()
    for number in range(2 * MAX_HOSTS):
        for _ in range(MAX_FAILURES):
            limit.tries(f"host-{number}", NOW_S)
    waiting = [number for number in range(2 * MAX_HOSTS) if limit.wait_s(f"host-{number}", NOW_S) > 0]
    assert waiting == list(range(MAX_HOSTS, 2 * MAX_HOSTS))
