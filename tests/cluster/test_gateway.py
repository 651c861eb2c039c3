"""The HTTP door as a process: overload, bad input, clients that leave, clients that do not read."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from services.rpc.errors import RequestError
from slos_serve.v1 import inference_pb2
from tests.support.cluster import ClusterUnderTest
from tests.support.eventually import wait_until
from tests.support.http_door import PATIENCE_S, HttpDoor, http_door
from tests.unit.client.scripted import admission, scripted

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cluster

MIB = 2**20
EASY = {"ttft_ms": 60_000, "tpot_ms": 60_000}
"""Kept however busy this machine is."""
LONG = {"prompt": [20 + index % 900 for index in range(200)], "max_tokens": 4000, "ignore_eos": True}


def read_until(connection: socket.socket, count: int) -> bytes:
    """At least that many bytes of the answer."""
    received = b""
    while len(received) < count:
        received += connection.recv(4096)
    return received


def test_a_stream_through_the_door(door: HttpDoor, emulated: ClusterUnderTest) -> None:
    emulated.wait_ready(4)
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "slo": EASY,
    }
    response = door.post("/v1/chat/completions", body)
    assert response.status_code == 200
    assert response.headers["x-slo-verdict"] == "guaranteed"
    assert float(response.headers["x-slo-predicted-ttft-ms"]) > 0
    assert response.headers["x-slo-emulated"] == "true"
    *chunks, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    last = json.loads(chunks[-1])
    assert last["usage"]["completion_tokens"] == 8
    assert last["slo"]["kept"] is True
    shown = [json.loads(chunk)["choices"] for chunk in chunks[:-2]]
    names = [entry["token"] for choices in shown for entry in choices[0]["logprobs"]["content"]]
    assert len(names) == 8
    assert not any(name.startswith("token_id:") for name in names), "the gateway knows the model's tokens"


def test_text_and_ids_mean_the_same(door: HttpDoor) -> None:
    sampling = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    whole = door.post("/v1/completions", {"prompt": "hello", **sampling}).json()["choices"][0]["text"]
    streamed = door.post("/v1/completions", {"prompt": "hello", "stream": True, **sampling}).text
    pieces = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n")[:-2]]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole


def test_overload_is_429_and_never_a_success(door: HttpDoor, emulated: ClusterUnderTest) -> None:
    """Prompts that one by one are in time and all together cannot be."""
    body = {**LONG, "max_tokens": 8, "slo": {"ttft_ms": 3000, "on_overload": "refuse"}}
    with ThreadPoolExecutor(32) as pool:
        prompts = [[30 + index, *range(20, 1020), *range(20, 1020), *range(20, 1020)] for index in range(96)]
        answers = list(pool.map(lambda prompt: door.post("/v1/completions", {**body, "prompt": prompt}), prompts))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}, {answer.text[:200] for answer in answers}
    for answer in answers:
        if answer.status_code == 200:
            assert answer.headers["x-slo-verdict"] == "guaranteed"
        else:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert answer.headers["x-slo-verdict"] == "refused"
    emulated.wait_empty()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_everything(door: HttpDoor, emulated: ClusterUnderTest, *, stream: bool) -> None:
    emulated.wait_empty()
    before = emulated.state().counters.cancelled
    connections = [door.open_stream({**LONG, "stream": stream}) for _ in range(4)]
    if stream:
        for connection in connections:
            read_until(connection, 2000)
    wait_until(lambda: emulated.state().running_requests == 4, "all four run")
    for connection in connections:
        connection.close()
    emulated.wait_empty()
    assert emulated.state().counters.cancelled == before + 4
    assert door.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status_code == 200


def test_a_body_of_a_hundred_megabytes_is_not_read_into_memory(door: HttpDoor) -> None:
    before = door.memory_bytes()
    piece = b"x" * MIB

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield piece

    for headers in ({"content-length": str(100 * MIB)}, {}):
        connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=PATIENCE_S)
        connection.request("POST", "/v1/completions", pieces(), headers, encode_chunked=not headers)
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["error"]["code"] == "body_too_large"
        connection.close()
    assert door.memory_bytes() < before + 30 * MIB
    assert door.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status_code == 200


def test_a_reader_that_does_not_read_is_not_read_for(tmp_path: Path) -> None:
    """A router that would send 400 MB: what it may send is bounded by buffers on the way, not by the stream."""
    sent = 0

    def count(index: int) -> inference_pb2.GenerateResponse:
        chunk = inference_pb2.TokenChunk(index=index, token_ids=[100], text="x" * 10_000)
        return inference_pb2.GenerateResponse(tokens=chunk)

    class Flood(list[inference_pb2.GenerateResponse | RequestError | float]):
        def __iter__(self) -> Iterator[inference_pb2.GenerateResponse]:
            nonlocal sent
            yield admission()
            for index in range(40_000):
                sent += 1
                yield count(index)

    with scripted(Flood()) as router, http_door(tmp_path, [router.address], "/nowhere") as door:
        idle_bytes = door.memory_bytes()
        connection = door.open_stream({"prompt": "x"}, receive_buffer_bytes=4096)
        read_until(connection, 1000)

        def stalled() -> bool:
            before = sent
            time.sleep(1.0)
            return sent == before

        wait_until(stalled, "the stream stands still")
        assert sent < 4_000, "a tenth of it filled every buffer"
        assert door.memory_bytes() < idle_bytes + 60 * MIB
        connection.close()
        assert router.ended.get(timeout=PATIENCE_S).startswith("cmpl-")


@pytest.mark.parametrize(
    ("content", "headers", "status", "param"),
    [
        (b'{"prompt": "x"', {}, 400, None),
        (b"\xff\xfe", {}, 400, None),
        (b'{"prompt": "x", "max_tokens": "many"}', {}, 400, "max_tokens"),
        (b'{"prompt": "x", "max_tokens": -1}', {}, 400, "max_tokens"),
        (b'{"prompt": "x", "temperature": 1e308}', {}, 400, "temperature"),
        (b'{"prompt": []}', {}, 400, "prompt"),
        (b'{"prompt": [1, 99999]}', {}, 400, "prompt[1]"),
        (b'{"prompt": "x", "model": "gpt-9"}', {}, 404, "model"),
        (b'{"prompt": "x"}', {"x-slo-ttft-ms": "soon"}, 400, "x-slo-ttft-ms"),
        (b'{"prompt": "x"}', {"x-llm-d-slo-tpot-ms": "-1"}, 400, "x-llm-d-slo-tpot-ms"),
        (b'{"prompt": "x", "slo": {"profile": "nobody"}}', {}, 400, "slo.profile"),
        (b'{"prompt": "x"}', {"x-slo-profile": "nobody"}, 400, "x-slo-profile"),
        (b'{"prompt": "x"}', {"x-slo-on-overload": "panic"}, 400, "x-slo-on-overload"),
        (b'{"prompt": "x", "slo": {"tpot_ms": 0}}', {}, 400, "slo.tpot_ms"),
    ],
)
def test_bad_input_is_refused_by_name(
    door: HttpDoor, content: bytes, headers: dict[str, str], status: int, param: str | None
) -> None:
    for stream in (b"", b', "stream": true}'):
        sent = content[:-1] + stream if stream and content.endswith(b"}") else content
        answer = httpx.post(door.url + "/v1/completions", content=sent, headers=headers, timeout=PATIENCE_S)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["param"] == param
    assert door.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status_code == 200


def test_garbage_instead_of_http(door: HttpDoor) -> None:
    for garbage in (
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", door.port), timeout=PATIENCE_S) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert httpx.get(door.url + "/health", timeout=PATIENCE_S).status_code == 200


def test_the_door_says_whether_the_cluster_is_ready(tmp_path: Path, door: HttpDoor) -> None:
    assert httpx.get(door.url + "/ping", timeout=PATIENCE_S).status_code == 200
    assert httpx.get(door.url + "/v1/models", timeout=PATIENCE_S).json()["data"][0]["max_model_len"] == 8192
    with http_door(tmp_path, ["127.0.0.1:1"], "/nowhere") as alone:
        assert httpx.get(alone.url + "/health", timeout=PATIENCE_S).status_code == 502
        pid = alone.process.pid
        psutil.Process(pid).terminate()
        assert psutil.Process(pid).wait(timeout=PATIENCE_S) == 0, "SIGTERM ends it in order"
