"""The functions that read what others wrote, each called directly: many more inputs than a whole cluster can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from google.protobuf.message import DecodeError, Message
from smg_grpc_proto import vllm_engine_pb2

from gateway.http_errors import HttpError
from gateway.requests import parse_chat, parse_completion
from router.api.parsing import Limits, check_call
from router.api.vllm_endpoint import to_inference
from services import wire
from services.config.profiles import profile_book
from services.engine.emulated.kv_backend import EmulatedKvBackend
from services.engine.emulated.link import Link
from services.engine.kv.address import ClaimAddress
from services.engine.kv.backend import ClaimRefusedError
from services.model.prompt_threads import INLINE_CHARACTERS
from services.model.tokenizer import Tokenizer
from services.rpc.errors import RequestError
from services.state.journal_entry import JournalEntry, JournalEntryError, reservation_of
from services.state.registry import WorkerRecord, WorkerRecordError
from slos_serve.v1 import inference_pb2, worker_pb2
from tests.fuzz import documents, messages
from tests.fuzz.http_targets import CHATS, COMPLETIONS
from tests.fuzz.peer_targets import CLAIM, reports
from tests.fuzz.rpc_targets import commands, generate_requests, metadata, vllm_requests
from tests.fuzz.state_targets import ENTRY, RECORD
from tests.fuzz.targets import Frames, Target

VOCABULARY = 1024
CONTEXT_TOKENS = 8192


@dataclass(slots=True)
class ReaderTarget:
    """One function of bytes, which returns or raises one of a few errors."""

    name: str
    share: int
    seeds: Sequence[Any]
    """Messages or JSON documents."""
    read: Callable[[bytes, Random], object]
    refusals: tuple[type[Exception], ...]

    def make(self, rng: Random) -> Frames:
        seed = rng.choice(self.seeds)
        return (messages.mutated(seed, rng) if isinstance(seed, Message) else documents.mutated(seed, rng),)

    async def send(self, frames: Frames, rng: Random) -> str:
        try:
            self.read(frames[0], rng)
        except self.refusals as error:
            return type(error).__name__
        return "read"


def reader_targets(model_dir: Path, kv: worker_pb2.KvHandle, described: worker_pb2.WorkerDescription) -> list[Target]:
    """Return the targets that are functions.

    Args:
        described: what an honest worker says of itself.
    """
    tokenizer, profiles = Tokenizer(model_dir), profile_book({})
    limits = Limits("tiny", VOCABULARY, CONTEXT_TOKENS, 8, CONTEXT_TOKENS * tokenizer.longest_token_characters)
    desk = EmulatedKvBackend(Link(0.0, 1e9), 1)

    def request(content: bytes, rng: Random) -> None:
        message = inference_pb2.GenerateRequest.FromString(content)
        headers = {name: value for name, value in metadata(rng) if isinstance(value, str)}
        checked = check_call(message, headers, profiles, limits)
        if checked.input_characters <= INLINE_CHARACTERS:  # Longer ones are converted beside the event loop.
            checked.token_ids(tokenizer)

    def translated(content: bytes, _rng: Random) -> None:
        check_call(to_inference(vllm_engine_pb2.GenerateRequest.FromString(content)), {}, profiles, limits)

    requests, refused = generate_requests(), (RequestError, DecodeError)
    submits = [command for command in commands(kv, exports=False) if command.HasField("submit")]
    descriptions = [worker_pb2.SessionResponse(description=described)]
    answers = ({"kind": "granted", "tokens": 4, "kv_bytes": 9, "context_digest": "0"}, {"kind": "gone", "reason": "r"})
    record, entry = {**asdict(RECORD), "role": "decode"}, {**asdict(ENTRY), "state": "decoding"}
    wrong = (wire.WireError, DecodeError)
    lines = (ValueError, ClaimRefusedError)
    made: list[Target] = [
        ReaderTarget("reader of requests", 500, requests, request, refused),
        ReaderTarget("reader of vLLM's requests", 250, vllm_requests(), translated, refused),
        ReaderTarget("reader of chats", 250, CHATS, lambda content, _: parse_chat(content), (HttpError,)),
        ReaderTarget("reader of completions", 250, COMPLETIONS, lambda text, _: parse_completion(text), (HttpError,)),
        ReaderTarget("reader of submissions", 250, submits, _submission, wrong),
        ReaderTarget("reader of descriptions", 200, descriptions, _description, wrong),
        ReaderTarget("reader of step reports", 300, reports(kv), _report, wrong),
        ReaderTarget("reader of registry records", 200, [record], _record, (WorkerRecordError,)),
        ReaderTarget("reader of journal entries", 200, [entry], _entry, (JournalEntryError,)),
        ReaderTarget("reader of claims", 150, [CLAIM], lambda line, _: desk.parse_claim(line), lines),
        ReaderTarget("reader of desk answers", 100, answers, lambda line, _: desk.parse_answer(line), lines),
        ReaderTarget("reader of desk addresses", 50, [{"host": "127.0.0.1", "port": 5}], _address, lines),
    ]
    return made


def _text(content: bytes) -> str:
    """Return the text that a connection to Redis makes of a value."""
    return content.decode("utf-8", "replace")


def _submission(content: bytes, _rng: Random) -> None:
    wire.submit_from_wire(worker_pb2.SessionRequest.FromString(content).submit, "r")


def _description(content: bytes, _rng: Random) -> None:
    wire.description_from_wire(worker_pb2.SessionResponse.FromString(content).description)


def _report(content: bytes, _rng: Random) -> None:
    response = worker_pb2.SessionResponse.FromString(content)
    step = response.step
    wire.load_from_wire(step.load)
    wire.others_from_wire(step.load)
    wire.shape_from_wire(step.shape)
    wire.scheduling_from_wire(step.scheduling)
    wire.duration_from_wire(step)
    wire.check_outputs(step, 16)
    for output in step.outputs:
        wire.check_output(output, VOCABULARY)
        wire.output_from_wire(output)
    wire.lease_outcome_from_wire(response.lease_closed.outcome)


def _record(content: bytes, _rng: Random) -> None:
    WorkerRecord.from_json(_text(content)).to_json()


def _entry(content: bytes, _rng: Random) -> None:
    reservation_of(_text(content))
    JournalEntry.from_json(_text(content)).to_json("mark")


def _address(content: bytes, _rng: Random) -> None:
    ClaimAddress.from_json(_text(content))
