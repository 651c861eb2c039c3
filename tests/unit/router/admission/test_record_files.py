"""Recordings on disk: what is read is what was told, from any segment on, and nothing else is made of what is there."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from router.admission.record_files import SEGMENTS, RecordError, RecordFiles, Segment, segments
from router.requests.prompt_blocks import TokenBlocks
from services.slo.admission import (
    AdmissionCore,
    AdmissionOptions,
    Arrival,
    Assessment,
    Outcome,
    Progress,
    RequestFacts,
    Unservable,
)
from services.slo.admission.assessor import Assessor
from services.slo.admission.promise_wanted import PromiseWanted
from services.slo.admission.recording import Difference, Replay
from services.slo.admission.recording.asked import Assessed, Decided
from services.slo.admission.recording.told import PlanningTook
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, DecodeTarget
from services.slo.planner import Decision
from simulator.cluster import Cluster, PolicyContext
from simulator.knowledge import KnownLengths
from simulator.machine import machine
from simulator.policies.choices import Choices
from simulator.policies.promising import PromisingPolicy
from simulator.scenarios import at_rate, generate, scenario
from simulator.tenants import sent_by
from tests.unit.services.slo.admission.support import START_S, Tracked, contract, worker_facts

UNBOUNDED = 1 << 40


def record(directory: Path, most_bytes: int, requests: int = 60, tenants: Sequence[str] = ("",)) -> RecordFiles:
    """Record a simulated cluster of two workers at overload, which tenants share: the last sends most."""
    files = RecordFiles(directory, most_bytes)

    class Recorded(PromisingPolicy):
        def make_core(self, options: AdmissionOptions, lengths: KnownLengths | None, seed: int) -> AdmissionCore:
            return files.core(options)

    def make(context: PolicyContext) -> Recorded:
        return Recorded(context, Choices(tenant_weights=(("small", 2.0), ("default", 0.5))), (0.1,))

    arrivals = {tenant: 3.0**number for number, tenant in enumerate(tenants)}
    offered = sent_by(at_rate(generate(scenario("chatbot"), requests, 5), 24.0), arrivals, seed=1)
    Cluster(machine("qwen2.5-7b-a100"), 2, make, offered).run()
    files.close()
    return files


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recording") / "router-1"
    record(directory, UNBOUNDED, tenants=("small", "large"))
    return directory


def differences(found: Sequence[Segment]) -> tuple[int, list[object]]:
    answers = 0
    differ: list[object] = []
    for segment in found:
        replay = Replay(segment.core, segment.requests)
        differ += replay.differences(segment.events())
        answers += replay.answers
    return answers, differ


def test_what_is_read_is_what_was_told_bit_for_bit(recording: Path) -> None:
    (segment,) = segments(recording)
    answers, differ = differences([segment])
    assert answers > 100
    assert differ == []
    assert dict(segment.core.options.tenant_weights) == {"small": 2.0, "default": 0.5}
    weights = {tenant: account.weight for tenant, account in segment.core.shares.accounts.items()}
    assert weights == {"small": 2.0, "large": 0.5}


def test_what_tenants_were_promised_is_part_of_the_state_of_a_segment(tmp_path: Path) -> None:
    record(tmp_path, SEGMENTS * 40_000, tenants=("small", "large"))
    found = list(segments(tmp_path))
    assert len(found) > 1
    assert any(account.promised_s > 0 for account in found[-1].core.shares.accounts.values())
    answers, differ = differences(found)
    assert answers > 0
    assert differ == []


def test_each_segment_can_be_replayed_without_those_before_it(tmp_path: Path) -> None:
    record(tmp_path, SEGMENTS * 20_000)
    found = list(segments(tmp_path))
    assert len(found) == SEGMENTS, "the oldest have given way"
    assert not (tmp_path / "admission-000001.jsonl").exists()
    for segment in reversed(found):
        answers, differ = differences([segment])
        assert answers > 0
        assert differ == []
    assert all(any(isinstance(event, Decided) for event in segment.events()) for segment in found)


def test_a_line_that_was_not_written_to_its_end_is_left_out(recording: Path, tmp_path: Path) -> None:
    whole = (recording / "admission-000001.jsonl").read_bytes()
    (tmp_path / "admission-000001.jsonl").write_bytes(whole[:-20])
    (segment,) = segments(tmp_path)
    (complete,) = segments(recording)
    assert len(list(segment.events())) == len(list(complete.events())) - 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [b"{}\n", *lines[1:]], "format"),
        (lambda lines: [lines[0].replace(b'"format":2', b'"format":9'), *lines[1:]], "format 9"),
        (lambda lines: [b"nonsense\n", *lines[1:]], "cannot be read"),
        (lambda lines: [*lines[:5], b'{"kind":"exploded"}\n', *lines[5:]], "line 6"),
        (lambda lines: [*lines[:5], b'{"kind":"left"}\n', *lines[5:]], "line 6"),
    ],
)
def test_what_is_no_recording_is_said_to_be_none(
    recording: Path, tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    lines = (recording / "admission-000001.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "admission-000001.jsonl").write_bytes(b"".join(spoil(lines)))
    with pytest.raises(RecordError, match=message):
        [list(segment.events()) for segment in segments(tmp_path)]


def calling(module: str, name: str, argument: str) -> bytes:
    """Return a pickle that calls what a module has under a name, which may reach through what the module imports."""

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posix", "system"),
        ("services.slo.planner.kernels.compiled", "os.system"),
        ("services.slo.admission.pending", "enum.bltns.exec"),
        ("services.slo.planner.kernels.compiled", "Path"),
        ("services.slo.planner", "plan"),
        ("router.admission.record_files", "RecordFiles"),
    ],
)
def test_a_state_makes_nothing_that_is_no_part_of_a_core(
    recording: Path, tmp_path: Path, module: str, name: str
) -> None:
    lines = (recording / "admission-000001.jsonl").read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["state"] = base64.b64encode(calling(module, name, "import os; os.mkdir('taken')")).decode()
    (tmp_path / "admission-000001.jsonl").write_bytes(json.dumps(header).encode() + b"\n")
    with pytest.raises(RecordError, match="no part of a recording"):
        list(segments(tmp_path))


def without_first(kind: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """Return what takes the first event of a kind out of a recording."""

    def spoil(lines: list[bytes]) -> list[bytes]:
        index = next(index for index, line in enumerate(lines) if b'"kind":"' + kind + b'"' in line)
        return lines[:index] + lines[index + 1 :]

    return spoil


def with_header(**values: object) -> Callable[[list[bytes]], list[bytes]]:
    """Return what writes other values into the header of a recording."""
    return lambda lines: [json.dumps(json.loads(lines[0]) | values).encode() + b"\n", *lines[1:]]


@pytest.mark.parametrize(
    "spoil",
    [
        without_first(b"admitted"),
        with_header(options=[]),
        with_header(options={"max_hold_s": "soon"}),
        with_header(options={"max_hold_s": -1.0}),
        with_header(options={"local_prefill": 1}),
        with_header(options={"sampled_workers": 2.5}),
        with_header(requests=[]),
        with_header(requests={"r": {"progress": "queued"}}),
        with_header(state=7),
        with_header(state=base64.b64encode(pickle.dumps([1, 2])).decode()),
        with_header(state=base64.b64encode(pickle.dumps({})[:-1]).decode()),
        lambda lines: [b"[" * 200_000 + b"\n", *lines[1:]],
    ],
)
def test_replaying_what_is_damaged_says_so_and_is_no_difference(
    recording: Path, tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]]
) -> None:
    lines = (recording / "admission-000001.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "admission-000001.jsonl").write_bytes(b"".join(spoil(lines)))
    result = CliRunner().invoke(app, ["replay", str(tmp_path)])
    assert (result.exit_code, result.exception.__class__) == (2, SystemExit)
    (line,) = result.output.splitlines()
    assert line.startswith("replay: ")


def test_believed_prefixes_are_replayed_from_every_segment_on(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, SEGMENTS)  # A segment for each question.
    core = files.core(AdmissionOptions())
    core.joined(worker_facts("p1"))
    core.joined(worker_facts("d1"))
    facts = RequestFacts("seen", 100, 10, "", "", None, TokenBlocks(range(100)))
    core.prefixes.computed("p1", facts.blocks, 16, 1_000, 0, 64)
    for number in range(3):
        again = RequestFacts(f"again-{number}", 100, 10, "", "", None, TokenBlocks(range(100)))
        answer = core.assess(Arrival(again, contract(), START_S + number), START_S + number)
        assert not isinstance(answer, Unservable)
    files.close()
    asked = 0
    for segment in list(segments(tmp_path))[1:]:
        for event in segment.events():
            if isinstance(event, Assessed):
                asked += 1
                held = segment.core.prefixes.holders(event.arrived.facts.blocks, 16)
                assert held == (("p1", 96),), "the state knows blocks by the names that events have"
        assert differences([segment])[1] == []
    assert asked == 2


def test_a_recording_goes_on_after_planning_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Assessor.plan

    def defective(self: Assessor, wanted: Sequence[PromiseWanted], *args: Any, **options: Any) -> dict[str, Decision]:
        decided = plan(self, wanted, *args, **options)
        if any(request.request_id == "defect" for request in wanted):
            raise RuntimeError("defect")
        return decided

    monkeypatch.setattr(Assessor, "plan", defective)
    files = RecordFiles(tmp_path, UNBOUNDED)
    core = files.core(AdmissionOptions())
    core.joined(worker_facts("p1"))
    core.joined(worker_facts("d1"))
    for number, name in enumerate(["before", "defect", "after"]):
        now_s = START_S + number
        arrival = Arrival(RequestFacts(name, 100, 10), contract(ttft_s=1.0), now_s)
        core.arrived(arrival)
        if name == "defect":
            for ask in (core.decide, lambda at_s, arrival=arrival: core.assess(arrival, at_s)):
                with pytest.raises(RuntimeError, match="defect"):
                    ask(now_s)
            core.withdrawn(name)
        else:
            core.decide(now_s)
    files.close()
    assert differences(list(segments(tmp_path))) == (4, [])
    monkeypatch.undo()
    first, *_ = differences(list(segments(tmp_path)))[1]
    assert isinstance(first, Difference)
    assert (first.recorded, first.replayed) == ("RuntimeError", "no error")


def test_a_worker_with_blocks_of_another_size_may_join_while_there_are_requests(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, UNBOUNDED)
    core = files.core(AdmissionOptions())
    core.joined(worker_facts("p1"))
    core.joined(worker_facts("d1"))
    arrived = Arrival(RequestFacts("old", 100, 10, blocks=TokenBlocks(range(100))), contract(ttft_s=1.0), START_S)
    core.arrived(arrived)
    for worker_id in "p1", "d1":
        core.left(worker_id)
    for worker_id in "p2", "d2":
        facts = worker_facts(worker_id)
        core.joined(replace(facts, limits=replace(facts.limits, block_tokens=32)))
    like_it = RequestFacts("new", 100, 10, blocks=TokenBlocks(range(100)))
    meter = AttainmentMeter(Contract(), START_S)
    computed = Tracked(like_it, meter, "p2", "d2", False, False, START_S, Progress.PREFILLING)
    core.filed(computed)
    core.prompt_computed(computed, 0, 64)
    (verdict,) = core.decide(START_S + 0.1).verdicts
    assert verdict.outcome is Outcome.GUARANTEED
    files.close()
    found = list(segments(tmp_path))
    assert differences(found) == (1, []), "the cached prompt is found by blocks of 32 tokens"
    assert len(found) == 2


def test_no_prompt_is_written_with_an_event_or_a_state(tmp_path: Path) -> None:
    """A token id of eight digits stands in no name of a block, which is hexadecimal, and in no time."""
    files = RecordFiles(tmp_path, SEGMENTS)  # A segment for each question.
    core = files.core(AdmissionOptions())
    core.joined(worker_facts("p1"))
    core.joined(worker_facts("d1"))
    secret = 87_654_321
    for number in range(3):
        facts = RequestFacts(f"r{number}", 100, 10, "", "", None, TokenBlocks([secret] * 100))
        core.arrived(Arrival(facts, contract(ttft_s=1.0), START_S + number))
        # The request still waits for its verdict when the next segment begins with a state.
        core.assess(Arrival(facts, contract(), START_S + number), START_S + number)
    files.close()
    found = list(segments(tmp_path))
    assert [segment.core.pending for segment in found] == [0, 1, 2, 3]
    for segment in found:
        header, *events = segment.path.read_bytes().splitlines()
        state = base64.b64decode(json.loads(header)["state"] or "")
        assert not any(str(secret).encode() in line for line in events)
        assert secret.to_bytes(4, "little") not in state


def test_no_text_of_a_contract_is_written_and_the_answers_are_the_same(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, SEGMENTS)  # A segment for each question.
    core = files.core(AdmissionOptions())
    core.joined(worker_facts("p1"))
    core.joined(worker_facts("d1"))
    secret = "the end of what nobody shall know"
    staged = Contract(decode=(DecodeTarget(0.1, ends_with=secret), DecodeTarget(0.2, ends_with=secret)))
    for number in range(3):
        facts = RequestFacts(f"r{number}", 100, 10, "", "", None, TokenBlocks([7] * 100))
        arrival = Arrival(facts, staged, START_S + number)
        core.arrived(arrival)
        answer = core.assess(arrival, START_S + number)
        assert isinstance(answer, Assessment)
        assert answer.contract.decode[0].ends_with == secret, "who serves the request must know"
    core.decide(START_S + 4)
    files.close()
    assert any("decided" in path.read_text() for path in tmp_path.iterdir())
    for segment in segments(tmp_path):
        header, *events = segment.path.read_bytes().splitlines()
        state = base64.b64decode(json.loads(header)["state"] or "")
        assert not any(secret.encode() in content for content in (state, *events))
    answers, differ = differences(list(segments(tmp_path)))
    assert answers == 4
    assert differ == []


def test_a_round_is_on_disk_when_it_is_over(tmp_path: Path) -> None:
    """A router that is killed leaves what it decided until then."""
    files = RecordFiles(tmp_path, UNBOUNDED)
    core = files.core(AdmissionOptions())
    core.arrived(
        Arrival(RequestFacts("a", 100, 10, "", "", None, TokenBlocks(range(100))), contract(ttft_s=1.0), START_S)
    )
    core.decide(START_S)
    (segment,) = segments(tmp_path)
    kinds = [event.kind for event in segment.events()]
    files.close()
    assert kinds == ["arrived", "decided"]


def test_an_empty_directory_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no recording"):
        list(segments(tmp_path))


def test_a_disk_that_fails_ends_the_recording_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = RecordFiles(tmp_path, UNBOUNDED)
    core = files.core(AdmissionOptions())
    assert files._file is not None

    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

    files._file = Full()  # type: ignore[assignment]
    core.planning_took(1000.0, 0.5)
    core.planning_took(1000.0, 0.6)
    assert core.next_round_s == pytest.approx(1006.0)
    assert len([record for record in caplog.records if "No space left" in record.message]) == 1


def test_what_cannot_be_written_ends_the_recording_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = RecordFiles(tmp_path, UNBOUNDED)
    core = files.core(AdmissionOptions())
    core.arrived(
        Arrival(RequestFacts("a", 10, 10, tenant="\ud800", blocks=TokenBlocks(range(10))), contract(), START_S)
    )
    assert core.pending == 1
    assert [record.message for record in caplog.records] == [f"the recording in {tmp_path} ends here"]


def test_a_new_recording_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "admission-000007.jsonl").write_text("old")
    files = RecordFiles(tmp_path, UNBOUNDED)
    files.core(AdmissionOptions(max_hold_s=0.25)).planning_took(1000.0, 0.5)
    files.close()
    (segment,) = segments(tmp_path)
    assert segment.core.options == AdmissionOptions(max_hold_s=0.25)
    assert list(segment.events()) == [PlanningTook(1000.0, 0.5)]


class TestCommand:
    def test_says_that_all_answers_are_as_recorded(self, recording: Path) -> None:
        for directory in recording, recording.parent:
            result = CliRunner().invoke(app, ["replay", str(directory)])
            assert result.exit_code == 0, result.output
            assert "as recorded" in result.output

    def test_shows_what_differs(self, recording: Path, tmp_path: Path) -> None:
        lines = (recording / "admission-000001.jsonl").read_text().splitlines(keepends=True)
        at = next(index for index, line in enumerate(lines) if '"outcome":"guaranteed"' in line)
        lines[at] = lines[at].replace('"outcome":"guaranteed"', '"outcome":"refused"')
        (tmp_path / "admission-000001.jsonl").write_text("".join(lines))
        result = CliRunner().invoke(app, ["replay", str(tmp_path)])
        assert result.exit_code == 1
        assert f"event {at}: decided differs" in result.output
        assert "recorded Outcome.REFUSED, replayed Outcome.GUARANTEED" in result.output

    def test_explains_a_request(self, recording: Path) -> None:
        result = CliRunner().invoke(app, ["replay", str(recording), "--request", "r7"])
        assert result.exit_code == 0
        assert "came: " in result.output
        assert "ended by itself" in result.output

    @pytest.mark.parametrize("arguments", [["--request", "nobody"], []])
    def test_says_what_is_not_there(self, recording: Path, tmp_path: Path, arguments: list[str]) -> None:
        directory = recording if arguments else tmp_path
        result = CliRunner().invoke(app, ["replay", str(directory), *arguments])
        assert result.exit_code == 2
        assert "replay: " in result.stderr
