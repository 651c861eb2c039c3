"""A real router's recording under overload, replayed offline: every decision again, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import pytest

from router.admission.record_files import segments
from services.slo.admission import Outcome
from services.slo.admission.recording import Replay
from services.slo.admission.recording.asked import Decided
from slos_serve.v1 import contract_pb2, inference_pb2
from tests.cluster.conftest import EMULATED
from tests.support.cluster import ClusterUnderTest, cluster_under_test, greedy
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.cluster

REQUESTS = 96


def request(index: int) -> inference_pb2.GenerateRequest:
    """Return one of several kinds of requests: tight and loose contracts, refusals asked for, and none at all."""
    message = greedy(list(range(20, 120 + 40 * (index % 8))), 16 + index % 24, request_id=f"recorded-{index}")
    if index % 6 == 5:
        return message
    message.contract.stages.add().prefill.ttft_s = (0.4, 0.8, 2.0)[index % 3]
    message.contract.stages.add().decode.tpot_s = (0.06, 0.2)[index % 2]
    if index % 7 == 0:
        message.contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
    return message


def ended(stream: Iterable[inference_pb2.GenerateResponse]) -> str:
    """Read a stream to its end. Returns the status it ended with."""
    try:
        list(stream)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def overload(cluster: ClusterUnderTest) -> Counter[str]:
    """Send requests in three bursts, losing a worker between them and a few clients on the way."""
    streams = []
    for index in range(REQUESTS):
        if index % 32 == 31:
            time.sleep(0.4)
        if index == 50:
            cluster.kill("decode-1")
        streams.append(cluster.stub.Generate(request(index), timeout=90))
    for stream in streams[::11]:
        stream.cancel()
    codes = Counter(ended(stream) for stream in streams)
    cluster.stub.Quote(inference_pb2.QuoteRequest(request=request(1)))
    cluster.start_again("decode-1")
    cluster.wait_ready(3)
    for index in range(REQUESTS, REQUESTS + 6):
        ended(cluster.stub.Generate(request(index), timeout=90))
    cluster.wait_empty()
    return codes


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording of a router that served one prefill and two decode workers, after it has stopped."""
    directory = tmp_path_factory.mktemp("recorded")
    config = directory / "cluster.toml"
    text = EMULATED.format(
        model=write_tiny_model(directory / "tiny"), run_dir=directory / "run", prefill=1, decode=2, patience_s=60.0
    )
    record = f'[router]\nrecord = "{directory}/record"\nrecord_mebibytes = 4\nmax_hold_s = 0.5\n'
    config.write_text(text.replace("[router]\n", record))
    with cluster_under_test(config) as cluster:
        codes = overload(cluster)
    assert codes["OK"] >= REQUESTS // 2, codes
    return directory / "record"


def test_every_decision_of_a_real_router_is_made_again(recording: Path) -> None:
    (directory,) = recording.iterdir()
    answers, outcomes, kinds = 0, Counter[Outcome](), Counter[str]()
    for segment in segments(directory):
        events = list(segment.events())
        replay = Replay(segment.core, segment.requests)
        assert list(replay.differences(events)) == []
        answers += replay.answers
        kinds += Counter(event.kind for event in events)
        outcomes += Counter(
            verdict.outcome for event in events if isinstance(event, Decided) for verdict in event.answer.verdicts
        )
    # A slow machine has fewer rounds; each admitted request is asked about when it is sent and when memory is promised.
    assert answers > REQUESTS
    assert {Outcome.GUARANTEED, Outcome.BEST_EFFORT, Outcome.REFUSED} <= set(outcomes)
    assert {"left", "placed_again", "handed_over", "prompt_computed", "assessed", "removed"} <= set(kinds)


def test_the_command_says_so_and_explains_a_request(recording: Path) -> None:
    def replay(*arguments: str) -> str:
        command = [sys.executable, "-m", "cli", "replay", str(recording), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "as recorded" in replay()
    told = replay("--request", "recorded-1")
    assert "came: 140 prompt tokens, TTFT 800 ms, TPOT 200 ms" in told
    assert "round " in told
    explain = [sys.executable, "-m", "cli", "explain", "recorded-1", "--recording", str(recording)]
    assert subprocess.run(explain, check=True, capture_output=True, text=True).stdout == told


def test_no_prompt_is_written_down(recording: Path) -> None:
    for path in recording.rglob("*.jsonl"):
        text = path.read_text()
        assert "20,21,22" not in text
        assert "20, 21, 22" not in text
