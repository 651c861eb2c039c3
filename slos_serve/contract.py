"""The contract that a client asks for: a latency target for each stage of a request."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from slos_serve.v1 import contract_pb2


class OnOverload(enum.Enum):
    """The choice of what to do with a request whose contract cannot be guaranteed."""

    BEST_EFFORT = contract_pb2.ON_OVERLOAD_BEST_EFFORT
    """Serve it in leftover capacity, without a promise."""
    REFUSE = contract_pb2.ON_OVERLOAD_REFUSE
    """Raise `RefusedError` or `ImpossibleContractError`."""


class Profile(enum.StrEnum):
    """The contracts that every cluster knows by name; its configuration may add others, which are plain strings."""

    SUMMARIZER = "summarizer"
    """Long prompts, whose first token is wanted soon."""
    CODER = "coder"
    """Code completion: tight time per token."""
    CHATBOT = "chatbot"
    """Conversation at the speed of reading."""
    TOOL_USE = "tool_use"
    """An agent's requests: tight but for the last of a session."""
    REASONING = "reasoning"
    """Fast thinking, then an answer at the speed of reading."""


@dataclass(frozen=True, slots=True)
class PrefillTarget:
    """A limit to the time from arrival to first token, queueing included. Exactly one of the two fields is set."""

    ttft_s: float | None = None
    """Time to first token, in seconds."""
    max_slowdown: float | None = None
    """Time to first token as a multiple of the prefill time of this prompt on an idle worker; at least 1."""

    def __post_init__(self) -> None:
        if (self.ttft_s is None) == (self.max_slowdown is None):
            raise ValueError("a prefill target is exactly one of ttft_s and max_slowdown")


@dataclass(frozen=True, slots=True)
class DecodeTarget:
    """A limit to the time of output tokens: token k of the stage is due k * tpot_s after the stage began."""

    tpot_s: float
    """Time per output token, in seconds."""
    ends_with: str = ""
    """The text that ends the stage; empty: it lasts to the end of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """The targets of one request. `profile` supplies what is unset; a request without any target is best effort."""

    profile: str = ""
    """A contract known to the cluster by name: a `Profile`, or one of its configuration."""
    prefill: PrefillTarget | None = None
    """Target of the prefill stage. None: what the profile says, or no target."""
    decode: tuple[DecodeTarget, ...] = ()
    """Targets of the decode stages, in order. Empty: what the profile says, or no target."""
    final_decode: tuple[DecodeTarget, ...] = ()
    """Decode stages of the last request of a session. Empty: the same as of the others."""
    value: float | None = None
    """Worth of keeping this contract, relative to others. None: 1, or what the profile says."""
    on_overload: OnOverload | None = None
    """What to do if the contract cannot be guaranteed. None: best effort, or what the profile says."""
    session_id: str = ""
    """Id that the requests of one task share; `AsyncClient.session` and `Client.session` set it."""
    session_final: bool = False
    """Whether it is the last request of its session."""
    task_deadline_s: float | None = None
    """Deadline of the whole task, in seconds from the first request of the session."""

    @classmethod
    def latency(
        cls, *, ttft_s: float | None = None, tpot_s: float | None = None, on_overload: OnOverload | None = None
    ) -> Contract:
        """Return a contract of the common kind: one time to first token and one time per output token, in seconds."""
        return cls(
            prefill=None if ttft_s is None else PrefillTarget(ttft_s=ttft_s),
            decode=() if tpot_s is None else (DecodeTarget(tpot_s),),
            on_overload=on_overload,
        )


def session_contract(contract: Contract, session_id: str, *, final: bool) -> Contract:
    """Return the contract of one request of a session. It is sent whole: a router that takes over must know it."""
    return replace(contract, session_id=session_id, session_final=final)


def contract_to_wire(contract: Contract) -> contract_pb2.Contract:
    """Return a contract as a message."""
    message = contract_pb2.Contract(
        profile=contract.profile,
        value=contract.value,
        session_id=contract.session_id,
        session_final=contract.session_final,
        task_deadline_s=contract.task_deadline_s,
    )
    if contract.on_overload is not None:
        message.on_overload = contract.on_overload.value
    if contract.prefill is not None:
        prefill = message.stages.add().prefill
        if contract.prefill.ttft_s is not None:
            prefill.ttft_s = contract.prefill.ttft_s
        elif contract.prefill.max_slowdown is not None:
            prefill.max_slowdown = contract.prefill.max_slowdown
    for target in contract.decode:
        message.stages.add(decode=contract_pb2.DecodeStage(tpot_s=target.tpot_s, ends_with=target.ends_with))
    for target in contract.final_decode:
        message.final_stages.add(tpot_s=target.tpot_s, ends_with=target.ends_with)
    return message


def contract_from_wire(message: contract_pb2.Contract) -> Contract:
    """Return the contract in a message, without stages of kinds that later versions may add."""
    prefill: PrefillTarget | None = None
    decode: list[DecodeTarget] = []
    for stage in message.stages:
        match stage.WhichOneof("kind"):
            case "prefill" if stage.prefill.WhichOneof("target") == "ttft_s":
                prefill = PrefillTarget(ttft_s=stage.prefill.ttft_s)
            case "prefill" if stage.prefill.WhichOneof("target") == "max_slowdown":
                prefill = PrefillTarget(max_slowdown=stage.prefill.max_slowdown)
            case "decode":
                decode.append(DecodeTarget(stage.decode.tpot_s, stage.decode.ends_with))
    return Contract(
        profile=message.profile,
        prefill=prefill,
        decode=tuple(decode),
        final_decode=tuple(DecodeTarget(stage.tpot_s, stage.ends_with) for stage in message.final_stages),
        value=message.value if message.HasField("value") else None,
        on_overload=_ON_OVERLOAD.get(message.on_overload),
        session_id=message.session_id,
        session_final=message.session_final,
        task_deadline_s=message.task_deadline_s if message.HasField("task_deadline_s") else None,
    )


_ON_OVERLOAD: dict[int, OnOverload] = {choice.value: choice for choice in OnOverload}
