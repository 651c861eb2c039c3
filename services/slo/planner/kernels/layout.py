"""Columns of the arrays that the compiled parts of the planner work on.

Compiled code knows no dataclasses; this is the one place that says which number stands where. `tiers` is the number of
tiers of the round.
"""

from __future__ import annotations

from typing import Final

# A worker: one row of `workers`.
BUSY: Final = 0
"""Seconds from now until its present step ends, less what the next need not spend on decodes that are ahead."""
KV_FREE: Final = 1
KV_TOTAL: Final = 2
MAX_TOKENS: Final = 3
SLOTS: Final = 4
"""Requests it may still take to decode."""
PREFILLS: Final = 5
DECODES: Final = 6
ROWS: Final = 7
"""Rows of its step table in use."""
OVERHEAD: Final = 8
PER_TOKEN: Final = 9
PER_REQUEST: Final = 10
PER_CONTEXT: Final = 11
PER_PAIR: Final = 12
PER_DRAFT: Final = 13
MEMORY: Final = 14
MEMORY_PER_CONTEXT: Final = 15
MEMORY_PER_WORK: Final = 16
HANDOVER: Final = 17
"""Decode steps from the first token to the second, the transfer apart."""
WORKER_COUNTS: Final = 18
"""From here the decodes of each tier, then their context tokens of each tier: 2 * tiers numbers."""

# A step length to choose from: one row of a worker's table. Column 0 is the step length in seconds; then for each tier:
COST: Final = 0
"""Seconds in an average step for one request: its share of steps times its tokens' and its own cost."""
CONTEXT_COST: Final = 1
"""The same for one token of its context, where reading it adds to computing."""
MEMORY_COST: Final = 2
"""The same where reading hides behind computing."""
TOKENS: Final = 3
DRAFT: Final = 4
"""Draft tokens; negative where no allowed draft length keeps the tier's TPOT with steps this long."""
SHARE: Final = 5
"""Share of the steps that serve a given request of the tier."""
PER_TIER: Final = 6

# A prefill: one row of `jobs`. Promised ones come first, then one row for every candidate.
DUE: Final = 0
"""Rank in the lane's queue, seconds from now."""
LIMIT: Final = 1
"""Must be finished by then; infinite for one that is lost already."""
WORK: Final = 2
"""Seconds of computing, step overheads excluded; depends on the lane."""
READY: Final = 3
"""Not before; 0: at once."""
TIER: Final = 4
"""Where it decodes on the lane afterwards; negative if it leaves."""
GROW: Final = 5
"""Context tokens that it brings to decoding, at its full length."""
VALUE: Final = 6
KV_PROMPT: Final = 7
KV_FULL: Final = 8
ASK_TIER: Final = 9
"""Where it decodes, on whatever worker."""
JOB_COLUMNS: Final = 10

# A lane in the middle of its schedule: `state`.
START: Final = 0
"""When the open step began, seconds from now."""
USED: Final = 1
"""Seconds of prefill work in the open step."""
TIGHTEST: Final = 2
"""The open step must end by then: the earliest limit of the prompts it completes."""
ROW: Final = 3
BASE: Final = 4
"""What a step costs before any prefill."""
ROOM: Final = 5
"""Prefill work that fits into a step."""
FLOOR: Final = 6
"""No step is shorter: what reading weights and contexts takes."""
CHANGED: Final = 7
"""1 if a prompt of the open step will decode here from the next step on."""
JOINED_TPOT: Final = 8
"""Tightest TPOT among those."""
STATE_COUNTS: Final = 9
"""As WORKER_COUNTS."""

# Outcomes of a check.
FITS: Final = 0
PREFILL_TIME: Final = 1
DECODE_RATE: Final = 2
KV_MEMORY: Final = 3

# A schedule under construction: one row of the frontier. The lane's `state` comes first; these follow it.
REACHED: Final = 0
"""Value so far."""
NODE: Final = 1
KV_HERE: Final = 2
SLOTS_HERE: Final = 3
KV_THERE: Final = 4
SLOTS_THERE: Final = 5
LOST: Final = 6
"""Share of time that its new decodes take from later prefills here."""
EXTRA: Final = 7
"""What scarce resources other than time it used, priced in seconds."""
SPENT: Final = 8
"""All of that as one number, for comparison."""
THERE_COUNTS: Final = 9
"""As WORKER_COUNTS, on the decode worker elsewhere."""

# A running request that will end: one entry of `releases`.
AT: Final = 0
"""Seconds from now; infinite for an unused entry."""
RELEASED_TIER: Final = 1
RELEASED_REQUESTS: Final = 2
RELEASED_KV: Final = 3
RELEASE_COLUMNS: Final = 4

# What is known about a candidate without a place: one row of `reasons`.
BINDING: Final = 0
EARLIEST: Final = 1
"""When the same contract would be guaranteed, seconds from now; infinite if that cannot be foreseen."""
EXPECTED: Final = 2
"""When its first token can be expected behind everything promised."""
LATEST: Final = 3
"""Until when waiting leaves it a chance: the latest start on an idle worker."""
POSSIBLE: Final = 4
"""0 if no idle worker of its options could keep the contract."""
NEXT_EVENT: Final = 5
"""When something ends on one of its workers."""
REASON_COLUMNS: Final = 6
