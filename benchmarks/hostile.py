"""What single hostile inputs cost and are answered, on the code that routers, gateways and workers run.

Each case was seen to harm commit 1e640ce; `docs/reports/hostile-input.md` has what it did there. Nothing is started:
the functions that meet the input first are called with it. `slos-serve bench neighbour` tries the same on a cluster.
"""

from __future__ import annotations

import asyncio
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine, write_records
from gateway.http_errors import HttpError
from gateway.requests import parse_chat, parse_completion
from router.api.parsing import Limits, check_call
from services.config.profiles import profile_book
from services.config.settings import Settings
from services.model.directory import locate_model
from services.model.prompt_threads import PromptThreads
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.network.credentials import hide_credentials
from services.rpc.errors import RequestError
from services.state.registry import WorkerRecord, WorkerRecordError
from services.telemetry.traces import Traces
from services.wire import WireError
from services.wire.steps import duration_from_wire
from slos_serve.v1 import inference_pb2, worker_pb2

CONTEXT_TOKENS = 8192
MEBIBYTE = 1024 * 1024
TICK_S = 0.001


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one input."""

    case: str
    seconds: float
    cpu_s: float
    """Seconds of one core, which other work on the machine does not lengthen."""
    mebibytes: float
    """By which the largest memory of the process has grown."""
    answer: str


class Doors:
    """The limits, the tokenizer and the profiles of a router that serves the built-in model."""

    def __init__(self) -> None:
        model = locate_model(Settings().model, weights=False)
        self.tokenizer = Tokenizer(model.path)
        self.profiles = profile_book({})
        self.limits = Limits(
            model_name=model.name,
            vocabulary_size=model.vocabulary_size,
            max_context_tokens=CONTEXT_TOKENS,
            default_max_tokens=256,
            max_prompt_characters=CONTEXT_TOKENS * self.tokenizer.longest_token_characters,
        )

    def router(self, message: inference_pb2.GenerateRequest) -> str:
        """Return how a router takes a message, up to its conversion to tokens."""
        try:
            check_call(message, {}, self.profiles, self.limits)
        except RequestError as error:
            return f"{type(error).__name__}: {error}"
        return "taken"


def run(output: Path | None) -> None:
    """Try all cases, print, and write JSON if told where."""
    doors = Doors()
    found = [
        *_texts(doors),
        *_bodies(),
        *_names(doors),
        *_stop_strings(),
        *_numbers(doors),
        *_peers(),
        *_telemetry(),
    ]
    table = Table("case", "s", "CPU s", "MiB", "answer", show_lines=True)
    for seen in found:
        table.add_row(seen.case, f"{seen.seconds:.3f}", f"{seen.cpu_s:.3f}", f"{seen.mebibytes:.0f}", seen.answer)
    console = Console()
    console.print(table)
    console.print(machine())
    write_records(output, [asdict(seen) for seen in found])


def _seen(case: str, call: Callable[[], object]) -> Seen:
    before, began_s, began_cpu_s = _peak_mebibytes(), time.perf_counter(), time.process_time()
    answer = str(call())
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return Seen(case, seconds, cpu_s, _peak_mebibytes() - before, answer if len(answer) <= 120 else f"{answer[:119]}…")


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _texts(doors: Doors) -> list[Seen]:
    letters = inference_pb2.GenerateRequest(text="qzxvjk" * (4 * MEBIBYTE // 6))
    empty = inference_pb2.GenerateRequest()
    empty.chat.messages.extend([inference_pb2.ChatMessage(role="user")] * 400_000)
    longest = "a b" * (doors.limits.max_prompt_characters // 3)
    return [
        _seen("4 MiB of letters", lambda: doors.router(letters)),
        _seen("400,000 empty messages", lambda: doors.router(empty)),
        _seen(
            f"the longest text that is taken, {len(longest):,} characters",
            lambda: f"the event loop stood for at most {asyncio.run(_held_s(doors, longest)) * 1e3:.1f} ms",
        ),
    ]


async def _held_s(doors: Doors, text: str) -> float:
    """Return for how long the event loop of a router stands, at most, while it converts a text."""
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(TICK_S)
            longest_s = max(longest_s, time.perf_counter() - began_s - TICK_S)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(10 * TICK_S)
    await PromptThreads().run("client", len(text), lambda: doors.tokenizer.encode(text))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return longest_s


def _bodies() -> list[Seen]:
    def answered(parse: Callable[[bytes], object], body: str) -> Callable[[], str]:
        def call() -> str:
            try:
                parse(body.encode())
            except HttpError as error:
                return f"{error.status} {error.body['error']['message']}"
            return "taken"

        return call

    wrong = ",".join(["{}"] * 200_000)
    return [
        _seen('{"prompt": [{}, {}, ...]} of 0.6 MB', answered(parse_completion, f'{{"prompt":[{wrong}]}}')),
        _seen('{"messages": [{}, {}, ...]} of 0.6 MB', answered(parse_chat, f'{{"messages":[{wrong}]}}')),
        _seen(
            "a body that nests 100,000 deep",
            answered(parse_chat, '{"messages":[],"tools":' + "[" * 100_000 + "]" * 100_000 + "}"),
        ),
    ]


def _names(doors: Doors) -> list[Seen]:
    def call() -> str:
        answers = set()
        for index in range(200):
            message = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[1]))
            message.tenant = f"{index}{'t' * MEBIBYTE}"
            message.contract.session_id = f"{index}{'s' * MEBIBYTE}"
            answers.add(doors.router(message).rpartition(";")[0])
        return "; ".join(sorted(answers))

    return [_seen("200 requests with tenants and sessions of 1 MiB", call)]


def _stop_strings() -> list[Seen]:
    stops = ["a" * 1023 + "b", *(chr(99 + index % 20) + "a" * 1022 + str(index) for index in range(63))]

    def fed() -> str:
        checker = StopStrings([stop[:1024] for stop in stops])
        for _ in range(1000):
            checker.feed("a")
        return "1,000 tokens"

    return [_seen("64 overlapping stop strings of 1,024 characters", fed)]


def _numbers(doors: Doors) -> list[Seen]:
    huge = inference_pb2.GenerateRequest(text="x")
    huge.contract.stages.add().prefill.max_slowdown = 1.7e308
    precious = inference_pb2.GenerateRequest(text="x")
    precious.contract.value = math.inf
    return [
        _seen("max_slowdown = 1.7e308", lambda: doors.router(huge)),
        _seen("value = inf", lambda: doors.router(precious)),
    ]


def _peers() -> list[Seen]:
    def refused(read: Callable[[], object], error: type[Exception]) -> Callable[[], str]:
        def call() -> str:
            try:
                return f"taken: {read()}"
            except error as caught:
                return f"{type(caught).__name__}: {caught}"

        return call

    record: dict[str, Any] = {
        "worker_id": "d1", "role": "decode", "address": "127.0.0.1:1", "engine_epoch": "1", "compatibility": {},
        "model": "m", "emulated": True,
    }  # fmt: skip
    found = [
        _seen(
            f"a record in the registry with {name} = {value!r}",
            refused(
                lambda name=name, value=value: WorkerRecord.from_json(json.dumps({**record, name: value})),  # type: ignore[misc]
                WorkerRecordError,
            ),
        )
        for name, value in (("worker_id", []), ("address", 5), ("engine_epoch", {}))
    ]
    for case, report in (
        ("a StepReport that took NaN s", worker_pb2.StepReport(duration_s=math.nan)),
        ("a StepReport made at infinity", worker_pb2.StepReport(made_at_s=math.inf)),
    ):
        found.append(_seen(case, refused(lambda report=report: duration_from_wire(report), WireError)))  # type: ignore[misc]
    return found


def _telemetry() -> list[Seen]:
    def sampled() -> str:
        traces = Traces(Resource.get_empty(), 0.0, SpanProcessor())
        context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        count = sum(traces.wants(traces.begin(context, from_client=True)) for _ in range(1000))
        return f"{count} of 1,000 sampled, with a ratio of 0"

    return [
        _seen("a client's traceparent that asks to be sampled", sampled),
        _seen(
            "a Redis password in a query",
            lambda: hide_credentials("cannot connect to redis://host:6379/0?password=hunter2"),
        ),
    ]
