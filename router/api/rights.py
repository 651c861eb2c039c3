"""The tables that say what a caller of a router must be allowed to do, and what its certificate must state."""

from __future__ import annotations

from services.identity.peer import PeerRole
from services.identity.principal import Right
from services.rpc.guard import OPEN, Table
from services.rpc.peers import ANY_ROLE, Roles

INFERENCE = "/slos_serve.v1.Inference/"
VLLM = "/vllm.grpc.engine.VllmEngine/"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/"
CHANNELZ = "/grpc.channelz.v1.Channelz/"

_GENERATE = frozenset({Right.GENERATE})
_CANCEL = frozenset({Right.GENERATE, Right.OPERATE})
"""Clients cancel their own requests, operators every request; `router.api.cancelling` tells them apart."""
_STATE = frozenset({Right.GENERATE, Right.OBSERVE})
"""Clients get a part of the state only; `router.api.cluster_state` says which."""
_OBSERVE = frozenset({Right.OBSERVE})

ROUTER_RIGHTS: Table = {
    f"{INFERENCE}Generate": _GENERATE,
    f"{INFERENCE}Quote": _GENERATE,
    f"{INFERENCE}Cancel": _CANCEL,
    f"{INFERENCE}GetClusterState": _STATE,
    f"{INFERENCE}WatchClusterState": _STATE,
    f"{VLLM}Generate": _GENERATE,
    f"{VLLM}Abort": _CANCEL,
    f"{VLLM}HealthCheck": _GENERATE,
    f"{VLLM}GetModelInfo": _GENERATE,
    f"{VLLM}GetServerInfo": _GENERATE,
    f"{HEALTH}Check": OPEN,
    f"{HEALTH}Watch": OPEN,
    f"{REFLECTION}ServerReflectionInfo": OPEN,
    f"{CHANNELZ}GetTopChannels": _OBSERVE,
    f"{CHANNELZ}GetServers": _OBSERVE,
    f"{CHANNELZ}GetServer": _OBSERVE,
    f"{CHANNELZ}GetServerSockets": _OBSERVE,
    f"{CHANNELZ}GetChannel": _OBSERVE,
    f"{CHANNELZ}GetSubchannel": _OBSERVE,
    f"{CHANNELZ}GetSocket": _OBSERVE,
}
"""Rights of which a call of a method needs one. A method that is not named is denied to everybody."""

_CALLERS = frozenset({PeerRole.GATEWAY, PeerRole.OPERATOR, PeerRole.CLIENT})

ROUTER_PEERS: Roles = {INFERENCE: _CALLERS, VLLM: _CALLERS, HEALTH: ANY_ROLE}
"""Roles that may call, where a router shows the certificate of the cluster at its door and so asks callers for theirs.
What is not named is an operator's. The right to do something comes from the caller's credential all the same."""
