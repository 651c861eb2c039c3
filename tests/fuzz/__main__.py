"""`python -m tests.fuzz`: run a campaign, or go on with one."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import Campaign, targets_of
from tests.fuzz.record import Record
from tests.fuzz.stage import running_stage
from tests.fuzz.watch import Watch, resident_bytes


def main() -> int:
    """Run what the arguments say; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="inputs in all, those of earlier runs included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path(".slos-serve/fuzz"), help="progress and findings")
    parser.add_argument("--only", type=int, help="send the one input of this number")
    arguments = parser.parse_args()
    return asyncio.run(_run(arguments.messages, arguments.seed, arguments.directory, arguments.only))


async def _run(messages: int, seed: int, directory: Path, only: int | None) -> int:
    record = Record.opened(directory, seed)
    watch = Watch()
    found = record.found
    with tempfile.TemporaryDirectory() as scratch:
        async with running_stage(Path(scratch)) as stage:
            targets = await targets_of(stage)
            watch.install()
            began = resident_bytes() >> 20
            print(f"{began} MiB; input {record.begun} of {messages}", flush=True)
            await Campaign(stage, targets, record, watch, only).run(messages)
            longest = f"longest callback {watch.longest_s * 1000:.0f} ms of CPU time: {watch.longest}"
    for name, outcomes in sorted(record.outcomes.items()):
        print(
            f"{name} ({outcomes.total()}): " + ", ".join(f"{what} {count}" for what, count in outcomes.most_common(9))
        )
    print(f"{record.done} inputs in {record.seconds:.0f} s, {record.found} findings, {resident_bytes() >> 20} MiB")
    print(f"{longest}; {dict(watch.counts)}")
    return 1 if record.found > found else 0


if __name__ == "__main__":
    sys.exit(main())
