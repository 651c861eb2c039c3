"""`bench capacity`: a run that was stopped goes on, and what it wrote can be shown again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import capacity, capacity_records
from benchmarks.capacity_records import RecordsError, files_of, read
from simulator import experiments
from simulator.capacity import Bench
from simulator.machine import machine
from simulator.traffic import Window

QUERY = capacity.CapacityQuery(
    scenarios=["coder"],
    policies=["vllm-chunked", "clairvoyant-bound"],
    traces={},
    machine="qwen2.5-7b-a100",
    gpus=1,
    window=Window(seconds=1.0, least=50, most=60, margin=0.2),
    seed=0,
    experiments=(),
    rates=True,
)


def test_what_was_found_is_kept_and_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capacity.run(QUERY, tmp_path / "all.json", tmp_path / "kept", None)
    whole, _ = read(tmp_path / "all.json")
    assert [record.policy for record in whole.capacities] == QUERY.policies
    assert len(whole.rates) == 8
    bound = whole.capacities[1]
    assert whole.capacities[0].capacity_99_rps_per_gpu <= whole.capacities[0].capacity_90_rps_per_gpu
    assert whole.capacities[0].capacity_90_rps_per_gpu <= bound.capacity_90_rps_per_gpu

    def never(*args: object) -> None:
        raise AssertionError("this lies there already")

    monkeypatch.setattr(capacity, "capacity", never)
    capacity.run(QUERY, tmp_path / "again.json", tmp_path / "kept", None)
    assert read(tmp_path / "again.json")[0] == whole
    capsys.readouterr()
    capacity.again([tmp_path / "kept"], None)
    assert "| vllm-chunked |" in capsys.readouterr().out
    assert len(files_of([tmp_path / "kept"])) == 2


def test_other_settings_are_simulated_anew(tmp_path: Path) -> None:
    capacity.run(QUERY, None, tmp_path, None)
    other = Window(seconds=1.0, least=55, most=60, margin=0.2)
    capacity.run(replace(QUERY, window=other), None, tmp_path, None)
    found, settings = read(files_of([tmp_path])[1])
    assert found.capacities[0].requests >= 55
    assert settings["window"] == {"seconds": 1.0, "least": 55, "most": 60, "margin": 0.2}


def test_what_other_code_found_is_simulated_anew_and_said_to_be_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capacity.run(QUERY, None, tmp_path, None)
    capsys.readouterr()
    capacity.again([tmp_path], None)
    assert "figures now" not in capsys.readouterr().out
    present, done = capacity_records.code_of, []

    def changed(what: str) -> str:
        return "other" if what == "vllm-chunked" else present(what)

    def noted(scenario: str, bench: Bench, tpots_s: tuple[float, ...], name: str) -> None:
        done.append(name)

    monkeypatch.setattr(capacity_records, "code_of", changed)
    capacity.again([tmp_path], None)
    assert "vllm-chunked may have other figures now" in capsys.readouterr().out
    monkeypatch.setattr(capacity, "capacity", noted)
    capacity.run(QUERY, None, tmp_path, None)
    assert done == ["vllm-chunked"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"records": [{"rate": 1}], "settings": {}}')
    with pytest.raises(RecordsError, match=r"x\.json"):
        read(path)


def test_the_cost_of_a_simulated_request_is_the_processor_time_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(500)
    monkeypatch.setattr(experiments, "time", SimpleNamespace(process_time=lambda: next(ticks) / 4))
    monkeypatch.setattr(experiments, "REPLICAS", (1,))
    bench = Bench(machine("qwen2.5-7b-a100"), 1, capacity.traffic("chatbot", {}, 0), Window(1.0, 50, 50, 0.0))
    costs = [cpu_ms for _, cpu_ms in experiments.scaling("chatbot", bench, (0.1,), 2.0)]
    assert costs == [pytest.approx(250.0 / 50)] * 2
