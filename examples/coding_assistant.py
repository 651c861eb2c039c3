"""Code that appears faster than one reads: python examples/coding_assistant.py [ADDRESS] [TASK]

Every token is due 50 ms after the one before. The cluster is asked first whether it can promise that; if not now, the
request goes as best effort rather than not at all.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from slos_serve import (
    AsyncClient,
    Contract,
    DecodeTarget,
    Finished,
    Message,
    OnOverload,
    PrefillTarget,
    RefusedError,
    Sampling,
    SlosServeError,
    Tokens,
)

CONTRACT = Contract(
    prefill=PrefillTarget(max_slowdown=5),
    decode=(DecodeTarget(tpot_s=0.05),),
    on_overload=OnOverload.REFUSE,
)
SAMPLING = Sampling(max_tokens=96, temperature=0.0, stop=("\n\n\n",))


async def write(client: AsyncClient, prompt: list[Message], contract: Contract) -> None:
    async with client.generate(prompt, contract=contract, sampling=SAMPLING) as stream:
        async for event in stream:
            match event:
                case Tokens():
                    print(event.text, end="", flush=True)
                case Finished():
                    achieved = event.achieved
                    print(
                        f"\n[{event.completion_tokens} tokens; every one within {achieved.tpot_s * 1e3:.0f} ms of its "
                        f"turn, longest gap {achieved.worst_gap_s * 1e3:.0f} ms]"
                    )


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    task = sys.argv[2] if len(sys.argv) > 2 else "A function that returns the n-th Fibonacci number."
    prompt = [Message("system", "You write Python. Answer with code only."), Message("user", task)]
    async with AsyncClient(address, application="coding_assistant") as client:
        quote = await client.quote(prompt, contract=CONTRACT, sampling=SAMPLING)
        print(f"[quote: {quote.admission.verdict.name.lower()} {quote.admission.reason}]")
        try:
            if quote.impossible:
                raise SystemExit("[not even an idle worker of this cluster writes that fast]")
            await write(client, prompt, CONTRACT)
        except RefusedError as refused:
            print(f"[not now: {refused.binding.lower()}; as best effort instead]")
            await write(client, prompt, replace(CONTRACT, on_overload=OnOverload.BEST_EFFORT))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except SlosServeError as failed:
        sys.exit(str(failed))
