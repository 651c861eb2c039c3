"""Admission: which requests are guaranteed, which are held, and where every request runs.

`AdmissionCore` is told what happens (`core`) and answers. `workers`, `requests` and `index` are what it knows;
`planner_view` and `latency_view` turn that into problems of the planner and views for latency forecasts; `assessor`
has the verdict of a round, `pending` what it means for a request, `submission` which prompts go to their worker now.
Router and simulator are adapters around it. Pure: no clock, no I/O.
"""

from services.slo.admission.assessment import Assessment, Held, Impossible, Target, Unservable
from services.slo.admission.core import AdmissionCore
from services.slo.admission.other_work import NO_OTHERS, OtherDecodes, OtherPrompts, OtherWork
from services.slo.admission.patience import RoomGiven
from services.slo.admission.pending import AdmissionRound, Outcome, RequestVerdict
from services.slo.admission.requests import (
    NO_BLOCKS,
    Arrival,
    Progress,
    PromptBlocks,
    RequestFacts,
    TrackedRequest,
)
from services.slo.admission.submission import Submission
from services.slo.admission.workers import IDLE, Group, Role, StepTimes, WorkerFacts, WorkerLoad, WorkerState
from services.slo.admission_options import DEFAULT_OPTIONS, AdmissionOptions

__all__ = [
    "DEFAULT_OPTIONS",
    "IDLE",
    "NO_BLOCKS",
    "NO_OTHERS",
    "AdmissionCore",
    "AdmissionOptions",
    "AdmissionRound",
    "Arrival",
    "Assessment",
    "Group",
    "Held",
    "Impossible",
    "OtherDecodes",
    "OtherPrompts",
    "OtherWork",
    "Outcome",
    "Progress",
    "PromptBlocks",
    "RequestFacts",
    "RequestVerdict",
    "Role",
    "RoomGiven",
    "StepTimes",
    "Submission",
    "Target",
    "TrackedRequest",
    "Unservable",
    "WorkerFacts",
    "WorkerLoad",
    "WorkerState",
]
