"""Nothing that a client says or is told is left behind: not in logs, Redis, traces, metrics, history, or recordings.

Texts that occur nowhere else go through every door, with logs at level debug, recording on, a collector, and workers
that are killed. Then everything that the cluster left is searched for them, in every form in which they may be written.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import redis
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from services.config.environment import API_KEY_VARIABLE
from services.identity.api_key import make_key
from services.identity.key_file import write_keys
from services.identity.principal import Role
from slos_serve.v1 import inference_pb2, sampling_pb2
from tests.cluster.conftest import EMULATED
from tests.support.canary import Canary, Flock, files_below
from tests.support.cluster import Answer, ClusterUnderTest, cluster_under_test, greedy
from tests.support.collector import Collector, running_collector
from tests.support.eventually import wait_until
from tests.support.http_door import HttpDoor, http_door
from tests.support.redis_server import RedisServer
from tests.support.scrape import scrape
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.cluster

OPTIONS = """
[log]
level = "debug"
audit = "{directory}/audit.jsonl"
[telemetry]
otlp_endpoint = "{collector}"
otlp_interval_s = 1
[auth]
keys_file = "{directory}/keys.json"
"""
DEFECT = '''
"""A defect of planning: requests of one application end it with an error that shows all that it was given."""
import importlib.machinery
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "services.slo.admission.assessor":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def spoiled(module):
            execute(module)
            assess = module.Assessor.assess

            def failing(self, arrivals, *rest):
                if "defective" in repr(arrivals):
                    raise ValueError(f"cannot plan {arrivals!r}")
                return assess(self, arrivals, *rest)

            module.Assessor.assess = failing

        spec.loader.exec_module = spoiled
        return spec


sys.meta_path.insert(0, Finder())
'''


@dataclass
class Watched:
    """A cluster, everything that it wrote to Redis, and the texts that it must not leave behind."""

    cluster: ClusterUnderTest
    door: HttpDoor
    collector: Collector
    directory: Path
    config: Path
    key: str
    operator_key: str
    redis_url: str
    redis_commands: bytearray
    flock: Flock = field(default_factory=Flock)
    answers: list[tuple[str, bytes]] = field(default_factory=list)
    """What people can ask the cluster afterwards."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),)

    def generate(self, request: inference_pb2.GenerateRequest) -> Answer:
        answer = Answer()
        with contextlib.suppress(grpc.RpcError):
            for response in self.cluster.stub.Generate(request, timeout=60, metadata=self.metadata):
                answer.take(response)
        self._know(answer)
        return answer

    def _know(self, answer: Answer) -> None:
        if len(answer.token_ids) >= 8:
            self.flock.know_output("output", answer.text, answer.token_ids)


@contextlib.contextmanager
def monitored(url: str, port: int, commands: bytearray) -> Iterator[None]:
    """Keep every command that Redis is given, and have it forget nothing that it ever held."""
    client = redis.Redis.from_url(url)
    client.config_set("rdbcompression", "no")
    client.config_set("appendonly", "yes")
    with socket.create_connection(("127.0.0.1", port)) as watching:

        def watch() -> None:
            with contextlib.suppress(OSError):
                while received := watching.recv(65536):
                    commands.extend(received)

        watching.sendall(b"MONITOR\r\n")
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            watching.shutdown(socket.SHUT_RDWR)
            thread.join(30)
            client.close()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One prefill and two decode workers with emulated engines, and a gateway."""
    directory = tmp_path_factory.mktemp("canary")
    operator_key, operator = make_key("operators", frozenset({Role.OPERATOR, Role.CLIENT}), "operator")
    key, client = make_key("birds", frozenset({Role.CLIENT}), "client")
    write_keys(directory / "keys.json", (operator, client))
    config = directory / "cluster.toml"
    redis_directory, sites = directory / "redis", directory / "sites"
    redis_directory.mkdir()
    sites.mkdir()
    (sites / "sitecustomize.py").write_text(DEFECT)
    server = RedisServer(redis_directory)
    server.start()
    commands = bytearray()
    with running_collector() as collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv(API_KEY_VARIABLE, operator_key)
        text = EMULATED.format(
            model=write_tiny_model(directory / "tiny"), run_dir=directory / "run", prefill=1, decode=2, patience_s=60.0
        )
        text = text.replace("[router]", f'[router]\nrecord = "{directory}/recorded"')
        text = text.replace("[redis]", f'[redis]\nurl = "{server.url}"')
        config.write_text(text + OPTIONS.format(directory=directory, collector=collector.endpoint))
        environment = {"PYTHONPATH": os.pathsep.join([str(sites), os.environ.get("PYTHONPATH", str(Path.cwd()))])}
        with (
            monitored(server.url, server.port, commands),
            cluster_under_test(config, environment, api_key=operator_key) as cluster,
            http_door(
                directory, [cluster.address], cluster.launcher.settings.model.path, collector.endpoint, config=config
            ) as door,
        ):
            yield Watched(cluster, door, collector, directory, config, key, operator_key, server.url, commands)
    server.stop()


def say(watched: Watched) -> None:
    """Send prompts of every kind through the router's own gRPC."""
    flock = watched.flock
    watched.generate(greedy(flock.text("text"), 24, request_id="by-text"))
    watched.generate(greedy(flock.token_ids("token ids"), 24, request_id="by-ids"))
    chat = inference_pb2.GenerateRequest(request_id="by-chat", tenant="birds", application="nest")
    for role in ("system", "user", "assistant", "tool", "user"):
        chat.chat.messages.add(role=role, content=flock.text(f"message of {role}"))
    chat.sampling.max_tokens = 24
    chat.sampling.stop.append(flock.text("stop string"))
    chat.contract.stages.add().prefill.ttft_s = 5.0
    stage = chat.contract.stages.add().decode
    stage.tpot_s, stage.ends_with = 1.0, flock.text("end of a stage")
    chat.contract.stages.add().decode.tpot_s = 1.0
    watched.generate(chat)
    for turn in range(3):
        request = greedy(flock.text(f"turn {turn} of a session"), 16, request_id=f"turn-{turn}")
        request.contract.session_id = "session-1"
        request.contract.stages.add().decode.tpot_s = 1.0
        watched.generate(request)
    quoted = inference_pb2.QuoteRequest(request=greedy(flock.text("quoted text"), 8))
    watched.cluster.stub.Quote(quoted, metadata=watched.metadata, timeout=60)


def say_to_vllms_door(watched: Watched) -> None:
    stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(watched.cluster.channel)
    request = vllm_engine_pb2.GenerateRequest(request_id="vllm-1", text=watched.flock.text("text to vLLM's door"))
    request.sampling_params.max_tokens = 16
    request.sampling_params.stop.append(watched.flock.text("stop string of vLLM's door"))
    (answer,) = stub.Generate(request, metadata=watched.metadata, timeout=60)
    watched.flock.know_output("output of vLLM's door", "", answer.complete.output_ids)
    broken = vllm_engine_pb2.GenerateRequest(request_id="vllm-2", text=watched.flock.text("text that is refused"))
    broken.sampling_params.json_schema = watched.flock.text("schema")
    refused(lambda: list(stub.Generate(broken, metadata=watched.metadata, timeout=60)))
    stub.Abort(vllm_engine_pb2.AbortRequest(request_ids=["vllm-1"]), metadata=watched.metadata, timeout=60)


def say_over_http(watched: Watched) -> None:
    flock, door = watched.flock, watched.door
    bearer = {"authorization": f"Bearer {watched.key}"}
    answers = [
        door.post("/v1/completions", {"prompt": flock.text("prompt over HTTP"), "max_tokens": 16, **more}, bearer)
        for more in ({}, {"stream": True}, {"logprobs": 2, "stop": [flock.text("stop string over HTTP")]})
    ]
    conversation = [{"role": "user", "content": flock.text("message over HTTP")}]
    answers.append(door.post("/v1/chat/completions", {"messages": conversation, "max_tokens": 16}, bearer))
    assert [answer.status_code for answer in answers] == [200] * 4, answers[0].text
    for answer in (answers[0], answers[2]):
        flock.know("output over HTTP", answer.json()["choices"][0]["text"][:40])
    mistaken: list[Any] = [
        {"prompt": {"wrong": flock.text("prompt of the wrong kind")}},
        {"prompt": [flock.text("list of prompts"), 7]},
        {"prompt": flock.text("prompt of another model"), "model": "none"},
        {"prompt": flock.text("prompt that wants too much"), "max_tokens": 10**9},
        {"prompt": flock.text("prompt with many"), "n": 7, "best_of": flock.text("number")},
        {"prompt": "x", "stop": [{"wrong": flock.text("stop string of the wrong kind")}]},
        {"messages": [{"role": flock.text("role"), "content": flock.text("content")}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": flock.text("image")}]}]},
        {"messages": flock.text("messages")},
    ]
    for body in mistaken:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        assert door.post(path, body, bearer).status_code in (400, 404), body
    for content in (flock.text("no JSON"), '{"prompt": "' + flock.text("JSON that breaks off")):
        answer = httpx.post(f"{door.url}/v1/completions", content=content.encode(), headers=bearer, timeout=60)
        assert answer.status_code == 400
    door.post("/v1/completions", {"prompt": "x", flock.text("unknown field"): flock.text("its value")}, bearer)
    for path in (f"/{flock.text('path')}", f"/v1/models?prompt={flock.text('query')}"):
        httpx.get(door.url + path, headers=bearer, timeout=60)


def show_credentials(watched: Watched) -> None:
    """Call with keys that are valid, and with those that are not, in every place in which people put them."""
    flock, door = watched.flock, watched.door
    flock.know("API key", watched.key[-30:])
    flock.know("operator's API key", watched.operator_key[-30:])
    wrong, _ = make_key("birds", frozenset({Role.CLIENT}))
    flock.know("key that nobody knows", wrong[-30:])
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b'{"alg":"none"}', b"{}"))
    for shown in (f"Bearer {wrong}", f"Bearer {token}.{flock.text('token')}", f"Basic {flock.text('password')}"):
        message = greedy("x", 4)
        refused(lambda: list(watched.cluster.stub.Generate(message, metadata=(("authorization", shown),), timeout=60)))  # noqa: B023
        assert door.post("/v1/completions", {"prompt": "x"}, {"authorization": shown}).status_code == 401
    for header in ("x-api-key", "api-key", "cookie"):
        door.post("/v1/completions", {"prompt": "x"}, {header: flock.text(f"key in {header}")})
    httpx.get(f"{door.url}/v1/models?api_key={flock.text('key in a query')}", timeout=60)


def break_things(watched: Watched) -> None:
    """Invalid requests, a client that leaves, a defect of planning, and workers that are killed."""
    flock, cluster = watched.flock, watched.cluster
    call: Any = cluster.channel.unary_stream("/slos_serve.v1.Inference/Generate")
    refused(lambda: list(call(b"\xff\xff" + flock.text("bytes").encode(), metadata=watched.metadata, timeout=60)))
    for spoiled in (
        sampling_pb2.SamplingParams(max_tokens=10**6),
        sampling_pb2.SamplingParams(temperature=float("nan")),
        sampling_pb2.SamplingParams(stop=[flock.text("stop string of a refused request")] * 99),
        sampling_pb2.SamplingParams(logit_bias={10**6: 1.0}),
    ):
        request = greedy(flock.text("text of a refused request"), 8, request_id="refused")
        request.sampling.MergeFrom(spoiled)
        assert watched.generate(request).finished is None
    impossible = greedy(flock.text("text of an impossible request"), 8)
    impossible.contract.stages.add().prefill.ttft_s = 1e-6
    watched.generate(impossible)
    defective = greedy(flock.text("text of a request that planning fails on"), 8, request_id="defective")
    defective.application = "defective"
    defective.sampling.stop.append(flock.text("stop string of a request that planning fails on"))
    assert watched.generate(defective).finished is None
    leaving = cluster.stub.Generate(
        greedy(flock.text("text of who leaves"), 200), metadata=watched.metadata, timeout=60
    )
    next(leaving)
    leaving.cancel()
    cancelled = greedy(flock.text("text of a cancelled request"), 400, request_id="cancelled")
    stream = cluster.stub.Generate(cancelled, metadata=watched.metadata, timeout=60)
    next(stream)
    next(stream)
    cluster.stub.Cancel(inference_pb2.CancelRequest(request_id="cancelled"), metadata=watched.metadata, timeout=60)
    for victim in ("decode-0", "decode-1"):
        request = greedy(flock.text(f"text while {victim} is killed"), 150)
        stream = cluster.stub.Generate(request, metadata=watched.metadata, timeout=90)
        answer = Answer()
        for response in stream:
            answer.take(response)
            if response.HasField("tokens") and response.tokens.index < 12 <= len(answer.token_ids):
                cluster.kill(victim)
        watched.flock.know_output("output of a stream that was moved", answer.text, answer.token_ids)
        cluster.start_again(victim)
        cluster.wait_ready(3)


def ask(watched: Watched) -> None:
    """Ask everything that an operator can ask."""
    state = watched.cluster.state()
    answers = watched.answers
    answers.append(("the state of the cluster", state.SerializeToString()))
    bearer = {"authorization": f"Bearer {watched.operator_key}"}
    requests = ("by-text", "by-chat", "turn-2", "vllm-1", "cancelled")
    paths = ["", "api/state", "api/history", *(f"api/requests/birds/{request_id}" for request_id in requests)]
    for path in paths:
        answer = httpx.get(f"{state.console_url.rstrip('/')}/{path}", headers=bearer, timeout=60)
        assert answer.status_code == 200, path
        answers.append((f"the console's /{path}", answer.content))
    addresses = [state.metrics_address, watched.door.metrics_address, *(one.metrics_address for one in state.workers)]
    for address in addresses:
        answers.append((f"metrics of {address}", scrape(address).text.encode()))
    for command in (["explain", "birds/by-text"], ["explain", "birds/cancelled"], ["status"], ["top", "--once"]):
        line = [sys.executable, "-m", "cli", *command, "--config", str(watched.config)]
        done = subprocess.run(line, capture_output=True, timeout=300, check=False)
        answers.append((f"slos-serve {command[0]}", done.stdout + done.stderr))


def left_behind(watched: Watched) -> Iterator[tuple[str, bytes]]:
    with redis.Redis.from_url(watched.redis_url) as client:
        client.save()
    yield from watched.answers
    yield "commands to Redis", bytes(watched.redis_commands)
    for number, received in enumerate(watched.collector.received):
        yield f"export {number} to the collector", received
    for path, content in files_below(watched.directory):
        # The tests' own files.
        if not path.startswith((str(watched.directory / "tiny"), str(watched.directory / "sites"))):
            yield path, content


def test_nothing_that_was_said_is_left_behind(watched: Watched) -> None:
    watched.cluster.wait_ready(3)
    say(watched)
    say_to_vllms_door(watched)
    say_over_http(watched)
    show_credentials(watched)
    break_things(watched)
    ask(watched)
    watched.cluster.wait_empty()
    exports = len(watched.collector.received)
    wait_until(lambda: len(watched.collector.received) > exports + 3, "everything has been exported")
    places = list(left_behind(watched))
    assert watched.flock.found_in(places) == []
    # What is searched is what is meant to be searched.
    found = b"\n".join(content for _, content in places)
    for known in (
        b"by-text",
        b"cancelled",
        b"planning failed",
        b"slos_requests_received",
        b'"event": "authentication"',
    ):
        assert known in found, known
    assert b"birds/by-text" in watched.redis_commands
    names = {Path(path).name for path, _ in places}
    assert {"router.log", "prefill-0.log", "decode-0.log", "gateway.log", "audit.jsonl", "dump.rdb"} <= names
    assert any(name.startswith("admission-") for name in names)
    assert any("appendonly" in path for path, _ in places)


def refused(call: Any) -> None:
    with pytest.raises(grpc.RpcError):
        call()


@pytest.mark.parametrize("form", sorted(set(Canary("", "zq0123456789").forms().values())))
def test_a_canary_is_found_in_every_form(form: str) -> None:
    flock = Flock([Canary("prompt", "zq0123456789")])
    written = next(content for content, how in flock.canaries[0].forms().items() if how == form)
    assert flock.found_in([("a log", b"before" + written + b"after"), ("another", b"beforeafter")]) == [
        f"prompt as {form} in a log"
    ]


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_a_canary_is_found_in_the_middle_of_base64_and_pickles(before: str) -> None:
    text = "zq0123456789abcdef"
    flock = Flock([Canary("prompt", text)])
    content = base64.b64encode(f"{before}{text} and more".encode())
    assert flock.found_in([("a file", content)])
    ids = [301, 402, 503, 604, 705, 806]
    flock = Flock([Canary("prompt", token_ids=tuple(ids))])
    assert flock.found_in([("a file", base64.b64encode(pickle.dumps({"before": before, "prompt": tuple(ids)})))])
    assert flock.found_in([("a file", json.dumps({"prompt": [1, *ids, 2]}).encode())])
