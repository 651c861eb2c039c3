"""Sessions: requests of one task, such as a tool loop, share a contract and a deadline that counts from the first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from services.slo.contract import Contract

MAX_SESSIONS = 10_000
"""Largest number of sessions remembered. Clients name sessions as they like, so beyond it the one unheard of for
longest is forgotten (chosen: a few megabytes)."""
MAX_WEIGHT = 50_000
"""Largest sum of the weights of all sessions, likewise: a session weighs 1, and 1 more for each decode stage and each
64 characters that end one, about 200 bytes."""


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """The terms that apply to one request of a session."""

    contract: Contract
    """Contract of the request, with what it inherits from its session."""
    task_due_s: float | None = None
    """Time by which the whole task is due, on the caller's clock; None without a deadline."""


@dataclass(slots=True)
class _Session:
    contract: Contract
    began_s: float

    @property
    def weight(self) -> int:
        stages = (*self.contract.decode, *self.contract.final_decode)
        return 1 + len(stages) + sum(len(stage.ends_with) for stage in stages) // 64


@dataclass(slots=True)
class SessionBook:
    """The sessions of one router, bounded in number; owned by one event loop."""

    max_sessions: int = MAX_SESSIONS
    max_weight: int = MAX_WEIGHT
    _sessions: OrderedDict[tuple[str, str], _Session] = field(default_factory=OrderedDict)
    """Sessions by owner and id, the one heard of last at the end."""
    _weight: int = 0

    def terms(self, contract: Contract, arrival_s: float, owner: str = "") -> SessionTerms:
        """Return the terms of a request that came with `contract`, and remember them for its session.

        The first request of a session sets the session's contract. A later one may leave out what it wants unchanged:
        targets, value and task deadline are then the session's. The final one takes the loose last targets, if the
        contract has any, and ends the session.

        Args:
            owner: whose session it is: two owners may use one id for two sessions.
        """
        if not contract.session_id:
            return _terms(contract, arrival_s)
        key = (owner, contract.session_id)
        known = self._sessions.pop(key, None)
        if known is not None:
            self._weight -= known.weight
        session = known or _Session(contract, arrival_s)
        merged = _merge(contract, session.contract)
        if not contract.session_final:
            kept = self._sessions[key] = _Session(merged, session.began_s)
            self._weight += kept.weight
            while len(self._sessions) > 1 and (
                len(self._sessions) > self.max_sessions or self._weight > self.max_weight
            ):
                self._weight -= self._sessions.popitem(last=False)[1].weight
        return _terms(merged, session.began_s)

    def preview(self, contract: Contract, now_s: float, owner: str = "") -> SessionTerms:
        """Return the terms that a request would get if it came now, and remember nothing."""
        session = self._sessions.get((owner, contract.session_id)) if contract.session_id else None
        began_s = now_s if session is None else session.began_s
        return _terms(contract if session is None else _merge(contract, session.contract), began_s)


def _terms(merged: Contract, began_s: float) -> SessionTerms:
    if merged.session_id and merged.session_final and merged.final_decode:
        merged = replace(merged, decode=merged.final_decode)
    return SessionTerms(merged, None if merged.task_deadline_s is None else began_s + merged.task_deadline_s)


def _merge(contract: Contract, session: Contract) -> Contract:
    if contract.promises_anything:
        return replace(
            contract,
            task_deadline_s=session.task_deadline_s if contract.task_deadline_s is None else contract.task_deadline_s,
        )
    return replace(
        session,
        session_final=contract.session_final,
        on_overload=contract.on_overload,
        task_deadline_s=session.task_deadline_s if contract.task_deadline_s is None else contract.task_deadline_s,
    )
