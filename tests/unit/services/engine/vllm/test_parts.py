"""The parts of the vLLM adapter that need no vLLM."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.engine.kv.handle import KvPull, LeaseOutcome
from services.engine.protocol import EngineLoad, EngineRequest, SamplingOptions
from services.engine.vllm.config import VllmEngineConfig
from services.engine.vllm.frontend.lease_desk import ClaimRefusedError, KvLeaseServer, claim
from services.engine.vllm.frontend.sampling import derived_seed, vllm_arguments
from services.engine.vllm.shared.carried_output import CARRIED_KEY
from services.engine.vllm.shared.core_report import CoreReport
from services.engine.vllm.shared.nixl_terms import DEADLINE_KEY, PullTerms, prefix_digest, refusal
from services.model.fingerprint import model_fingerprint
from services.slo.performance import StepShape


def test_packages_load_without_torch_and_vllm() -> None:
    modules = (
        "config",
        "shared.core_report",
        "shared.nixl_terms",
        "frontend.lease_desk",
        "frontend.hand_over",
        "frontend.sampling",
        "frontend.processes",
        "frontend.engine",
    )
    imports = ", ".join(f"services.engine.vllm.{module}" for module in modules)
    program = f"import sys, {imports}; sys.exit(bool({{'torch', 'vllm'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[5])


def test_lease_must_outlive_its_margin() -> None:
    with pytest.raises(ValidationError, match="lease_margin_s"):
        VllmEngineConfig(kv_lease_s=1.0, lease_margin_s=1.0)


def test_report_survives_the_wire() -> None:
    report = CoreReport(
        step=7,
        duration_s=0.04,
        shape=StepShape(1, 20, 200.0, 2, 2, 300),
        load=EngineLoad(3, 1, 100, 40, 8),
        closed_leases={"a": LeaseOutcome.PULLED, "b": LeaseOutcome.EXPIRED},
        pulls={"c": KvPull(4096, 0.002)},
        recomputes={"d": "late"},
    )
    assert CoreReport.from_wire(json.loads(json.dumps(report.to_wire()))) == report


class TestSeeds:
    @given(st.integers(0, 2**63 - 1))
    def test_start_keeps_its_seed(self, seed: int) -> None:
        assert derived_seed(seed, 0) == seed

    @given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6))
    def test_is_a_seed_vllm_takes(self, seed: int, generated: int) -> None:
        derived = derived_seed(seed, generated)
        assert derived is not None
        assert 0 <= derived < 2**63

    @given(st.integers(0, 2**62))
    def test_differs_by_position(self, seed: int) -> None:
        assert len({derived_seed(seed, generated) for generated in range(50)}) == 50

    def test_none_stays_none(self) -> None:
        assert derived_seed(None, 5) is None


class TestCounts:
    REQUEST = EngineRequest("r", tuple(range(20)), 5, SamplingOptions(max_tokens=12, min_tokens=8, stop_token_ids=(9,)))

    def test_continue_where_the_output_stands(self) -> None:
        arguments = vllm_arguments(self.REQUEST, (2,), None, export_kv=False)
        assert (arguments["max_tokens"], arguments["min_tokens"]) == (7, 3)
        assert arguments["stop_token_ids"] == [9, 2]
        assert arguments["extra_args"] == {CARRIED_KEY: 5}

    def test_export_ends_after_one_token(self) -> None:
        arguments = vllm_arguments(self.REQUEST, (2,), {"do_remote_decode": True}, export_kv=True)
        assert (arguments["max_tokens"], arguments["min_tokens"]) == (1, 1)
        assert arguments["extra_args"]["kv_transfer_params"] == {"do_remote_decode": True}

    def test_eos_ignored(self) -> None:
        request = replace(self.REQUEST, sampling=replace(self.REQUEST.sampling, ignore_eos=True))
        assert vllm_arguments(request, (2,), None, export_kv=False)["stop_token_ids"] == [9]


class TestRefusal:
    PROMPT = tuple(range(1000, 1071))
    TERMS = PullTerms("e", "r", "127.0.0.1", 5600, 1, (1, 2, 3), 70, prefix_digest(PROMPT[:70]))

    def test_good_terms_pass(self) -> None:
        assert refusal(self.TERMS.to_vllm(10.0), self.PROMPT, 32, 9.9) is None

    def test_late(self) -> None:
        assert "ran out" in (refusal(self.TERMS.to_vllm(10.0), self.PROMPT, 32, 10.0) or "")

    def test_another_block_size(self) -> None:
        assert "3 KV blocks" in (refusal(self.TERMS.to_vllm(10.0), self.PROMPT, 16, 0.0) or "")

    def test_another_prompt(self) -> None:
        other = (1, *self.PROMPT[1:])
        assert refusal(self.TERMS.to_vllm(10.0), other, 32, 0.0) == "the KV cache belongs to another prompt"

    def test_longer_than_the_prompt(self) -> None:
        assert "70 tokens of a prompt of 60" in (refusal(self.TERMS.to_vllm(10.0), self.PROMPT[:60], 32, 0.0) or "")

    @given(
        st.sampled_from(sorted(TERMS.to_vllm(1.0))),
        st.one_of(st.none(), st.booleans(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.none())),
    )
    def test_nonsense_never_passes_nor_raises(self, field: str, value: object) -> None:
        params = {**self.TERMS.to_vllm(10.0), field: value}
        if field in {"do_remote_prefill", "do_remote_decode"}:
            return
        if field in {"remote_engine_id", "remote_request_id", "remote_host"} and isinstance(value, str):
            return
        if field == DEADLINE_KEY and value is True:
            return
        assert refusal(params, self.PROMPT, 32, 2.0) is not None


class TestLeaseDesk:
    @staticmethod
    async def desk() -> tuple[KvLeaseServer, list[str]]:
        released: list[str] = []

        async def release(lease_id: str) -> None:
            released.append(lease_id)

        desk = KvLeaseServer("127.0.0.1", 0.5, release)
        await desk.start()
        return desk, released

    @staticmethod
    def now_s() -> float:
        return asyncio.get_running_loop().time()

    async def test_one_claim_is_granted(self) -> None:
        desk, released = await self.desk()
        desk.open("a", {"x": 1}, self.now_s() + 10.0)
        granted = await claim(*desk.address, "a", 1.0)
        assert granted.terms == {"x": 1}
        assert granted.deadline_s <= self.now_s() + 10.0
        with pytest.raises(ClaimRefusedError, match="claimed before"):
            await claim(*desk.address, "a", 1.0)
        await desk.release("a")
        assert released == []
        granted.confirm()
        await asyncio.sleep(0.1)
        assert released == []
        await desk.stop()

    async def test_end_without_confirmation_releases(self) -> None:
        desk, released = await self.desk()
        desk.open("a", {}, self.now_s() + 10.0)
        granted = await claim(*desk.address, "a", 1.0)
        granted.give_back()
        await asyncio.sleep(0.1)
        assert released == ["a"]
        with pytest.raises(ClaimRefusedError, match="no such lease"):
            await claim(*desk.address, "a", 1.0)
        await desk.stop()

    async def test_released_lease_is_not_granted(self) -> None:
        desk, released = await self.desk()
        desk.open("a", {}, self.now_s() + 10.0)
        await desk.release("a")
        await desk.release("a")
        assert released == ["a"]
        with pytest.raises(ClaimRefusedError, match="no such lease"):
            await claim(*desk.address, "a", 1.0)
        await desk.stop()

    async def test_lease_within_its_margin_is_not_granted(self) -> None:
        desk, _ = await self.desk()
        desk.open("a", {}, self.now_s() + 0.4)
        with pytest.raises(ClaimRefusedError, match="s left"):
            await claim(*desk.address, "a", 1.0)
        await desk.stop()

    @pytest.mark.parametrize("garbage", [b"\n", b"[]\n", b"\xff\xfe\n", b'{"lease_id": 5}\n', b""])
    async def test_garbage_does_not_end_the_desk(self, garbage: bytes) -> None:
        desk, _ = await self.desk()
        desk.open("a", {}, self.now_s() + 10.0)
        reader, writer = await asyncio.open_connection(*desk.address)
        writer.write(garbage)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        granted = await claim(*desk.address, "a", 1.0)
        granted.confirm()
        await desk.stop()

    async def test_silent_producer_is_not_waited_for(self) -> None:
        gone = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            gone.set()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ClaimRefusedError, match="did not answer"):
            await claim("127.0.0.1", port, "a", 0.2)
        await gone.wait()
        server.close()


class TestFingerprint:
    @staticmethod
    def model(directory: Path, weights: bytes, config: str = "{}") -> Path:
        directory.mkdir()
        (directory / "config.json").write_text(config)
        (directory / "model.safetensors").write_bytes(len(b"{}").to_bytes(8, "little") + b"{}" + weights)
        return directory

    def test_tells_models_apart(self, tmp_path: Path) -> None:
        weights = bytes(range(256)) * 5000
        first = model_fingerprint(self.model(tmp_path / "a", weights))
        assert model_fingerprint(self.model(tmp_path / "b", weights)) == first
        assert model_fingerprint(self.model(tmp_path / "c", weights[:-1] + b"x")) != first
        assert model_fingerprint(self.model(tmp_path / "d", weights + b"x")) != first
        assert model_fingerprint(self.model(tmp_path / "e", weights, '{"rope": 1}')) != first

    def test_no_weights(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match="safetensors"):
            model_fingerprint(tmp_path)
