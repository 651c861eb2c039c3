"""What has happened in this router lately: bounded in memory, constant time for a request, nothing for a token."""

from router.observability.history.history import History
from router.observability.history.record import (
    NO_CONTRACT,
    OWN_CONTRACT,
    Ending,
    RequestRecord,
    profile_of,
    record_of,
    refusal_record,
)
from router.observability.history.windows import Tally, Window, Windows

__all__ = [
    "NO_CONTRACT",
    "OWN_CONTRACT",
    "Ending",
    "History",
    "RequestRecord",
    "Tally",
    "Window",
    "Windows",
    "profile_of",
    "record_of",
    "refusal_record",
]
