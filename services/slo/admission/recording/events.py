"""The events of a recording."""

from __future__ import annotations

from services.slo.admission.recording.asked import Asked
from services.slo.admission.recording.told import Told

Event = Told | Asked
