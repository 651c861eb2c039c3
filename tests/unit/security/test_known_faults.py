"""Classes of faults that other systems of this kind have had, as docs/explanation/known-faults.md lists them."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from gateway.requests import parse_chat, parse_completion
from router.api.parsing import Limits, check_call
from router.api.vllm_endpoint import to_inference
from services.config.profiles import profile_book
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.launch import _environment
from services.rpc.errors import REQUEST_ID, InvalidRequestError
from services.worker.ledger import RequestLedger
from services.worker.sessions import SessionBook
from slos_serve.v1 import inference_pb2

REPOSITORY = Path(__file__).parents[3]
SHIPPED = ("services", "router", "gateway", "prefill_worker", "decode_worker", "slos_serve", "cli", "deploy")
UNPICKLERS = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"})
RECORDINGS = frozenset({"router/admission/core_state.py", "router/admission/record_files.py"})
"""Modules that pickle: recordings, files of the operator, read by an unpickler that names what it makes."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in SHIPPED:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            yield str(path.relative_to(REPOSITORY)), ast.parse(path.read_text())


def messages_within(message: Descriptor) -> set[str]:
    """Full names of the messages that a message may hold, at any depth."""
    found: set[str] = set()
    left = [message]
    while left:
        one = left.pop()
        if one.full_name not in found:
            found.add(one.full_name)
            left += [field.message_type for field in one.fields if field.message_type is not None]
    return found


def test_nothing_unpickles_what_comes_from_elsewhere() -> None:
    importing = set()
    for name, module in modules():
        for node in ast.walk(module):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if UNPICKLERS & {imported.partition(".")[0] for imported in names}:
                importing.add(name)
    assert importing == RECORDINGS


def test_the_processes_of_an_engine_do_not_unpickle_either(tmp_path: Path) -> None:
    assert _environment(tmp_path, VllmEngineConfig())["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "0"


def test_no_code_that_comes_with_a_model_is_run() -> None:
    told = [
        (name, ast.literal_eval(node.value))
        for name, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code"
    ]
    assert told == [("services/engine/vllm/frontend/launch.py", False)]


def test_nothing_evaluates_text() -> None:
    calls = [
        f"{name}:{node.lineno}"
        for name, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"eval", "exec", "compile"}
    ]
    assert calls == []


def test_a_client_cannot_say_anything_about_kv_transfers() -> None:
    within = messages_within(inference_pb2.GenerateRequest.DESCRIPTOR)
    assert within == {
        f"slos_serve.v1.{name}"
        for name in (
            *(
                "GenerateRequest",
                "ChatInput",
                "ChatMessage",
                "TokenIds",
                "SamplingParams",
                "SamplingParams.LogitBiasEntry",
            ),
            *("Contract", "Stage", "PrefillStage", "DecodeStage"),
        )
    }


@pytest.mark.parametrize(
    "field", ["kv_transfer_params", "kv_transfer_params_json", "mm_inputs", "data_parallel_rank", "media_refs"]
)
def test_transfer_parameters_and_ranks_of_vllms_protocol_are_refused(field: str) -> None:
    vllm = pytest.importorskip("smg_grpc_proto").vllm_engine_pb2
    request = vllm.GenerateRequest(request_id="r", text="x")
    match field:
        case "kv_transfer_params_json":
            request.kv_transfer_params_json = b'{"do_remote_prefill": true}'
        case "data_parallel_rank":
            request.data_parallel_rank = 3
        case "media_refs" | "mm_inputs" | "kv_transfer_params":
            getattr(request, field).SetInParent()
    with pytest.raises(InvalidRequestError) as refused:
        to_inference(request)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "extra",
    [
        {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "203.0.113.1", "remote_port": 1}},
        {"chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"},
        {"chat_template_kwargs": {"messages": []}},
        {"cache_salt": ""},
        {"cache_salt": "of-another-tenant"},
        {"tp_size": 10**9},
        {"request_id": "___prefill_addr_203.0.113.1:1___decode_addr_203.0.113.1:2_x"},
    ],
)
def test_what_harmed_others_over_http_changes_nothing(extra: dict[str, object]) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    assert parse_chat(json.dumps(chat | extra).encode()) == parse_chat(json.dumps(chat).encode())
    completion = {"prompt": "x", "max_tokens": 3}
    assert parse_completion(json.dumps(completion | extra).encode()) == parse_completion(
        json.dumps(completion).encode()
    )


def test_several_prompts_in_one_request_are_refused_before_any_engine_sees_them() -> None:
    with pytest.raises(Exception, match="one prompt"):
        parse_completion(b'{"prompt": ["a", "b"]}').prompt_of()


@pytest.mark.parametrize("given", ["a b", "a\x00", "a\n", "é", "a" * 129, " "])
def test_ids_that_could_be_taken_apart_are_refused(given: str) -> None:
    limits = Limits("m", 1000, 4096, 16, 10**6)
    request = inference_pb2.GenerateRequest(request_id=given, text="x")
    with pytest.raises(InvalidRequestError, match="request_id"):
        check_call(request, {}, profile_book({}), limits)
    assert not REQUEST_ID.fullmatch(given)


def test_an_engines_id_of_a_request_cannot_be_that_of_another_routers() -> None:
    book = SessionBook(10, closed=lambda _session: None)
    honest = book.open("A")
    hostile = book.open(f"{honest.key}/r/0")
    ids = RequestLedger.engine_request_id
    for request_id in ("r", f"r/0#{hostile.key}/x", "r/0#2/x", hostile.key, "x/0"):
        for theirs in ("r", "x", "r/0", "0"):
            assert ids(honest.key, request_id, 0) != ids(hostile.key, theirs, 0)
    made = {ids(honest.key, request_id, attempt) for request_id in ("r", "r/1", "r/1/1") for attempt in (0, 1, 11)}
    assert len(made) == 9
