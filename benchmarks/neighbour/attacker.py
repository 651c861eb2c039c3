"""The hostile client as a process of its own: `python -m benchmarks.neighbour.attacker ROUTER GATEWAY SECONDS`.

It prints, as one JSON object, how often each attack was answered in which way.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

import grpc
import grpc.aio

from benchmarks.neighbour.attacks import ATTACKS, ATTEMPT_S, Attack, Attacker


async def attack(router: str, gateway: str, seconds: float) -> dict[str, dict[str, int]]:
    """Try every attack again and again, all at the same time; return the outcomes of each."""
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in ATTACKS}
    attacker = Attacker(router, gateway)
    end_s = time.monotonic() + seconds
    try:
        await asyncio.gather(
            *(
                _keep_trying(attacker, one, outcomes[name], end_s)
                for name, one in ATTACKS.items()
                for _ in range(one.together)
            )
        )
    finally:
        await attacker.close()
    return {name: dict(counts.most_common()) for name, counts in outcomes.items()}


async def _keep_trying(attacker: Attacker, attack: Attack, outcomes: Counter[str], end_s: float) -> None:
    while time.monotonic() < end_s:
        outcomes[await _outcome(attack, attacker)] += 1
        await asyncio.sleep(attack.pause_s)


async def _outcome(attack: Attack, attacker: Attacker) -> str:
    try:
        async with asyncio.timeout(ATTEMPT_S + 5.0):
            return await attack.attempt(attacker)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except (OSError, TimeoutError) as error:
        return type(error).__name__


def main() -> None:
    router, gateway, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(attack(router, gateway, float(seconds)))))


if __name__ == "__main__":
    main()
