"""Default names of workers."""

from __future__ import annotations

import os
import socket

from services.state.registry import WorkerRole


def default_worker_id(role: WorkerRole) -> str:
    """Return a name that people can read and that is unique among living processes."""
    return f"{role.value}-{socket.gethostname()}-{os.getpid()}"
