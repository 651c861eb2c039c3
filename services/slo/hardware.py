"""Performance profiles of models on hardware, to start from where nothing was measured yet.

All but those marked `measured` are figures of others: constants that SLOs-Serve (arXiv 2504.08784) and its successor
carry in their code. Those of the former passed through a fitting routine that stored its initial guess, so that even
`fitted` means no more than that they were written down as a fit. Steps observed on the machine soon replace them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.slo.performance import SMOLLM2_135M_ONE_CORE, PerformanceCoefficients, StepCost, StepForm

FITTED, COPIED, PLACEHOLDER = "fitted", "copied", "placeholder"
"""Origins of coefficients; see `PerformanceCoefficients.origin`."""


class UnknownHardwareError(Exception):
    """There is no profile of that name; the message lists those there are."""


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """The step times of one model on one kind of worker."""

    name: str
    """Name by which the profile is asked for."""
    model: str
    """Name of the model."""
    drafter: str
    """Name of the draft model; empty without speculation."""
    hardware: str
    """Kind of accelerator or processor."""
    tensor_parallel: int
    """Number of accelerators that share the model."""
    workload: str
    """Workload that the figures were fitted on; empty if not stated."""
    coefficients: PerformanceCoefficients
    """Coefficients of the step-time formula."""
    kv_bytes_per_token: int | None
    """Bytes of KV cache per token at two bytes a value; None if not known."""
    note: str = ""
    """What else is known of the figures; empty if nothing."""

    @property
    def origin(self) -> str:
        """Source of the coefficients; see `PerformanceCoefficients.origin`."""
        return self.coefficients.origin


def _kv_bytes(layers: int, kv_heads: int, head_size: int) -> int:
    """Return the bytes of keys and values of one token, at two bytes a value."""
    return 2 * layers * kv_heads * head_size * 2


KV_BYTES_PER_TOKEN = {
    "SmolLM2-135M": _kv_bytes(30, 3, 64),
    "OPT-125M": _kv_bytes(12, 12, 64),
    "OPT-6.7B": _kv_bytes(32, 32, 128),
    "OPT-13B": _kv_bytes(40, 40, 128),
    "OPT-30B": _kv_bytes(48, 56, 128),
    "ToolLLaMA-2-7B": _kv_bytes(32, 32, 128),
    "DeepSeek-R1-Distill-Qwen-1.5B": _kv_bytes(28, 2, 128),
    "DeepSeek-R1-Distill-Qwen-7B": _kv_bytes(28, 4, 128),
    "DeepSeek-R1": 61 * (512 + 64) * 2,
    "Qwen2.5-0.5B": _kv_bytes(24, 2, 64),
    "Qwen2.5-1.5B": _kv_bytes(28, 2, 128),
    "Qwen2.5-7B": _kv_bytes(28, 4, 128),
    "Qwen2.5-32B": _kv_bytes(64, 8, 128),
    # Five of six layers keep only their latest 1,024 tokens: an upper bound.
    "Gemma-3-27B": _kv_bytes(62, 16, 128),
    "Llama-3.1-70B": _kv_bytes(80, 8, 128),
}
"""Bytes of KV cache per token by model, from the published shapes. The successor of SLOs-Serve counts 53.4 KiB for
Qwen2.5-7B, not 56."""


def _lines(
    origin: str,
    token_us: float,
    step_ms: float,
    constant_ms: float,
    other: tuple[float, float, float] | None = None,
) -> PerformanceCoefficients:
    """Return coefficients of one linear cost, or a roofline of two.

    Args:
        token_us: microseconds per token.
        step_ms: milliseconds per draft step.
        constant_ms: milliseconds of any step.
        other: the same three figures of the second cost; None if there is none.
    """
    memory = StepCost()
    if other is not None:
        memory = StepCost(base_s=other[2] * 1e-3, per_token_s=other[0] * 1e-6, per_draft_step_s=other[1] * 1e-3)
    return PerformanceCoefficients(
        overhead_s=constant_ms * 1e-3,
        per_token_s=token_us * 1e-6,
        per_context_token_s=0.0,
        per_attention_pair_s=0.0,
        origin=origin,
        per_draft_step_s=step_ms * 1e-3,
        form=StepForm.ADDITIVE if other is None else StepForm.ROOFLINE,
        memory=memory,
    )


def _terms(
    origin: str, token_us: float, request_us: float, past_ns: float, constant_ms: float, pair_ns: float = 0.0
) -> PerformanceCoefficients:
    """Return coefficients of five terms, without draft steps, which are 0 in every such profile.

    Args:
        token_us: microseconds per token.
        request_us: microseconds per request.
        past_ns: nanoseconds per context token of a decode.
        constant_ms: milliseconds of any step.
        pair_ns: nanoseconds per attention pair of a prefill chunk.
    """
    return PerformanceCoefficients(
        overhead_s=constant_ms * 1e-3,
        per_token_s=token_us * 1e-6,
        per_context_token_s=past_ns * 1e-9,
        per_attention_pair_s=pair_ns * 1e-9,
        origin=origin,
        per_request_s=request_us * 1e-6,
    )


def _profile(
    name: str,
    model: str,
    hardware: str,
    coefficients: PerformanceCoefficients,
    *,
    drafter: str = "",
    tensor_parallel: int = 1,
    workload: str = "",
    note: str = "",
) -> HardwareProfile:
    kv_bytes = KV_BYTES_PER_TOKEN.get(model)
    return HardwareProfile(name, model, drafter, hardware, tensor_parallel, workload, coefficients, kv_bytes, note)


_OPT = (68.783, 0.0, 24.801, (75.228, 0.0, 3.033))
_OPT_DRAFTED = (68.783, 0.00125, 24.801, (75.228, 3.465, 3.033))
_FLAT = (0.0, 0.0, 0.012)
_FLAT_DRAFTED = (0.0, 3.014, 0.012)
_DISTILL_7B = (60.446, 0.0, 14.012, (0.0, 0.0, 30.0))
_QWEN_32B = (105.401, 4.520, 45.129)
_BOTH = "the same figures with and without a drafter"


def _slos_serve() -> Iterator[HardwareProfile]:
    """Yield the profiles in the code of SLOs-Serve: costs of tokens and draft steps, none of context."""
    a100 = "A100"
    opt, opt13, qwen32 = "OPT-6.7B", "OPT-13B", "Qwen2.5-32B"
    yield _profile("opt-6.7b-a100", opt, a100, _lines(FITTED, *_OPT))
    yield _profile("opt-6.7b-drafted-a100", opt, a100, _lines(FITTED, *_OPT_DRAFTED), drafter="OPT-125M")
    yield _profile(
        "opt-13b-2xa100",
        opt13,
        a100,
        _lines(FITTED, 72.128, 3.341, 31.732, _FLAT_DRAFTED),
        tensor_parallel=2,
        note=_BOTH,
    )
    yield _profile("opt-13b-a100", opt13, a100, _lines(COPIED, *_OPT), note="figures of OPT-6.7B")
    yield _profile("opt-13b-h100", opt13, "H100", _lines(FITTED, 41.774, 0.0, 27.431, _FLAT))
    yield _profile(
        "opt-30b-4xa100",
        "OPT-30B",
        a100,
        _lines(FITTED, 93.144, 2.797, 37.880, _FLAT_DRAFTED),
        tensor_parallel=4,
        note=_BOTH,
    )
    yield _profile("opt-125m-a100", "OPT-125M", a100, _lines(FITTED, 45.446, 0.0, 17.012), note="used as a drafter")
    yield _profile("toolllama-2-7b-a100", "ToolLLaMA-2-7B", a100, _lines(FITTED, 65.724, 0.0, 27.524, _FLAT))
    yield _profile(
        "r1-distill-qwen-1.5b-a100",
        "DeepSeek-R1-Distill-Qwen-1.5B",
        a100,
        _lines(FITTED, 291.598, 0.0, 18.045, _FLAT),
        note="slower per token than the 7B model of the same family",
    )
    yield _profile("r1-distill-qwen-7b-a100", "DeepSeek-R1-Distill-Qwen-7B", a100, _lines(FITTED, *_DISTILL_7B))
    yield _profile("deepseek-r1", "DeepSeek-R1", a100, _lines(PLACEHOLDER, *_OPT), note="figures of OPT-6.7B")
    for draft in ("0.5B", "1.5B"):
        yield _profile(
            f"qwen2.5-32b-drafted-{draft.lower()}-4xa100",
            qwen32,
            a100,
            _lines(FITTED, *_QWEN_32B),
            drafter=f"Qwen2.5-{draft}",
            tensor_parallel=4,
        )
    yield _profile("qwen2.5-32b-4xa100", qwen32, a100, _lines(FITTED, 105.401, 0.0, 45.129), tensor_parallel=4)
    yield _profile(
        "qwen2.5-0.5b-drafted-a100",
        "Qwen2.5-0.5B",
        a100,
        _lines(PLACEHOLDER, *_QWEN_32B),
        drafter="Qwen2.5-0.5B",
        note="figures of Qwen2.5-32B",
    )
    yield _profile(
        "qwen2.5-1.5b-drafted-a100",
        "Qwen2.5-1.5B",
        a100,
        _lines(PLACEHOLDER, *_OPT_DRAFTED),
        drafter="Qwen2.5-0.5B",
        note="figures of OPT-6.7B with a drafter",
    )
    older = "from a comment, older"
    for workload, token_us in (("humaneval", 59.141), ("sharegpt-azure", 53.141)):
        coefficients = _lines(FITTED, token_us, 2.769, 30.300)
        yield _profile(f"opt-6.7b-{workload}-a100", opt, a100, coefficients, workload=workload, note=older)
    yield _profile(
        "32b-unnamed",
        "unnamed, about 32B",
        "unknown",
        _lines(FITTED, 115.401, 4.520, 45.129),
        note="in the fitting script; neither model nor hardware is stated",
    )


def _successor() -> Iterator[HardwareProfile]:
    """Yield the profiles in the code of its successor: costs of tokens, requests and past tokens.

    Hardware is named by its plots. Its past tokens include those before prefill chunks, which the context term of
    `StepShape` does not.
    """
    a100, h200 = "A100", "H200"
    qwen, gemma = "Qwen2.5-7B", "Gemma-3-27B"
    commented = "commented out in the source"
    yield _profile("unknown-model", "any", "unknown", _terms(PLACEHOLDER, 48.6, 16.9, 80, 14.0))
    yield _profile("qwen2.5-7b-a100", qwen, a100, _terms(FITTED, 51.0, 16.9, 80, 14.0))
    for workload, figures in (
        ("sharegpt-code", (51.0, 0.0, 80.0, 14.0)),
        ("azure-chat-2023", (55.5, 0.0, 90.0, 14.0)),
        ("arxiv-summary", (65.65, 0.0, 80.0, 13.0)),
    ):
        yield _profile(f"qwen2.5-7b-{workload}-a100", qwen, a100, _terms(FITTED, *figures), workload=workload)
    for number, figures in enumerate(((48.6, 37.0, 50.0, 13.0), (62.5, 37.0, 50.0, 14.0)), start=1):
        yield _profile(f"qwen2.5-7b-alternative-{number}-a100", qwen, a100, _terms(FITTED, *figures), note=commented)
    yield _profile("gemma-3-27b-h200", gemma, h200, _terms(FITTED, 76.9, 58.2, 44, 19.0))
    for workload, figures in (
        ("azure-chat", (71.0, 38.2, 93.8, 18.0)),
        ("azure-code", (36.2, 33.1, 97.0, 17.6)),
        ("sharegpt-code", (36.2, 33.1, 97.0, 17.6)),
    ):
        yield _profile(f"gemma-3-27b-{workload}-h200", gemma, h200, _terms(FITTED, *figures), workload=workload)
    yield _profile(
        "gemma-3-27b-alternative-h200",
        gemma,
        h200,
        _terms(FITTED, 36.2, 33.1, 50, 17.6, pair_ns=48.6),
        note="with a term for past times current tokens",
    )
    yield _profile(
        "llama-3.1-70b",
        "Llama-3.1-70B",
        "unknown",
        _terms(PLACEHOLDER, 62.0, 37.0, 50.0, 14.0),
        note="too fast for a model of this size on one device",
    )
    yield _profile("test-fixture", "none", "unknown", _terms(PLACEHOLDER, 61.0, 16.0, 350, 18.0))


def _measured() -> Iterator[HardwareProfile]:
    """Yield the profiles that were measured with this repository."""
    yield _profile(
        "smollm2-135m-cpu",
        "SmolLM2-135M",
        "one core of an AMX Xeon",
        SMOLLM2_135M_ONE_CORE,
        note="bfloat16, eager vLLM; benchmarks/step_times.py measures it again",
    )


PROFILES = {profile.name: profile for source in (_measured, _slos_serve, _successor) for profile in source()}
"""Profiles by name."""


def hardware_profile(name: str) -> HardwareProfile:
    """Return the profile of that name.

    Raises:
        UnknownHardwareError: there is none.
    """
    try:
        return PROFILES[name]
    except KeyError:
        raise UnknownHardwareError(f"no profile {name!r}; known: {', '.join(sorted(PROFILES))}") from None
