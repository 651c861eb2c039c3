"""Resolution of what a client asks to the contract that is planned, and the way back to what the client is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import slos_serve
from services.contract.headers import CONTRACT_HEADERS, check_names, contract_of_headers
from services.contract.terms import PROFILE
from services.slo.contract import (
    MAX_STAGES,
    Contract,
    ContractError,
    DecodeTarget,
    OnOverload,
    PrefillTarget,
    ProfileBook,
)
from services.slo.contract import decode_targets as checked_targets
from slos_serve.contract import contract_from_wire
from slos_serve.v1 import contract_pb2

NO_TARGETS = Contract()
"""Contract that supplies nothing, for requests without a profile."""
_CONTRACT_HEADERS = frozenset(CONTRACT_HEADERS)
_STAGE = re.compile(r"(?P<list>decode|final_decode)\[(?P<index>\d+)\]\.(?P<field>\w+)")


def contract_of_call(message: contract_pb2.Contract, metadata: Mapping[str, str], profiles: ProfileBook) -> Contract:
    """Return the contract of a gRPC call: what its message leaves unset, its metadata supply, and then its profile.

    Raises:
        ContractError: a field makes no sense; the path is that of the request message, or the name of the metadata.
    """
    _check_stages(message)
    check_names(metadata)
    asked = said = contract_from_wire(message)
    if not _CONTRACT_HEADERS.isdisjoint(metadata):
        heard = contract_of_headers(metadata)
        asked = replace(
            said,
            profile=said.profile or heard.profile,
            prefill=said.prefill or heard.prefill,
            decode=said.decode or heard.decode,
            on_overload=said.on_overload or heard.on_overload,
        )
    try:
        base = profiles.lookup(asked.profile) if asked.profile else NO_TARGETS
    except ContractError as error:
        raise error.renamed(f"contract.{error.path}" if said.profile else PROFILE.headers[0]) from error
    try:
        return resolve(asked, base)
    except ContractError as error:
        # Metadata and profile are checked where they are read: what is wrong here came with the message.
        raise error.renamed(f"contract.{_wire_path(error.path, said)}") from error


def resolve(asked: slos_serve.Contract, base: Contract) -> Contract:
    """Return the contract that is planned.

    Args:
        base: the profile, or a contract without targets; it supplies what `asked` leaves unset.

    Raises:
        ContractError: a field makes no sense; the path is that of `Contract`.
    """
    prefill = asked.prefill
    return Contract(
        profile=base.profile,
        prefill=base.prefill if prefill is None else PrefillTarget(prefill.ttft_s, prefill.max_slowdown),
        decode=_targets("decode", asked.decode) or base.decode,
        final_decode=_targets("final_decode", asked.final_decode) or base.final_decode,
        value=base.value if asked.value is None else asked.value,
        on_overload=base.on_overload if asked.on_overload is None else _ON_OVERLOAD[asked.on_overload],
        session_id=asked.session_id,
        session_final=asked.session_final,
        task_deadline_s=asked.task_deadline_s,
    )


def in_force(contract: Contract) -> slos_serve.Contract:
    """Return a planned contract as its client is told."""
    prefill = contract.prefill
    return slos_serve.Contract(
        profile=contract.profile,
        prefill=None if prefill is None else slos_serve.PrefillTarget(prefill.ttft_s, prefill.max_slowdown),
        decode=_told(contract.decode),
        final_decode=_told(contract.final_decode),
        value=contract.value,
        on_overload=_TOLD_ON_OVERLOAD[contract.on_overload],
        session_id=contract.session_id,
        session_final=contract.session_final,
        task_deadline_s=contract.task_deadline_s,
    )


_ON_OVERLOAD = {choice: OnOverload[choice.name] for choice in slos_serve.OnOverload}
_TOLD_ON_OVERLOAD = {planned: told for told, planned in _ON_OVERLOAD.items()}


def _targets(path: str, stages: Iterable[slos_serve.DecodeTarget]) -> tuple[DecodeTarget, ...]:
    return checked_targets(path, ((stage.tpot_s, stage.ends_with) for stage in stages))


def _told(stages: Iterable[DecodeTarget]) -> tuple[slos_serve.DecodeTarget, ...]:
    return tuple(slos_serve.DecodeTarget(stage.tpot_s, stage.ends_with) for stage in stages)


def _check_stages(message: contract_pb2.Contract) -> None:
    """Refuse more stages than a contract may have, and those that `contract_from_wire` would pass over.

    It has to read the stages of later versions.
    """
    for field, count, most in (
        ("stages", len(message.stages), MAX_STAGES + 1),
        ("final_stages", len(message.final_stages), MAX_STAGES),
    ):
        if count > most:
            raise ContractError(f"contract.{field}", f"at most {MAX_STAGES} decode stages", count)
    for index, stage in enumerate(message.stages):
        path = f"contract.stages[{index}]"
        match stage.WhichOneof("kind"):
            case "decode":
                continue
            case "prefill" if index > 0:
                raise ContractError(f"{path}.prefill", "the prefill stage comes first, and once")
            case "prefill" if stage.prefill.WhichOneof("target") is None:
                raise ContractError(f"{path}.prefill", "needs ttft_s or max_slowdown")
            case None:
                raise ContractError(f"{path}.kind", "one of prefill and decode is needed")


def _wire_path(path: str, said: slos_serve.Contract) -> str:
    """Return the path in the message of a field of `Contract`: there all stages are one list, prefill first."""
    stage = _STAGE.fullmatch(path)
    if stage is not None and stage["list"] == "decode":
        index = int(stage["index"]) + (said.prefill is not None)
        return f"stages[{index}].decode.{stage['field']}"
    if stage is not None:
        return f"final_stages[{stage['index']}].{stage['field']}"
    if path.startswith("prefill"):
        return f"stages[0].{path}"
    return {"decode": "stages", "final_decode": "final_stages"}.get(path, path)
