"""What it costs to know who calls: the same router and worker without authentication, with API keys, tokens, and mTLS.

All arms run at the same time and are asked by turns, so that whatever else the machine does hits all of them. Engines
are emulated with short steps; a request makes one token, so that what is measured is the way in and out.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_records
from deploy.certificates import Authority
from deploy.local import processes
from deploy.local.ports import free_port
from deploy.local.redis_server import redis_command
from services.config.environment import variable
from services.identity.api_key import make_key
from services.identity.key_file import write_keys
from services.identity.peer import PeerIdentity, PeerRole
from services.identity.principal import Role
from services.network.address import LOOPBACK
from slos_serve import AsyncClient, Sampling, SlosServeError, Tls, Tokens

PROMPT = "The quick brown fox jumps over the lazy dog, and then it goes home and sleeps under a tree all day long. " * 2
"""About fifty tokens: text, so that tokenising is part of what is measured."""
STEP_S = 0.002
"""Seconds of an engine step: far less than a real one, so that it hides nothing."""
ALONE, TOGETHER, STREAMS, FRESH = 40, 160, 8, 4
"""Requests one after the other, requests of `STREAMS` at a time, and requests on a connection of their own: of each arm
in each turn."""
START_S, STOP_S = 300.0, 10.0
"""Seconds that a cluster may take to start and to stop."""
CLUSTER = "bench"
ISSUER, AUDIENCE, KEY_ID = "https://issuer.example", "slos-serve", "bench"
ARMS = ("off", "keys", "JWT", "mTLS", "mTLS and keys")


@dataclass(frozen=True, slots=True)
class Arm:
    """One cluster of a router and a worker, and how it is called."""

    name: str
    address: str
    api_key: str | None
    tls: Tls | None

    def client(self) -> AsyncClient:
        return AsyncClient(self.address, tls=self.tls, api_key=self.api_key)


@dataclass(slots=True)
class Measured:
    """All that was measured of one arm, by turn."""

    ttft_s: list[list[float]] = field(default_factory=list)
    """From the call to the first token, one request at a time, on a connection that stands."""
    fresh_s: list[list[float]] = field(default_factory=list)
    """From a new connection to the first token of its first request."""
    requests_per_s: list[float] = field(default_factory=list)
    """With `STREAMS` at a time."""


def run(output: Path | None, turns: int) -> None:
    """Measure, print, and write JSON if told where."""
    console = Console()
    with tempfile.TemporaryDirectory() as directory, running(Path(directory)) as arms:
        measured = asyncio.run(_measure(arms, turns))
    off = measured[ARMS[0]]
    table = Table("", "TTFT p50, ms", "p99, ms", "beside off", "requests/s", "beside off", "new connection, ms")
    records = []
    for name, found in measured.items():
        record = _record(name, found, off)
        records.append(record)
        table.add_row(
            name,
            f"{record['ttft_p50_ms']:.2f}",
            f"{record['ttft_p99_ms']:.2f}",
            f"{record['ttft_p50_ratio']:.3f}",
            f"{record['requests_per_s']:.0f}",
            f"{record['requests_per_s_ratio']:.3f}",
            f"{record['fresh_p50_ms']:.1f}",
        )
    console.print(table)
    console.print(f"{turns} turns; medians of turns, ratios within a turn, p99 of all turns together. {machine()}")
    write_records(output, records)


def _record(name: str, found: Measured, off: Measured) -> dict[str, str | float]:
    pooled = sorted(value for turn in found.ttft_s for value in turn)
    ratios = [
        statistics.median(own) / statistics.median(base) for own, base in zip(found.ttft_s, off.ttft_s, strict=True)
    ]
    rates = [own / base for own, base in zip(found.requests_per_s, off.requests_per_s, strict=True)]
    return {
        "arm": name,
        "requests": len(pooled),
        "ttft_p50_ms": statistics.median(pooled) * 1e3,
        "ttft_p99_ms": pooled[min(len(pooled) - 1, round(0.99 * len(pooled)))] * 1e3,
        "ttft_p50_ratio": statistics.median(ratios),
        "requests_per_s": statistics.median(found.requests_per_s),
        "requests_per_s_ratio": statistics.median(rates),
        "fresh_p50_ms": statistics.median(value for turn in found.fresh_s for value in turn) * 1e3,
    }


async def _measure(arms: Sequence[Arm], turns: int) -> dict[str, Measured]:
    measured = {arm.name: Measured() for arm in arms}
    async with contextlib.AsyncExitStack() as stack:
        clients = {arm.name: await stack.enter_async_context(arm.client()) for arm in arms}
        for arm in arms:
            await _ready(clients[arm.name], arm)
            for _ in range(ALONE):
                await _first_token_s(clients[arm.name])
        for turn in range(turns):
            # Whoever comes first is another one in each turn.
            for arm in (*arms[turn % len(arms) :], *arms[: turn % len(arms)]):
                client, found = clients[arm.name], measured[arm.name]
                found.ttft_s.append([await _first_token_s(client) for _ in range(ALONE)])
                found.requests_per_s.append(await _rate(client))
                found.fresh_s.append([await _on_a_new_connection_s(arm) for _ in range(FRESH)])
    return measured


async def _ready(client: AsyncClient, arm: Arm) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(SlosServeError):
            if (await client.cluster_state(timeout_s=2.0)).ready:
                return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the cluster of {arm.name} is not ready within {START_S:.0f} s")
        await asyncio.sleep(0.2)


async def _first_token_s(client: AsyncClient) -> float:
    began_s = time.perf_counter()
    first_s = 0.0
    async with client.generate(PROMPT, sampling=Sampling(max_tokens=1, temperature=0.0)) as stream:
        async for event in stream:
            if isinstance(event, Tokens) and not first_s:
                first_s = time.perf_counter() - began_s
    return first_s


async def _rate(client: AsyncClient) -> float:
    async def one_stream() -> None:
        for _ in range(TOGETHER // STREAMS):
            await _first_token_s(client)

    began_s = time.perf_counter()
    await asyncio.gather(*(one_stream() for _ in range(STREAMS)))
    return TOGETHER / (time.perf_counter() - began_s)


async def _on_a_new_connection_s(arm: Arm) -> float:
    began_s = time.perf_counter()
    async with arm.client() as client:
        await _first_token_s(client)
    return time.perf_counter() - began_s


@contextlib.contextmanager
def running(directory: Path) -> Iterator[tuple[Arm, ...]]:
    """Start all arms, and stop them at the end."""
    started: list[processes.RunningProcess] = []
    try:
        port = free_port()
        redis = processes.start(
            "redis", redis_command(port, directory), directory / "redis.log", {}, die_with_parent=True
        )
        started.append(redis)
        credentials = _Credentials.make(directory)
        arms = []
        for index, name in enumerate(ARMS):
            arm, options = credentials.arm(name)
            shared = {
                ("redis", "url"): f"redis://{LOOPBACK}:{port}/0",
                ("redis", "prefix"): f"arm{index}",
                ("router", "port"): arm.address.rpartition(":")[2],
                ("router", "local_prefill"): "true",
                ("console", "enabled"): "false",
                ("engine", "kind"): "emulated",
                ("engine", "emulated", "overhead_s"): str(STEP_S),
                ("telemetry", "metrics"): "false",
                ("log", "audit"): str(directory / f"audit-{index}.jsonl"),
                **options,
            }
            for command, role in (("router", PeerRole.ROUTER), ("decode-worker", PeerRole.WORKER)):
                own = {**shared, **(credentials.certificate_of(role) if arm.tls is not None else {})}
                started.append(
                    processes.start(
                        f"{command} {name}",
                        [sys.executable, "-m", "cli", command],
                        directory / f"{command}-{index}.log",
                        {variable(path): value for path, value in own.items()},
                        die_with_parent=True,
                    )
                )
            arms.append(arm)
        yield tuple(arms)
    finally:
        processes.stop(started, STOP_S, lambda _line: None)


Options = Mapping[tuple[str, ...], str]


@dataclass(frozen=True, slots=True)
class _Credentials:
    """What callers and processes show in all arms."""

    authority: Authority
    keys_file: Path
    api_key: str
    jwks_file: Path
    token: str

    @classmethod
    def make(cls, directory: Path) -> _Credentials:
        now = dt.datetime.now(dt.UTC)
        authority = Authority.create(directory / "certificates", CLUSTER, dt.timedelta(days=1), now)
        for role in (PeerRole.ROUTER, PeerRole.WORKER, PeerRole.CLIENT):
            authority.issue(PeerIdentity(CLUSTER, role), ["localhost", LOOPBACK], dt.timedelta(days=1), now)
        api_key, kept = make_key("bench", frozenset({Role.CLIENT}), "bench")
        keys_file = directory / "keys.json"
        # As many keys as a cluster with many customers has.
        write_keys(keys_file, (kept, *(make_key(f"t{number}", frozenset({Role.CLIENT}))[1] for number in range(1000))))
        private = ec.generate_private_key(ec.SECP256R1())
        public = {**ECAlgorithm.to_jwk(private.public_key(), as_dict=True), "kid": KEY_ID, "alg": "ES256", "use": "sig"}
        jwks_file = directory / "jwks.json"
        jwks_file.write_text(json.dumps({"keys": [public]}))
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "bench",
            "tenant": "bench",
            "roles": ["client"],
            "exp": now + dt.timedelta(hours=1),
        }
        token = jwt.encode(claims, private, "ES256", headers={"kid": KEY_ID})
        return cls(authority, keys_file, api_key, jwks_file, token)

    def arm(self, name: str) -> tuple[Arm, Options]:
        options: dict[tuple[str, ...], str] = {}
        credential = None
        if "keys" in name:
            options["auth", "keys_file"] = str(self.keys_file)
            credential = self.api_key
        elif name == "JWT":
            options["auth", "jwt_jwks"] = str(self.jwks_file)
            options["auth", "jwt_issuer"], options["auth", "jwt_audience"] = ISSUER, AUDIENCE
            credential = self.token
        tls = self._client_tls() if "mTLS" in name else None
        return Arm(name, f"{LOOPBACK}:{free_port()}", credential, tls), options

    def certificate_of(self, role: PeerRole) -> Options:
        issued = self._issued(role)
        return {
            ("tls", "ca"): str(self.authority.file),
            ("tls", "certificate"): str(issued),
            ("tls", "key"): str(issued.with_suffix(".key")),
        }

    def _client_tls(self) -> Tls:
        own = self._issued(PeerRole.CLIENT)
        return Tls(
            root_certificates=self.authority.file.read_bytes(),
            private_key=own.with_suffix(".key").read_bytes(),
            certificate_chain=own.read_bytes(),
        )

    def _issued(self, role: PeerRole) -> Path:
        return next(one.path for one in self.authority.issued() if one.certificate.identity.role is role)
