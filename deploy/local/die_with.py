"""Program that becomes another program, which gets SIGTERM when its parent dies in any way.

    python die_with.py PARENT_PID PROGRAM ARGUMENTS...

A program of its own, and no code between fork and exec: there, libraries of a parent with threads (gRPC, OpenTelemetry)
may abort the child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_pid, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent_pid):
        # It died before it could be asked to tell: no signal will come.
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 -- the launcher's own command, without a shell


if __name__ == "__main__":
    main()
