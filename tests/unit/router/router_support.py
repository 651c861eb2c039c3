"""Workers and requests as the router knows them, without processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource

from router.admission.assessment import Admission, Arrival, Assessment
from router.admission.committed_loads import CommittedLoads
from router.admission.planning_view import PlanningView
from router.cluster.cluster_view import ClusterView, WorkerView
from router.cluster.memory import MemoryPromises
from router.cluster.prefixes import PrefixIndex
from router.observability.recorder import Recorder
from router.requests.live_request import LiveRequest
from router.requests.parsed_request import ParsedRequest
from router.requests.phases import PhaseClock
from router.requests.request_index import Requests
from services.engine.kv.compatibility import Compatibility
from services.engine.protocol import EngineFacts, EngineLoad, SamplingOptions
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, DecodeTarget, OnOverload, PrefillTarget
from services.slo.fitting import StepTimeFit
from services.slo.performance import PerformanceCoefficients
from services.slo.transfer import SHARED_MEMORY_LINK, Handovers
from services.state.journal_entry import RequestState
from services.state.registry import WorkerRole
from services.telemetry.meters import Meters
from services.telemetry.traces import Traces

FACTS = EngineFacts(
    engine_epoch="1",
    compatibility=Compatibility("m", "bf16", "bf16", 16, 1, "HND", "emulated"),
    model="m",
    max_context_tokens=4096,
    vocabulary_size=1000,
    eos_token_ids=(2,),
    kv_blocks_total=1000,
    kv_bytes_per_token=1000,
    max_step_tokens=2048,
    max_running_requests=16,
    kv_lease_s=30.0,
    performance=PerformanceCoefficients(0.010, 0.0001, 0.0, 0.0, "measured"),
    emulated=True,
)
"""100 tokens take 20 ms by the expected time; 16,000 tokens of KV cache."""


def worker(worker_id: str) -> WorkerView:
    role = WorkerRole.PREFILL if worker_id.startswith("p") else WorkerRole.DECODE
    load = EngineLoad(0, 0, FACTS.kv_blocks_total, 0, 0)
    return WorkerView(worker_id, role, "nowhere", FACTS, StepTimeFit(FACTS.performance), load)


def parsed(request_id: str, prompt_tokens: int, contract: Contract, max_tokens: int = 50) -> ParsedRequest:
    return ParsedRequest(
        request_id=request_id,
        prompt=tuple(range(100, 100 + prompt_tokens)),
        sampling=SamplingOptions(max_tokens),
        stop=(),
        include_stop=False,
        skip_special_tokens=True,
        contract=contract,
        application="",
        tenant="",
    )


def contract(
    ttft_s: float | None = None, tpot_s: float | None = None, *, refuse: bool = False, value: float = 1.0
) -> Contract:
    return Contract(
        prefill=None if ttft_s is None else PrefillTarget(ttft_s=ttft_s),
        decode=() if tpot_s is None else (DecodeTarget(tpot_s),),
        on_overload=OnOverload.REFUSE if refuse else OnOverload.BEST_EFFORT,
        value=value,
    )


def recorder() -> Recorder:
    """One whose figures nobody reads."""
    traces = Traces(Resource.get_empty(), 0.0, None)
    return Recorder(Meters(NoOpMeterProvider()), traces, "m", (), max_label_values=10)


@dataclass(slots=True)
class Desk:
    """An admission desk over workers that do nothing, and the requests it took."""

    model_dir: Path
    worker_ids: tuple[str, ...] = ("p1", "d1")
    local_prefill: bool = False
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        requests, memory = Requests(), MemoryPromises()
        holdings = CommittedLoads(requests, memory)
        view = PlanningView(
            requests, memory, holdings, Handovers(SHARED_MEMORY_LINK), PrefixIndex(), local_prefill=self.local_prefill
        )
        self.admission = Admission(ClusterView("m", self.local_prefill), view, best_effort_patience_s=30.0)
        for worker_id in self.worker_ids:
            self.admission.cluster.put(worker(worker_id))

    @property
    def requests(self) -> Requests:
        return self.admission.view.requests

    def arrival(self, request_id: str, prompt_tokens: int, wanted: Contract, at_s: float = 0.0) -> Arrival:
        return Arrival(parsed(request_id, prompt_tokens, wanted), wanted, at_s)

    def assess(self, request_id: str, prompt_tokens: int, wanted: Contract, now_s: float = 0.0) -> Assessment:
        (answer,) = self.admission.assess([self.arrival(request_id, prompt_tokens, wanted, now_s)], now_s)
        assert isinstance(answer, Assessment), answer
        return answer

    def take(self, arrival: Arrival, assessment: Assessment) -> LiveRequest:
        """What the front end does with an admitted request."""
        tokenizer = Tokenizer(self.model_dir)
        live = LiveRequest(
            parsed=arrival.parsed,
            contract=assessment.contract,
            meter=AttainmentMeter(assessment.contract, arrival.arrival_s),
            clock=PhaseClock(arrival.arrival_s),
            text=tokenizer.stream(skip_special_tokens=True),
            stops=StopStrings(()),
            placement=assessment.placement,
            planning=arrival.planning,
            guaranteed=assessment.guaranteed,
        )
        self.requests.file(live)
        return live

    def start_decode(self, live: LiveRequest) -> None:
        live.submit_prompt(live.placement.prefill_worker_id, 0, live.meter.arrival_s)
        live.enter(RequestState.DECODING)
        self.requests.file(live)
