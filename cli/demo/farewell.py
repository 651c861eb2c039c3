"""The last lines of the demo: how to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cli.demo.targets import Targets


@dataclass(frozen=True, slots=True)
class Doors:
    """The addresses of a cluster that goes on running."""

    router: str
    """Address of the router, host:port."""
    gateway: str
    """Address of the HTTP gateway, host:port; empty if there is none."""
    console: str
    """URL of the router's console; empty if it has none."""
    stop: str
    """Command that stops the cluster."""


def how_to_go_on(doors: Doors | None, targets: Targets) -> Sequence[str]:
    """Return lines about what to do next.

    Args:
        doors: None if the cluster was stopped.
        targets: a contract that this machine can keep, for the examples.
    """
    ttft_ms, tpot_ms = targets.ttft_s * 1e3, targets.tpot_s * 1e3
    if doors is None:
        return (
            "slos-serve demo --keep   leaves this cluster running, and says where its console, HTTP and gRPC doors are",
            "slos-serve up            starts a cluster of your own; slos-serve down stops it",
            f'slos-serve generate "What is the capital of France?" --ttft-ms {ttft_ms:.0f} --tpot-ms {tpot_ms:.0f}',
        )
    lines = [f"console  {doors.console}"] if doors.console else []
    if doors.gateway:
        lines.append(
            f"curl     curl -i http://{doors.gateway}/v1/chat/completions -H 'x-slo-ttft-ms: {ttft_ms:.0f}' "
            f"-H 'x-slo-tpot-ms: {tpot_ms:.0f}' "
            """-d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}'"""
        )
    call = (
        f"Client('{doors.router}').generate([Message('user', 'Hello')], "
        f"contract=Contract.latency(ttft_s={targets.ttft_s:.2f}, tpot_s={targets.tpot_s:.2f}))"
    )
    lines.append(
        f'Python   python -c "from slos_serve import Client, Contract, Message; print({call}.completion().text)"'
    )
    lines.append(f"watch    slos-serve top --address {doors.router}")
    lines.append(f"stop     {doors.stop}")
    return lines
