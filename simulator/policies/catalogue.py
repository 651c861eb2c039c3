"""The catalogue of policies: each by name, with the variants that a user would try before settling on one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from simulator.cluster import MakePolicy, PolicyContext
from simulator.machine import Machine
from simulator.policies import fcfs
from simulator.policies.choices import Choices, Roles
from simulator.policies.promising import PromisingPolicy
from simulator.policies.qoserve import qoserve
from simulator.policies.slos_serve import slos_serve

MARGINS = (0.1, 0.05, 0.0)
"""Shares of a step's time that are left free, in the order in which they are tried."""
CHOICES = Choices()
HEADROOMS = {"headroom for one typical request": 1.0, "headroom for four typical requests": 4.0}


class UnknownPolicyError(Exception):
    """There is no such policy; the message lists those there are."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The setting of a comparison, to which a policy may be tuned: hardware and targets."""

    machine: Machine
    workers: int
    tpots_s: tuple[float, ...]
    """TPOT targets of the scenario in seconds, ascending."""
    choices: Choices = CHOICES
    """What an experiment changes in ours."""

    @property
    def splits(self) -> range:
        """The numbers of workers that may only prefill, so that at least one decodes."""
        return range(1, self.workers)


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy with one setting of what can be tuned in it."""

    label: str
    make: MakePolicy


class Variants(Protocol):
    """A function that lists the variants of a policy in a setting; none, if the policy cannot be had there."""

    def __call__(self, setting: Setting) -> Sequence[Variant]: ...


def _ours(roles: Roles) -> Variants:
    """Return ours with the defaults that ship; only how many workers do what is looked for."""

    def variants(setting: Setting) -> Sequence[Variant]:
        if roles is Roles.COLOCATED:
            return [Variant("", _promising(replace(setting.choices, roles=roles), setting))]
        return [
            Variant(
                f"{prefills} prefill, {setting.workers - prefills} decode",
                _promising(replace(setting.choices, roles=roles, prefills=prefills), setting),
            )
            for prefills in setting.splits
        ]

    return variants


def _ours_tuned(setting: Setting) -> Sequence[Variant]:
    """Return what a user would try of ours where every worker does everything; an experiment's own choice stands."""
    given = replace(setting.choices, roles=Roles.COLOCATED)
    variants = [("", given)]
    if not given.headroom_requests:
        variants += [(label, replace(given, headroom_requests=count)) for label, count in HEADROOMS.items()]
    if not given.speculation and setting.machine.max_draft_tokens:
        variants.insert(0, ("drafts", replace(given, speculation=True)))
    return [Variant(label, _promising(choices, setting)) for label, choices in variants]


def _promising(choices: Choices, setting: Setting) -> MakePolicy:
    def make(context: PolicyContext) -> PromisingPolicy:
        return PromisingPolicy(context, choices, setting.tpots_s)

    return make


def _speculative(setting: Setting) -> Sequence[Variant]:
    return [Variant("", fcfs.vllm_speculative)] if setting.machine.max_draft_tokens else []


def _with_margins(make: Callable[[Setting, float], MakePolicy]) -> Variants:
    """Return variants that leave some of a step's time free, for policies that know nothing of noise."""

    def variants(setting: Setting) -> Sequence[Variant]:
        return [Variant(f"{margin:.0%} free", make(setting, margin)) for margin in MARGINS]

    return variants


def _same(make: MakePolicy) -> Variants:
    def variants(setting: Setting) -> Sequence[Variant]:
        return [Variant("", make)] if setting.workers else []

    return variants


def _distserve(setting: Setting) -> Sequence[Variant]:
    return [
        Variant(f"{prefills} prefill, {setting.workers - prefills} decode", fcfs.distserve(prefills))
        for prefills in setting.splits
    ]


OURS_TUNED = "ours-colocated-tuned"
"""Ours with settings chosen for each scenario, as the other policies have theirs; not what ships."""
OURS = ("ours-disaggregated", "ours-local-prefill", "ours-colocated")
POLICIES: Mapping[str, Variants] = {
    "ours-disaggregated": _ours(Roles.DISAGGREGATED),
    "ours-local-prefill": _ours(Roles.LOCAL_PREFILL),
    "ours-colocated": _ours(Roles.COLOCATED),
    OURS_TUNED: _ours_tuned,
    "vllm-prefill-first": _same(fcfs.vllm_prefill_first),
    "vllm-chunked": _same(fcfs.vllm_chunked),
    "vllm-speculative": _speculative,
    "sarathi": _with_margins(lambda setting, margin: fcfs.sarathi(setting.tpots_s[0], margin)),
    "distserve": _distserve,
    "qoserve": _with_margins(lambda _, margin: qoserve(margin)),
    "slos-serve-paper": _with_margins(lambda setting, margin: slos_serve(setting.tpots_s, margin)),
}


def policy(name: str) -> Variants:
    """Return the variants of the policy of that name.

    Raises:
        UnknownPolicyError: there is none.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise UnknownPolicyError(f"no policy {name!r}; there are {', '.join(POLICIES)}") from None
