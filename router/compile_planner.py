"""Program that compiles the planner and keeps the machine code: `python -m router.compile_planner`.

Installing runs it, so that no router has to; a router that finds nothing compiled runs it beside itself.
"""

from __future__ import annotations

import fcntl
import sys
from contextlib import suppress

from services.slo.planner import machine_code_directory, machine_code_is_kept, warm_up

NO_PLACE = 3
"""Exit code if machine code cannot be kept, because no directory for it can be written."""


def main() -> int:
    """Compile what is not compiled yet. Of several programs at once, one compiles and the others wait for it."""
    directory = machine_code_directory()
    if directory is None:
        return NO_PLACE
    with (directory / "lock").open("w") as lock:
        with suppress(OSError):  # A file system without locks: both compile, and write the same.
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not machine_code_is_kept():
            warm_up()
    return 0


if __name__ == "__main__":
    sys.exit(main())
