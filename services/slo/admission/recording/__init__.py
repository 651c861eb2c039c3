"""Recordings of admission: what a core was told and what it answered, to be replayed through another core.

`told` and `asked` have every call as a value, `recorder` a core that passes on each call it gets, `replay` feeds events
to a core and says where its answers differ. No I/O: files are the router's.
"""

from services.slo.admission.recording.events import Event
from services.slo.admission.recording.recorder import RecordingCore
from services.slo.admission.recording.replay import Difference, Replay
from services.slo.admission.recording.snapshots import RecordedBlocks, ReplayedRequest

__all__ = ["Difference", "Event", "RecordedBlocks", "RecordingCore", "Replay", "ReplayedRequest"]
