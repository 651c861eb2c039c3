"""What latency a made-up client asks for, as said on a command line or in a row of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import slos_serve
from services.contract.resolution import NO_TARGETS, resolve
from services.slo.contract import Contract, ContractError, ProfileBook

NOTHING = "none"
_FIGURES = {"ttft": "ttft_s", "slowdown": "max_slowdown", "tpot": "tpot_s"}


@dataclass(frozen=True, slots=True)
class RequestedSlo:
    """A profile by name, or targets of one's own, or neither. Seconds."""

    profile: str = ""
    ttft_s: float | None = None
    max_slowdown: float | None = None
    tpot_s: float | None = None
    refuse: bool = False
    """Rather refused than served without a guarantee."""

    @property
    def name(self) -> str:
        """The name under which it is reported; `refuse` is left out."""
        targets = [f"{word}={value:g}" for word, name in _FIGURES.items() if (value := getattr(self, name)) is not None]
        return ",".join([self.profile, *targets] if self.profile else targets) or NOTHING

    @property
    def promises_anything(self) -> bool:
        return self != RequestedSlo(refuse=self.refuse)

    def asked(self) -> slos_serve.Contract:
        """Return the contract as a client sends it.

        Raises:
            ContractError: both a TTFT and a slowdown are given.
        """
        prefill = None
        if self.ttft_s is not None or self.max_slowdown is not None:
            try:
                prefill = slos_serve.PrefillTarget(self.ttft_s, self.max_slowdown)
            except ValueError as error:
                raise ContractError("prefill", str(error)) from error
        return slos_serve.Contract(
            profile=self.profile,
            prefill=prefill,
            decode=() if self.tpot_s is None else (slos_serve.DecodeTarget(self.tpot_s),),
            on_overload=slos_serve.OnOverload.REFUSE if self.refuse else None,
        )

    def contract(self, profiles: ProfileBook) -> Contract:
        """
        Raises:
            ContractError
        """
        return resolve(self.asked(), profiles.lookup(self.profile) if self.profile else NO_TARGETS)


def parse_slo(text: str) -> RequestedSlo:
    """A profile by name or targets, `refuse` behind them: `chatbot`, `ttft=0.5,tpot=0.05`, `slowdown=5,refuse`, `none`.

    Raises:
        ContractError: it is no such thing.
    """
    figures: dict[str, float] = {}
    profile, refuse = "", False
    for part in text.split(","):
        word, separator, value = (piece.strip() for piece in part.partition("="))
        if separator and word in _FIGURES:
            figures[_FIGURES[word]] = _number(text, value)
        elif separator or not word:
            raise ContractError("slo", f"{text!r}: say a profile, or some of ttft=, slowdown=, tpot= (seconds)")
        elif word == "refuse":
            refuse = True
        elif word != NOTHING:
            profile = word
    slo = RequestedSlo(profile, **figures, refuse=refuse)
    # Impossible figures are faults of the command line, whatever the profile holds.
    RequestedSlo(ttft_s=slo.ttft_s, max_slowdown=slo.max_slowdown, tpot_s=slo.tpot_s).contract(ProfileBook())
    return slo


@dataclass(frozen=True, slots=True)
class SloMix:
    """Asks and how often each comes."""

    slos: tuple[RequestedSlo, ...] = (RequestedSlo(),)
    weights: tuple[float, ...] = (1.0,)

    def draw(self, rng: np.random.Generator) -> RequestedSlo:
        weights = np.array(self.weights)
        return self.slos[int(rng.choice(len(self.slos), p=weights / weights.sum()))]


def parse_slo_mix(texts: Sequence[str]) -> SloMix:
    """Return the mix that texts of the form `ASK@WEIGHT` name; without a weight it is 1. Nothing asked: no contracts.

    Raises:
        ContractError
    """
    if not texts:
        return SloMix()
    slos, weights = [], []
    for text in texts:
        slo, separator, weight = text.rpartition("@")
        slos.append(parse_slo(slo if separator else text))
        weights.append(_number(text, weight) if separator else 1.0)
    if any(weight < 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        raise ContractError("slo", f"weights are not negative and not all zero; got {weights}")
    return SloMix(tuple(slos), tuple(weights))


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ContractError("slo", f"{text!r}: {value!r} is no number") from None
