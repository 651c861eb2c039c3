"""Sampling options of requests that may continue an output begun elsewhere."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.engine.protocol import EngineRequest, SamplingOptions
from services.engine.vllm.frontend.sampling import derived_seed, vllm_arguments
from services.engine.vllm.shared.carried_output import CARRIED_KEY


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
