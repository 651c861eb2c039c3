"""The workers of a simulated cluster as the admission core is told of them."""

from __future__ import annotations

from services.slo.admission import AdmissionCore, Role, WorkerFacts, WorkerLoad
from services.slo.performance import PerformanceModel, StepShape
from simulator.engine import Engine
from simulator.knowledge import Knowledge, prior_of, step_times
from simulator.machine import Machine

GROUP = "simulated"


class CoreWorkers:
    """Tells a core what the engines of a cluster are, what they report, and that they are back."""

    def __init__(self, core: AdmissionCore, machine: Machine, knowledge: Knowledge) -> None:
        """Begin without an engine.

        Args:
            knowledge: what the core knows of step times at first.
        """
        self._core = core
        self._machine = machine
        self._knowledge = knowledge
        self.engines: dict[str, Engine] = {}
        """Every engine by the id of its worker, whether it works or not."""
        self._roles: dict[str, Role] = {}

    def add(self, engine: Engine, role: Role) -> None:
        """Let a new engine join."""
        self.engines[engine.worker_id] = engine
        self._roles[engine.worker_id] = role
        self._join(engine.worker_id)

    def join_again(self) -> None:
        """Let engines join that have recovered since the core was told that they are gone."""
        for worker_id, engine in self.engines.items():
            if not engine.failed and worker_id not in self._core.cluster.workers:
                self._join(worker_id)

    def bound(self, worker_id: str) -> PerformanceModel:
        """Return what an engine composes its steps by: it has seen the same steps as the router."""
        return self._core.cluster.workers[worker_id].bound

    def stepped(self, engine: Engine, shape: StepShape, seconds: float, now_s: float) -> None:
        """Tell of a step that has ended."""
        self._core.stepped(engine.worker_id, shape, seconds, _load_of(engine), now_s)

    def loaded(self, engine: Engine, now_s: float) -> None:
        """Tell of the load that an engine has now."""
        self._core.loaded(engine.worker_id, _load_of(engine), now_s)

    def _join(self, worker_id: str) -> None:
        machine = self._machine
        facts = WorkerFacts(
            worker_id=worker_id,
            role=self._roles[worker_id],
            group=GROUP,
            prior=prior_of(machine, self._knowledge),
            limits=machine.limits,
            kv_blocks=machine.kv_blocks,
            kv_bytes_per_token=machine.kv_bytes_per_token,
        )
        self._core.joined(facts, times=step_times(machine, self._knowledge))


def _load_of(engine: Engine) -> WorkerLoad:
    return WorkerLoad(len(engine.requests), engine.leased_blocks)
