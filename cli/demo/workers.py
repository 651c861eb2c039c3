"""The worker processes of the demo's cluster, to be killed and started again."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

from deploy.local.cluster import LocalCluster
from deploy.local.processes import RunningProcess
from deploy.local.run_directory import RunningCluster


@dataclass(slots=True)
class DemoWorkers:
    """Workers by id, which is the name under which the launcher started them."""

    cluster: LocalCluster
    _processes: dict[str, RunningProcess] = field(default_factory=dict)

    @classmethod
    def of(cls, cluster: LocalCluster, running: RunningCluster) -> DemoWorkers:
        """Return the workers of a cluster that was just started."""
        return cls(cluster, {process.name: process for process in running.processes})

    def kill(self, worker_id: str) -> int:
        """Send a worker SIGKILL, and return its process id.

        Raises:
            KeyError: the demo started no such worker.
            ProcessLookupError: it has ended already.
        """
        process = self._processes[worker_id]
        os.kill(process.pid, signal.SIGKILL)
        return process.pid

    def start_again(self, worker_id: str) -> None:
        """Start a worker in place of one that is gone; it registers with the cluster by itself."""
        role, _, index = worker_id.rpartition("-")
        self._processes[worker_id] = self.cluster.start_worker(role, int(index))
