"""Client of a slos-serve cluster: LLM text with promised latency.

`AsyncClient` and `Client` speak gRPC to one or more routers. What they send and get are frozen dataclasses; every error
is a `SlosServeError`. Seconds everywhere. The stubs of the wire contract itself are in `slos_serve.v1`.

An `AsyncClient` belongs to the event loop that first uses it; a `Client` may be used from any number of threads.
"""

from slos_serve.aio import AsyncClient, AsyncSession, AsyncStream
from slos_serve.blocking import Client, Session, Stream
from slos_serve.cluster import (
    ClusterState,
    Counters,
    ProfileState,
    Scheduling,
    Trouble,
    WorkerHealth,
    WorkerRole,
    WorkerState,
)
from slos_serve.connection import Keepalive, Tls
from slos_serve.contract import Contract, DecodeTarget, OnOverload, PrefillTarget, Profile
from slos_serve.credential import Credential, CredentialError
from slos_serve.errors import (
    DeadlineError,
    DuplicateRequestError,
    EngineFailureError,
    ImpossibleContractError,
    InvalidRequestError,
    NoWorkerError,
    PermissionDeniedError,
    QuotaExceededError,
    RefusedError,
    RequestCancelledError,
    SlosServeError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    UnknownRequestError,
    UnreachableError,
)
from slos_serve.events import (
    Achieved,
    Admission,
    Binding,
    Completion,
    Event,
    Finished,
    FinishReason,
    KvPull,
    Phases,
    Prediction,
    Quote,
    StageAchieved,
    TokenLogprob,
    Tokens,
    Verdict,
)
from slos_serve.request import CallOptions, Message, Prompt, RequestOptions, Sampling
from slos_serve.retry import RetryPolicy

__all__ = [
    "Achieved",
    "Admission",
    "AsyncClient",
    "AsyncSession",
    "AsyncStream",
    "Binding",
    "CallOptions",
    "Client",
    "ClusterState",
    "Completion",
    "Contract",
    "Counters",
    "Credential",
    "CredentialError",
    "DeadlineError",
    "DecodeTarget",
    "DuplicateRequestError",
    "EngineFailureError",
    "Event",
    "FinishReason",
    "Finished",
    "ImpossibleContractError",
    "InvalidRequestError",
    "Keepalive",
    "KvPull",
    "Message",
    "NoWorkerError",
    "OnOverload",
    "PermissionDeniedError",
    "Phases",
    "Prediction",
    "PrefillTarget",
    "Profile",
    "ProfileState",
    "Prompt",
    "QuotaExceededError",
    "Quote",
    "RefusedError",
    "RequestCancelledError",
    "RequestOptions",
    "RetryPolicy",
    "Sampling",
    "Scheduling",
    "Session",
    "SlosServeError",
    "StageAchieved",
    "Stream",
    "Tls",
    "TokenLogprob",
    "Tokens",
    "Trouble",
    "UnauthenticatedError",
    "UnavailableError",
    "UnknownModelError",
    "UnknownRequestError",
    "UnreachableError",
    "Verdict",
    "WorkerHealth",
    "WorkerRole",
    "WorkerState",
]
