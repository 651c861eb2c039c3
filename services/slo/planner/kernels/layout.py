"""Columns of the arrays that the planner's kernels work on.

Compiled code knows no dataclasses; this is the one place that says which number stands where. Every column carries the
name of its table as a prefix, and a test holds each table to its own columns. `../README.md` lists the tables with
their shapes, and who writes and reads them. `tiers` is the number of tiers of the round.
"""

from __future__ import annotations

from typing import Final

# WORKER: one row of `PlanState.workers`, WORKER_LOAD + 2 * tiers columns.
WORKER_BUSY_S: Final = 0
"""Seconds from now until the present step ends, less what the next step need not spend on decodes that are ahead."""
WORKER_KV_FREE_TOKENS: Final = 1
"""KV tokens that are promised to nobody."""
WORKER_KV_TOKENS: Final = 2
"""KV tokens that the worker has in all."""
WORKER_MAX_STEP_TOKENS: Final = 3
"""Most tokens that a step may compute."""
WORKER_FREE_SLOTS: Final = 4
"""Number of requests that the worker may still take to decode."""
WORKER_PREFILLS: Final = 5
"""1 if the worker may prefill, 0 otherwise."""
WORKER_DECODES: Final = 6
"""1 if the worker may decode, 0 otherwise."""
WORKER_STEP_ROWS: Final = 7
"""Number of rows of its step table that are in use."""
WORKER_OVERHEAD_S: Final = 8
"""Seconds that every step takes; from here to WORKER_MEMORY_PER_WORK the columns are `StepBound.terms`."""
WORKER_PER_TOKEN_S: Final = 9
"""Seconds of computing for a token."""
WORKER_PER_REQUEST_S: Final = 10
"""Seconds of computing for a request in a step."""
WORKER_PER_CONTEXT_TOKEN_S: Final = 11
"""Seconds of computing for a token of context that a decode attends to."""
WORKER_PER_ATTENTION_PAIR_S: Final = 12
"""Seconds of computing for a pair of prompt tokens of which one attends to the other."""
WORKER_PER_DRAFT_STEP_S: Final = 13
"""Seconds that a step takes longer for each token drafted before it."""
WORKER_MEMORY_S: Final = 14
"""Seconds of reading weights, beside which computing is hidden."""
WORKER_MEMORY_PER_CONTEXT_TOKEN_S: Final = 15
"""Seconds of reading a token of context."""
WORKER_MEMORY_PER_WORK: Final = 16
"""Seconds of reading for a second of computing."""
WORKER_HANDOVER_STEPS: Final = 17
"""Decode steps from the first token to the second of a request that is handed over here, the transfer apart."""
WORKER_LOAD: Final = 18
"""First column of the decode load: running decodes of each tier, then their context tokens of each tier."""

# STEP: one row of a worker's step table, STEP_CELLS + CELL_COLUMNS * tiers columns.
STEP_LENGTH_S: Final = 0
"""Seconds that the step lasts; rows ascend by it."""
STEP_CELLS: Final = 1
"""First column of the cells: one block of CELL columns for each tier."""

# CELL: what one request of a tier costs on average in a step of the row's length.
CELL_COST_S: Final = 0
"""Seconds of computing for one request: its share of steps times its tokens' and its own cost."""
CELL_CONTEXT_COST_S: Final = 1
"""Seconds of computing for one token of its context, where reading it adds to computing."""
CELL_MEMORY_COST_S: Final = 2
"""Seconds of reading one token of its context, where reading hides behind computing."""
CELL_TOKENS: Final = 3
"""Tokens that one request computes."""
CELL_DRAFT_TOKENS: Final = 4
"""Draft tokens; negative where no allowed draft length keeps the tier's TPOT with steps this long."""
CELL_SHARE: Final = 5
"""Share of the steps that serve a given request, 0 to 1."""
CELL_COLUMNS: Final = 6

# JOB: one prefill, a row of `PlanState.jobs`.
JOB_DUE_S: Final = 0
"""Deadline in seconds from now, which ranks the prefill in its worker's queue."""
JOB_LIMIT_S: Final = 1
"""Seconds from now by which the prefill must end; infinite for one that is lost already."""
JOB_WORK_S: Final = 2
"""Seconds of computing, step overheads excluded; depends on the prefill worker, see `set_destination`."""
JOB_READY_S: Final = 3
"""Seconds from now before which the prefill cannot begin; 0: at once."""
JOB_LOCAL_TIER: Final = 4
"""Tier in which the request decodes on its prefill worker; negative if it leaves or was promised no rate."""
JOB_VALUE: Final = 5
"""Value of a guarantee; 0 for a promised prefill."""
JOB_PROMPT_TOKENS: Final = 6
"""Tokens of the prompt."""
JOB_KV_TOKENS: Final = 7
"""Context that the request will reach, at the promised quantile of its length."""
JOB_TIER: Final = 8
"""Tier in which the request decodes, on whatever worker; negative without a rate."""
JOB_COLUMNS: Final = 9

# SCHEDULE: a prefill worker in the middle of its schedule, SCHEDULE_LOAD + 2 * tiers columns.
SCHEDULE_START_S: Final = 0
"""Seconds from now at which the open step began."""
SCHEDULE_USED_S: Final = 1
"""Seconds of prefill work in the open step."""
SCHEDULE_TIGHTEST_S: Final = 2
"""Seconds from now by which the open step must end: the earliest limit of the prompts that it completes."""
SCHEDULE_STEP_ROW: Final = 3
"""Row of the step table in use."""
SCHEDULE_BASE_S: Final = 4
"""Seconds that a step costs before any prefill."""
SCHEDULE_CAPACITY_S: Final = 5
"""Seconds of prefill work that fit into a step."""
SCHEDULE_FLOOR_S: Final = 6
"""Least seconds that a step lasts: what reading weights and contexts takes."""
SCHEDULE_JOINED: Final = 7
"""1 if a prompt of the open step will decode here from the next step on, 0 otherwise."""
SCHEDULE_JOINED_TPOT_S: Final = 8
"""Tightest TPOT among those prompts, in seconds; infinite without any."""
SCHEDULE_LOAD: Final = 9
"""First column of the decode load, laid out as from WORKER_LOAD on."""

# FRONTIER: a schedule under construction in the dynamic programme. The columns of its SCHEDULE come first; these are
# counted from `extra_at`, where that one ends; FRONTIER_DECODER_LOAD + 2 * tiers columns.
FRONTIER_VALUE: Final = 0
"""Value of the candidates taken so far."""
FRONTIER_NODE: Final = 1
"""Node of the tree of decisions at which this schedule stands."""
FRONTIER_KV_TOKENS: Final = 2
"""KV tokens that the candidates taken hold on the prefill worker."""
FRONTIER_SLOTS: Final = 3
"""Number of candidates taken that decode on the prefill worker."""
FRONTIER_DECODER_KV_TOKENS: Final = 4
"""KV tokens that they hold on the one decode worker elsewhere, if that is tracked."""
FRONTIER_DECODER_SLOTS: Final = 5
"""Number of them that decode there."""
FRONTIER_DECODE_SHARE: Final = 6
"""Share of time that their decodes take from later prefills on the prefill worker."""
FRONTIER_SCARCE_S: Final = 7
"""Seconds that scarce resources other than time are worth, of what they use: see `pricing`."""
FRONTIER_SPENT_S: Final = 8
"""Time and all of the above as one number of seconds, for comparison."""
FRONTIER_DECODER_LOAD: Final = 9
"""First column of the decode load on the decode worker elsewhere, laid out as from WORKER_LOAD on."""

# RELEASE: running requests that will end, one entry of `releases`.
RELEASE_AT_S: Final = 0
"""Seconds from now; infinite for an unused entry."""
RELEASE_TIER: Final = 1
"""Tier of the requests; negative without a rate."""
RELEASE_REQUESTS: Final = 2
"""Number of requests that end."""
RELEASE_KV_TOKENS: Final = 3
"""KV tokens that come free."""
RELEASE_COLUMNS: Final = 4

# REASON: what is known about a candidate without a place, one row of `reasons`.
REASON_BINDING: Final = 0
"""What the candidate lacks: one of the LACKS_ codes."""
REASON_EARLIEST_S: Final = 1
"""Seconds from now at which the same contract would be guaranteed; infinite if that cannot be foreseen."""
REASON_EXPECTED_S: Final = 2
"""Seconds from now at which the first token can be expected behind everything promised."""
REASON_LATEST_S: Final = 3
"""Seconds from now until which waiting leaves a chance: the latest start on an idle worker."""
REASON_POSSIBLE: Final = 4
"""1 if an idle worker of its options could keep the contract, 0 otherwise."""
REASON_NEXT_EVENT_S: Final = 5
"""Seconds from now at which something ends on one of its workers."""
REASON_COLUMNS: Final = 6

# PLANNED: how a worker steps once everything placed decodes, one row of `planned_steps`.
PLANNED_STEP_S: Final = 0
"""Seconds of a step; infinite if the worker cannot keep up with its decodes."""
PLANNED_STEP_ROW: Final = 1
"""Row of the step table."""
PLANNED_COLUMNS: Final = 2

# PLACED: where a candidate runs, one row of `PlanState.placed` and of its copies.
PLACED_PREFILLER: Final = 0
"""Index of the prefill worker; -1 while the candidate has no place."""
PLACED_DECODER: Final = 1
"""Index of the decode worker; -1 while the candidate has no place."""
PLACED_COLUMNS: Final = 2

# MEMBER: a candidate that takes part in solving one prefill worker anew, one row of `members`.
MEMBER_CANDIDATE: Final = 0
"""Index of the candidate."""
MEMBER_DECODER: Final = 1
"""Index of the worker where it would decode."""
MEMBER_COLUMNS: Final = 2

# DECODE: what one more decode does to a worker, one row of `decode_costs`.
DECODE_SHARE: Final = 0
"""Share of the worker's time that the decode takes; infinite if the worker cannot take it."""
DECODE_STEP_S: Final = 1
"""Longest step, in seconds, that the decode may have to wait for when it has just come."""
DECODE_COLUMNS: Final = 2

# SETTING: `PlanState.settings`.
SETTING_PROMISED_JOBS: Final = 0
"""Number of promised prefills: the first candidate's row of `jobs`."""
SETTING_WORK_LIMIT: Final = 1
"""Bound on the search, in prefills scheduled."""
SETTING_HEADROOM_REQUESTS: Final = 2
"""Number of typical requests for which headroom is reserved."""
SETTING_COLUMNS: Final = 3

# Outcomes of a check: what a prefill, a decode or a candidate lacks.
FITS: Final = 0
LACKS_PREFILL_TIME: Final = 1
LACKS_DECODE_RATE: Final = 2
LACKS_KV_MEMORY: Final = 3
