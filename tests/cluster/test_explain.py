"""`slos-serve explain` on a cluster under overload: a guarantee that was kept, and best effort that came late."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slos_serve.v1 import inference_pb2
from tests.support.cluster import Answer, ClusterUnderTest, greedy

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cluster

CROWD = 36
TTFT_S = 0.3


def explained(cluster: ClusterUnderTest, request_id: str, *more: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "explain", request_id, *(more or ("-a", cluster.address))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == (expect != 0)
    return done.stdout + done.stderr


def crowded(cluster: ClusterUnderTest, request_id: str, tokens: int, ttft_s: float) -> inference_pb2.GenerateRequest:
    request = greedy(list(range(20, 20 + tokens)), 4, request_id=request_id)
    request.contract.stages.add().prefill.ttft_s = ttft_s
    request.contract.stages.add().decode.tpot_s = 5.0
    return request


def burst(cluster: ClusterUnderTest) -> dict[str, Answer]:
    """Send one request that can wait, and a crowd that cannot all be served in time. Returns what each was told."""
    wanted = [crowded(cluster, "patient", 40, 60.0)]
    wanted += [crowded(cluster, f"crowd-{index}", 700, TTFT_S) for index in range(CROWD)]
    streams = [(request.request_id, cluster.stub.Generate(request, timeout=90)) for request in wanted]
    answers = {}
    for request_id, stream in streams:
        answer = answers[request_id] = Answer()
        for response in stream:
            answer.take(response)
    return answers


@pytest.fixture(scope="module")
def answers(emulated: ClusterUnderTest) -> dict[str, Answer]:
    emulated.wait_ready(4)
    return burst(emulated)


def late_best_effort(answers: dict[str, Answer]) -> str:
    for request_id, answer in answers.items():
        admission, finished = answer.admission, answer.checked().finished
        assert admission is not None
        assert finished is not None
        if admission.verdict == inference_pb2.VERDICT_BEST_EFFORT and finished.achieved.missed.startswith("TTFT"):
            return request_id
    raise AssertionError("the crowd was served in time")


def test_a_guarantee_that_was_kept(emulated: ClusterUnderTest, answers: dict[str, Answer]) -> None:
    said = explained(emulated, "patient")
    lines = said.splitlines()
    assert lines[0] == "request patient: kept"
    assert lines[1] == "contract   own contract: first token within 60.00 s, then 5.00 s for each further token"
    assert lines[2].startswith("verdict    guaranteed; predicted TTFT ")
    assert "planning " in said
    assert [line for line in lines if line.startswith("prefill ") and "█" in line]
    assert [line for line in lines if line.startswith("first token due ") and line.endswith("60.00 s")]
    assert "was due after" not in said


def test_best_effort_that_came_late_is_laid_on_those_who_were_computed_before_it(
    emulated: ClusterUnderTest, answers: dict[str, Answer]
) -> None:
    said = explained(emulated, late_best_effort(answers))
    lines = said.splitlines()
    assert ": best effort, late: TTFT " in lines[0]
    assert lines[2].startswith("verdict    best effort, because of ")
    (late,) = [
        index for index, line in enumerate(lines) if line.startswith("first token was due after 300 ms and came ")
    ]
    assert "of prefill-" in lines[late + 1]
    assert lines[late + 2].endswith("this request")
    blamed = lines[late + 3].split(maxsplit=2)
    assert blamed[2].startswith("crowd-") or blamed[1].startswith("crowd-")
    assert "prompt tokens in " in lines[late + 3]


def test_whoever_cannot_be_explained_gets_one_line(emulated: ClusterUnderTest, tmp_path: Path) -> None:
    assert "the journal does not know it" in explained(emulated, "nobody", expect=1)
    assert "no router answers at 127.0.0.1:9" in explained(emulated, "nobody", "-a", "127.0.0.1:9", expect=1)
    assert "no console answers at" in explained(emulated, "nobody", "--console", "http://127.0.0.1:9", expect=1)
    assert "holds no recording of admission" in explained(emulated, "nobody", "--recording", str(tmp_path), expect=1)
