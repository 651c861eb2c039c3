"""OpenAI's HTTP, streamed: to our gateway or to any other server of it."""

from __future__ import annotations

import json
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import numpy as np

import slos_serve
from benchmarks.load.exchange import Answer, Claims, Exchange, Verdict
from benchmarks.load.schedule import Planned
from benchmarks.load.wire import FailureError, NotServedError, RefusalError, Send, Server, TargetError
from benchmarks.prompts import TokenRange, with_prefix
from benchmarks.requested_slo import RequestedSlo
from services.contract.body import KEY, body_of_contract
from services.contract.headers import APPLICATION_HEADER, VERDICT_HEADER, contract_headers, contract_of_headers
from services.contract.resolution import NO_TARGETS, resolve
from services.slo.contract import ContractError, ProfileBook

CONNECT_S = 10.0
PROBE_LENGTHS = (16, 256, 1024)
PROBES = 3
_PROBE_NUMBERS = 2**40
"""Far from those of any request."""
VERDICTS = {"guaranteed": Verdict.GUARANTEED, "best_effort": Verdict.BEST_EFFORT}


@dataclass(frozen=True, slots=True)
class IdleTime:
    """Time to first token of a lone prompt, as measured at a server that has nothing else to do. Seconds."""

    base_s: float
    per_token_s: float

    def of(self, prompt_tokens: int) -> float:
        return self.base_s + self.per_token_s * prompt_tokens


class HttpWire:
    """POST /completions, with token ids for a prompt.

    Args:
        certificates: what an https server is checked against; None: what the machine trusts.
        profiles: what the name of a profile means where the server does not say.
    """

    def __init__(
        self,
        url: str,
        *,
        certificates: ssl.SSLContext | None,
        key: str,
        model: str,
        profiles: ProfileBook,
        among: TokenRange,
        seed: int,
    ) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=True if certificates is None else certificates),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            headers={"authorization": f"Bearer {key}"} if key else {},
        )
        self._model = model
        self._profiles = profiles
        self._among = among
        self._seed = seed
        self._idle: IdleTime | None = None

    async def look(self, slos: tuple[RequestedSlo, ...]) -> Server:
        server = Server(await self._find_model())
        for slo in slos:
            try:
                async with self._post(self._body([self._among.last], 1, slo), _headers(slo)) as response:
                    server = replace(
                        server,
                        promises=VERDICT_HEADER in response.headers,
                        emulated="x-slo-emulated" in response.headers,
                    )
                    await response.read()
            except RefusalError:
                continue
            except NotServedError as error:
                raise TargetError(f"{self._url}, asked for {slo.name}: {error.detail}") from error
        if not server.promises:
            await self._find_idle_time(slos)
        return server

    def prepare(self, planned: Planned) -> Send:
        prompt = with_prefix(
            planned.prompt_tokens, planned.blocks, self._seed, planned.number, self._among, planned.block_tokens
        )
        body, headers = self._body(prompt, planned.output_tokens, planned.slo), _headers(planned.slo)

        async def send(exchange: Exchange) -> None:
            async with self._post(body, headers) as response:
                exchange.answered(self._answer(planned, response.headers))
                await _follow(response, exchange)

        return send

    async def close(self) -> None:
        await self._session.close()

    async def _find_model(self) -> str:
        if self._model:
            return self._model
        try:
            async with self._session.get(f"{self._url}/models") as response:
                content = await response.json(content_type=None)
                self._model = str(content["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            reason = str(error) or type(error).__name__
            raise TargetError(f"{self._url}/models names no model ({reason}): is this an OpenAI server?") from error
        return self._model

    async def _find_idle_time(self, slos: tuple[RequestedSlo, ...]) -> None:
        """Slowdowns are multiples of it; a server that makes no promises does not say what they come to."""
        try:
            contracts = [slo.contract(self._profiles) for slo in slos]
        except ContractError as error:
            raise TargetError(f"{self._url} answers no contracts, and here the {error}") from error
        if all(c.prefill is None or c.prefill.max_slowdown is None for c in contracts):
            return
        medians = []
        for length in PROBE_LENGTHS:
            times_s = [await self._time_alone(length, number) for number in range(PROBES)]
            medians.append(statistics.median(times_s))
        per_token_s, base_s = np.polyfit(PROBE_LENGTHS, medians, 1)
        self._idle = IdleTime(max(0.0, float(base_s)), max(0.0, float(per_token_s)))

    async def _time_alone(self, prompt_tokens: int, number: int) -> float:
        planned = Planned(_PROBE_NUMBERS + PROBES * prompt_tokens + number, 0.0, RequestedSlo(), prompt_tokens, 1)
        exchange = Exchange(planned, 0.0, sent_s=time.monotonic())
        try:
            await self.prepare(planned)(exchange)
        except NotServedError as error:
            raise TargetError(f"{self._url}, a lone prompt of {prompt_tokens} tokens: {error.detail}") from error
        if not exchange.arrivals:
            raise TargetError(f"{self._url}, a lone prompt of {prompt_tokens} tokens: no token came")
        return exchange.arrivals[0][0] - exchange.sent_s

    def _body(self, prompt: list[int], output_tokens: int, slo: RequestedSlo) -> bytes:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if slo.max_slowdown is not None:
            # No header says it; a server that is not ours has to bear with it.
            body[KEY] = body_of_contract(slos_serve.Contract(prefill=slo.asked().prefill))
        return json.dumps(body, separators=(",", ":")).encode()

    @asynccontextmanager
    async def _post(self, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """
        Raises:
            NotServedError: whatever is no stream of tokens.
        """
        try:
            async with self._session.post(f"{self._url}/completions", data=body, headers=headers) as response:
                if response.status != 200:
                    raise _not_served(response.status, response.headers, await response.read())
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise FailureError(type(error).__name__, str(error) or type(error).__name__) from error

    def _answer(self, planned: Planned, headers: Mapping[str, str]) -> Answer:
        slo = planned.slo
        verdict = VERDICTS.get(headers.get(VERDICT_HEADER, ""), Verdict.NONE)
        if verdict is Verdict.NONE:
            own = slo.contract(self._profiles)
            return Answer(own if self._idle is None else own.resolved(self._idle.of(planned.prompt_tokens)))
        try:
            contract = resolve(contract_of_headers(headers), NO_TARGETS)
        except ContractError as error:
            raise FailureError("invalid_contract", str(error)) from error
        if slo.tpot_s is None and slo.profile in self._profiles.contracts:
            # The header names the tightest stage only.
            stages = self._profiles.contracts[slo.profile].decode
            contract = replace(contract, decode=stages) if len(stages) > 1 else contract
        return Answer(
            contract,
            verdict,
            headers.get("x-slo-binding", ""),
            _seconds(headers, "x-slo-bound-ttft-ms"),
            _seconds(headers, "x-slo-bound-tpot-ms"),
            headers.get("x-request-id", ""),
            "x-slo-emulated" in headers,
        )


async def _follow(response: aiohttp.ClientResponse, exchange: Exchange) -> None:
    """
    Raises:
        FailureError: the stream broke off, or said so.
    """
    seen, done = 0, False
    async for now_s, content in _events(response):
        if "error" in content:
            error = content["error"] if isinstance(content["error"], dict) else {}
            raise FailureError(str(error.get("code") or error.get("type") or "error"), str(error.get("message", "")))
        choices, usage = content.get("choices") or [], content.get("usage") or {}
        total = usage.get("completion_tokens")
        text = str(choices[0].get("text") or "") if choices else ""
        if choices:
            # A server that counts nowhere but at the end is believed to send one token a message.
            count = total - seen if total is not None else int(bool(text))
            if count:
                exchange.tokens(count, text, now_s)
                seen += count
            done = done or choices[0].get("finish_reason") in {"stop", "length"}
        elif total is not None:
            exchange.hidden_tokens = max(0, total - seen)
            exchange.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        if isinstance(content.get("slo"), dict):
            exchange.claims = _claims(content["slo"])
    if not done:
        raise FailureError("broken_off", "the stream ended without a reason")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """When each event came, and its content."""
    rest = b""
    async for piece in response.content.iter_any():
        now_s = time.monotonic()
        *events, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            data = event.strip().removeprefix(b"data:").strip()
            if not data or data == b"[DONE]":
                continue
            try:
                content = json.loads(data)
            except ValueError as error:
                raise FailureError("invalid_event", f"{data[:100]!r}") from error
            if isinstance(content, dict):
                yield now_s, content


def _headers(slo: RequestedSlo) -> dict[str, str]:
    application = {APPLICATION_HEADER: slo.profile} if slo.profile else {}
    return {**contract_headers(slo.asked()), **application, "content-type": "application/json"}


def _seconds(headers: Mapping[str, str], name: str) -> float | None:
    try:
        return float(headers[name]) / 1e3
    except (KeyError, ValueError):
        return None


def _claims(slo: Mapping[str, Any]) -> Claims:
    return Claims(
        bool(slo.get("kept")),
        str(slo.get("missed") or ""),
        float(slo.get("ttft_ms") or 0.0) / 1e3,
        float(slo.get("tpot_ms") or 0.0) / 1e3,
        {name: float(value) / 1e3 for name, value in (slo.get("phases_ms") or {}).items()},
    )


def _not_served(status: int, headers: Mapping[str, str], content: bytes) -> NotServedError:
    code, message = "", content[:300].decode(errors="replace")
    try:
        error = json.loads(content)["error"]
        code, message = str(error.get("code") or error.get("type") or ""), str(error.get("message") or message)
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    if status == 429:
        return RefusalError(headers.get("x-slo-binding") or code or "429", message)
    if code == "impossible_contract":
        return RefusalError(code, message)
    return FailureError(f"{status} {code}".strip(), message)
