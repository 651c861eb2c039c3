"""What a simulated worker is."""

from __future__ import annotations

from dataclasses import dataclass

from services.slo.composer import Limits
from services.slo.hardware import HardwareProfile, hardware_profile
from services.slo.performance import PerformanceModel
from services.slo.transfer import SLOS_SERVE_LINK, TransferModel

LIMITS = Limits(max_step_tokens=8192, max_running_requests=256, block_tokens=16)
GPU_BYTES = {"A100": 80e9, "H100": 80e9, "H200": 141e9}
MEMORY_SHARE = 0.9
"""Of a GPU's memory that an engine uses."""
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
"""Two bytes a parameter."""


class UnknownMachineError(Exception):
    """The simulator cannot tell how much KV cache the machine holds."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One worker: an engine on one or more GPUs."""

    name: str
    truth: PerformanceModel
    """The time that its steps take on average. Planners are given something else."""
    kv_tokens: int
    kv_bytes_per_token: int
    gpus: int = 1
    limits: Limits = LIMITS
    link: TransferModel = SLOS_SERVE_LINK
    noise: float = 0.03
    """Standard deviation of a step's time, relative, each step by itself."""
    drift: float = 0.0
    """The same of what all its steps share for a while: whole stretches of time are slower than others."""
    drift_lasts_s: float = 1.0
    """After which that has changed for the most part: its correlation falls to 1 / e."""
    acceptance: float = 0.0
    """Probability that a drafted token is accepted; 0: there is no drafter."""
    max_draft_tokens: int = 0
    request_delay_s: float = 0.0
    """From a client to the engine: router, network, processes."""
    relay_delay_s: float = 0.0
    """From an engine's first token to the engine that goes on with it, the transfer of the KV cache left out."""

    @property
    def kv_blocks(self) -> int:
        return self.kv_tokens // self.limits.block_tokens

    def idle_prefill_s(self, prompt_tokens: int) -> float:
        """What the slowdown of a contract multiplies."""
        return self.truth.prefill_s(prompt_tokens, self.limits.max_step_tokens)


def machine(name: str, *, noise: float = 0.03, acceptance: float = 0.7, gpu_bytes: float | None = None) -> Machine:
    """From a profile of `services.slo.hardware`. Speculation only where the profile says what a draft step costs.

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
