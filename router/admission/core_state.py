"""The state of an admission core as bytes, which a recording carries so that each segment can be replayed by itself."""

from __future__ import annotations

import enum
import io
import pickle
import sys
from dataclasses import fields
from typing import IO, Any

from services.slo.admission import AdmissionCore, RequestFacts
from services.slo.admission.recording import RecordingCore, ReplayedRequest
from services.slo.admission.recording.snapshots import RequestSnapshot
from services.slo.contract import DecodeTarget

_PICKLED = ("services.slo.",)
"""Packages whose classes the state of a core is made of."""
_PICKLED_OTHERS = frozenset(
    {
        ("builtins", "set"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("collections", "deque"),
        ("builtins", "dict"),
        ("builtins", "int"),
        ("random", "Random"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("services.slo.admission.core", "_cost"),
    }
)


class _StatePickler(pickle.Pickler):
    """Leaves out what a core does not read of the router's requests, tokens of prompts, and texts of contracts."""

    def __init__(self, file: IO[bytes], core: RecordingCore) -> None:
        super().__init__(file, protocol=5)
        self._requests = {id(request) for request in core.requests}
        self._facts = core.recorded_facts

    def persistent_id(self, value: Any) -> object:
        return value.facts if id(value) in self._requests else None

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, RequestFacts):
            return _restored_facts, tuple(getattr(self._facts(value), field.name) for field in fields(RequestFacts))
        if isinstance(value, DecodeTarget):
            target = value.without_text()
            return DecodeTarget, (target.tpot_s, target.ends_with)
        if isinstance(value, enum.Enum):
            return type(value), (value.value,)
        return NotImplemented


def _restored_facts(*values: Any) -> RequestFacts:
    return RequestFacts(*values)


class _StateUnpickler(pickle.Unpickler):
    """Makes values of the admission core and of nothing else: a recording may come from anywhere."""

    def __init__(self, file: IO[bytes], snapshots: dict[str, RequestSnapshot]) -> None:
        super().__init__(file)
        self._snapshots = snapshots
        self.requests: dict[str, ReplayedRequest] = {}

    def persistent_load(self, facts: Any) -> ReplayedRequest:
        request_id = facts.request_id
        if request_id not in self.requests:
            self.requests[request_id] = ReplayedRequest(facts, self._snapshots[request_id])
        return self.requests[request_id]

    def find_class(self, module: str, name: str) -> Any:
        ours = (module, name) == (__name__, _restored_facts.__name__)
        if ours or (module, name) in _PICKLED_OTHERS:
            return super().find_class(module, name)
        # A name with a dot reaches what a module imports, and a function does what it is made for.
        if module.startswith(_PICKLED) and "." not in name:
            found = getattr(sys.modules.get(module), name, None)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a recording")


def pickled_state(core: RecordingCore) -> bytes:
    """Return everything that the answers of a core depend on, but for what its requests are."""
    buffer = io.BytesIO()
    _StatePickler(buffer, core).dump(core.state())
    return buffer.getvalue()


def restored_core(
    state: bytes, snapshots: dict[str, RequestSnapshot]
) -> tuple[AdmissionCore, dict[str, ReplayedRequest]]:
    """Return a core in a pickled state, and the admitted requests that it holds.

    Args:
        snapshots: what could be read of the admitted requests then, by id.

    Raises:
        UnpicklingError: the state holds what is no part of a core.
        Exception: the state is damaged; pickle raises errors of many types then.
    """
    unpickler = _StateUnpickler(io.BytesIO(state), snapshots)
    return AdmissionCore.restored(unpickler.load()), unpickler.requests
