"""The name of a worker."""

from __future__ import annotations

import os
import socket

from services.state.registry import WorkerRole


def default_worker_id(role: WorkerRole) -> str:
    """Readable, and unique among living processes."""
    return f"{role.value}-{socket.gethostname()}-{os.getpid()}"
