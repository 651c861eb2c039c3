"""Named contracts: the built-in ones of the paper, with those that the configuration adds or replaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.config.settings import DecodeTargetSettings, ProfileSettings
from services.slo.contract import (
    PAPER_PROFILES,
    Contract,
    ContractError,
    DecodeTarget,
    OnOverload,
    PrefillTarget,
    ProfileBook,
    decode_targets,
)


def profile_book(profiles: Mapping[str, ProfileSettings]) -> ProfileBook:
    """Build the book of named contracts.

    Raises:
        ContractError: a configured profile is no valid contract; the path of the error begins with `profiles.`.
    """
    return ProfileBook({**PAPER_PROFILES, **{name: _contract(name, options) for name, options in profiles.items()}})


def _contract(name: str, options: ProfileSettings) -> Contract:
    try:
        return Contract(
            prefill=PrefillTarget(options.prefill.ttft_s, options.prefill.max_slowdown) if options.prefill else None,
            decode=_targets("decode", options.decode),
            final_decode=_targets("final_decode", options.final_decode),
            value=options.value,
            on_overload=OnOverload(options.on_overload),
        )
    except ContractError as error:
        raise error.renamed(f"profiles.{name}.{error.path}") from error


def _targets(path: str, stages: Iterable[DecodeTargetSettings]) -> tuple[DecodeTarget, ...]:
    return decode_targets(path, ((stage.tpot_s, stage.ends_with) for stage in stages))
