"""A batch in leftover capacity: python examples/batch.py [ADDRESS] [FILE]

FILE has one prompt a line. Nothing is promised, and so nobody who was promised something waits for it. What is refused
because the queue is full is sent again when the router says.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from slos_serve import AsyncClient, Completion, Message, RetryPolicy, Sampling, SlosServeError

AT_ONCE = 8
PROMPTS = [f"Write one sentence about the number {number}." for number in range(16)]


async def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    prompts = Path(sys.argv[2]).read_text().splitlines() if len(sys.argv) > 2 else PROMPTS  # noqa: ASYNC240
    room = asyncio.Semaphore(AT_ONCE)
    patient = RetryPolicy(max_attempts=100, max_wait_s=3600)

    async with AsyncClient(address, application="batch", retry=patient) as client:

        async def one(prompt: str) -> Completion | SlosServeError:
            async with room:
                try:
                    return await client.generate(
                        [Message("user", prompt)], sampling=Sampling(max_tokens=24, temperature=0.0)
                    ).completion()
                except SlosServeError as error:
                    return error

        results = await asyncio.gather(*(one(prompt) for prompt in prompts))
    done = [result for result in results if isinstance(result, Completion)]
    for prompt, result in zip(prompts, results, strict=True):
        text = " ".join(result.text.split()) if isinstance(result, Completion) else f"failed: {result}"
        print(f"{prompt}\n  {text}")
    print(f"{len(done)} of {len(results)} done, {sum(item.finished.completion_tokens for item in done)} tokens")
    if len(done) < len(results):
        sys.exit(1)


if __name__ == "__main__":
    asyncio.run(main())
