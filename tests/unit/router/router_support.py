"""Workers and requests as the router knows them, without processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource

from router.admission.undecided import UndecidedRequest
from router.cluster.cluster_view import ClusterView
from router.observability.recorder import Recorder
from router.requests.live_request import LiveRequest
from router.requests.live_requests import LiveRequests
from router.requests.parsed_request import ParsedRequest
from router.requests.phases import PhaseClock
from services import wire
from services.engine.kv.compatibility import Compatibility
from services.engine.protocol import EngineFacts, EngineLoad, SamplingOptions
from services.model.stop_strings import StopStrings
from services.model.tokenizer import Tokenizer
from services.slo.admission import AdmissionCore, AdmissionOptions, Assessment
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract, DecodeTarget, OnOverload, PrefillTarget
from services.slo.performance import PerformanceCoefficients
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
    kv_address_json="{}",
)
"""100 tokens take 20 ms by the expected time; 16,000 tokens of KV cache."""
START_S = 1000.0
"""When tests begin, so that a time and a duration cannot be taken for each other."""


def description(worker_id: str) -> wire.WorkerDescription:
    """Return what a worker says of itself; a prefill worker if the id begins with a p."""
    role = WorkerRole.PREFILL if worker_id.startswith("p") else WorkerRole.DECODE
    load = EngineLoad(0, 0, FACTS.kv_blocks_total, 0, 0)
    return wire.WorkerDescription(worker_id=worker_id, role=role, facts=FACTS, load=load, draining=False)


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
    """The admission core behind a router's view of workers that do nothing, and the requests it took."""

    model_dir: Path
    worker_ids: tuple[str, ...] = ("p1", "d1")
    options: AdmissionOptions = field(default_factory=AdmissionOptions)
    core: AdmissionCore = field(init=False)
    cluster: ClusterView = field(init=False)
    requests: LiveRequests = field(default_factory=LiveRequests)

    def __post_init__(self) -> None:
        self.core = AdmissionCore(self.options)
        self.cluster = ClusterView("m", self.core)
        for worker_id in self.worker_ids:
            self.cluster.put(description(worker_id), "nowhere")

    def arrival(self, request_id: str, prompt_tokens: int, wanted: Contract, at_s: float = START_S) -> UndecidedRequest:
        return UndecidedRequest(parsed(request_id, prompt_tokens, wanted), wanted, at_s)

    def assess(self, request_id: str, prompt_tokens: int, wanted: Contract, now_s: float = START_S) -> Assessment:
        answer = self.core.assess(self.arrival(request_id, prompt_tokens, wanted, now_s).arrival, now_s)
        assert isinstance(answer, Assessment), answer
        return answer

    def take(self, arrival: UndecidedRequest, assessment: Assessment) -> LiveRequest:
        """Do what the front end does with an admitted request."""
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
        self.file(live)
        return live

    def file(self, live: LiveRequest) -> None:
        self.requests.file(live)
        self.core.filed(live)

    def remove(self, live: LiveRequest) -> None:
        self.core.removed(live, complete=True)
        self.requests.remove(live)

    def start_decode(self, live: LiveRequest) -> None:
        live.submit_prompt(live.placement.prefill_worker_id, 0, live.meter.arrival_s)
        live.enter(RequestState.DECODING)
        self.file(live)
