"""The table of the contracts that every cluster knows by name."""

from __future__ import annotations

from cli.reference.page import table
from services.slo.contract import PAPER_PROFILES, Contract, DecodeTarget, PrefillTarget


def profile_table() -> str:
    """Write the targets of every built-in profile."""
    rows = [
        (f"`{name}`", _ttft(contract.prefill), _tpot(contract.decode), _final(contract))
        for name, contract in PAPER_PROFILES.items()
    ]
    return table(("profile", "first token due", "time per output token", "last request of a session"), rows)


def _ttft(target: PrefillTarget | None) -> str:
    if target is None:
        return "no target"
    if target.ttft_s is not None:
        return f"after {target.ttft_s * 1e3:g} ms"
    return f"after {target.max_slowdown:g} times what an idle worker takes for this prompt"


def _tpot(targets: tuple[DecodeTarget, ...]) -> str:
    parts = [
        f"{target.tpot_s * 1e3:g} ms" + (f" until `{target.ends_with}`" if target.ends_with else "")
        for target in targets
    ]
    return ", then ".join(parts) or "no target"


def _final(contract: Contract) -> str:
    return _tpot(contract.final_decode) if contract.final_decode else "the same"
