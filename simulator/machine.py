"""The hardware of a simulated worker: step times, KV memory, link, noise."""

from __future__ import annotations

from dataclasses import dataclass

from services.slo.composer import Limits
from services.slo.hardware import HardwareProfile, hardware_profile
from services.slo.performance import PerformanceModel
from services.slo.transfer import SLOS_SERVE_LINK, TransferModel

LIMITS = Limits(max_step_tokens=8192, max_running_requests=256, block_tokens=16)
GPU_BYTES = {"A100": 80e9, "H100": 80e9, "H200": 141e9}
MEMORY_SHARE = 0.9
"""Share of a GPU's memory that an engine uses for weights and KV cache (chosen)."""
WEIGHT_BYTES = {
    "OPT-6.7B": 13.3e9,
    "OPT-13B": 25.7e9,
    "OPT-30B": 60e9,
    "ToolLLaMA-2-7B": 13.5e9,
    "DeepSeek-R1-Distill-Qwen-7B": 15.2e9,
    "Qwen2.5-7B": 15.2e9,
    "Qwen2.5-32B": 65.5e9,
    "Gemma-3-27B": 54.8e9,
}
"""Bytes of each model's weights, at two bytes a parameter."""


class UnknownMachineError(Exception):
    """The memory of a model or of a GPU is not known, so that the size of the KV cache cannot be told."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A worker: one engine on one or more GPUs."""

    name: str
    truth: PerformanceModel
    """Mean step times, which only schedulers of others may look at: ours is given a guess and learns."""
    kv_tokens: int
    kv_bytes_per_token: int
    gpus: int = 1
    limits: Limits = LIMITS
    link: TransferModel = SLOS_SERVE_LINK
    noise: float = 0.03
    """Relative standard deviation of the time of a step, each drawn by itself."""
    drift: float = 0.0
    """Relative standard deviation of a slowness that all steps share for a while; 0: there is none."""
    drift_lasts_s: float = 1.0
    """Seconds after which the correlation of that slowness with itself has fallen to 1 / e."""
    acceptance: float = 0.0
    """Probability that a drafted token is accepted; 0 without a drafter."""
    max_draft_tokens: int = 0
    request_delay_s: float = 0.0
    """Seconds from a client to the engine: router, network, processes."""
    relay_delay_s: float = 0.0
    """Seconds from an engine's first token to the decode worker's engine, the transfer of the KV cache apart."""

    @property
    def kv_blocks(self) -> int:
        return self.kv_tokens // self.limits.block_tokens

    def idle_prefill_s(self, prompt_tokens: int) -> float:
        """Return the seconds that a prompt takes on an idle worker; contracts may allow a multiple of them as TTFT."""
        return self.truth.prefill_s(prompt_tokens, self.limits.max_step_tokens)


def machine(name: str, *, noise: float = 0.03, acceptance: float = 0.7, gpu_bytes: float | None = None) -> Machine:
    """Return the worker that a profile of `services.slo.hardware` describes.

    It drafts only if the profile says what a draft step costs.

    Args:
        gpu_bytes: memory of one GPU, if not that of the profile's.


    Raises:
        UnknownHardwareError: there is no such profile.
        UnknownMachineError: it is not known how large the model or the memory is.
    """
    profile: HardwareProfile = hardware_profile(name)
    total_bytes = gpu_bytes or GPU_BYTES.get(profile.hardware)
    weights = WEIGHT_BYTES.get(profile.model)
    if total_bytes is None or weights is None or profile.kv_bytes_per_token is None:
        known = ", ".join(sorted(WEIGHT_BYTES))
        raise UnknownMachineError(f"{name}: memory is known for {known} on {', '.join(GPU_BYTES)}")
    kv_bytes = profile.tensor_parallel * total_bytes * MEMORY_SHARE - weights
    drafts = profile.coefficients.per_draft_step_s > 0
    return Machine(
        name=name,
        truth=PerformanceModel(profile.coefficients),
        kv_tokens=int(kv_bytes / profile.kv_bytes_per_token) // 16 * 16,
        kv_bytes_per_token=profile.kv_bytes_per_token,
        gpus=profile.tensor_parallel,
        noise=noise,
        acceptance=acceptance if drafts else 0.0,
        max_draft_tokens=10 if drafts else 0,
    )
