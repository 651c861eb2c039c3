"""How long it takes to move a KV cache between two workers, and to hand a request over with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from services.slo.recent import RecentlyUsed
from services.slo.regression import LONGEST_S, RatioWindow, RelativeRegression, ShiftDetector, credible

FORGETTING = 0.01
"""Of what is learnt, per transfer."""
OUTLIER = 2.5
SMALLEST_SPREAD = 0.05
SHIFT_TRANSFERS = 6
"""If half of so many latest transfers are off by more than `OUTLIER` to the same side, the link has changed."""
FIRST_SPREAD, PAIR_SPREAD = 10.0, 3.0
"""How far latency and bandwidth may be, relative to themselves, from an assumption and from what other pairs show."""
PRIOR_ERROR = 0.3
WINDOW = 200
ENOUGH = 20
"""Transfers of a pair, or hand-overs to a worker, from which its own errors say more than everybody's."""
MAX_PAIRS, MAX_WORKERS = 4096, 1024

BUSY_STEPS, IDLE_STEPS = 3.0, 1.5
"""Decode steps of a hand-over, measured with NIXL: a busy worker receives at the end of a step, starts to read, notices
and then runs; an idle one runs as soon as the KV cache is there, and polls for it."""
STEPS_WEIGHT = 0.05
STEPS_ERROR = 0.3


@dataclass(frozen=True, slots=True)
class TransferModel:
    """Transfer time = latency + bytes / bandwidth."""

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.latency_s) or self.latency_s < 0:
            raise ValueError(f"latency_s must be a finite number of seconds, not negative; got {self.latency_s}")
        if not self.bytes_per_s > 0:
            raise ValueError(f"bytes_per_s must be positive; got {self.bytes_per_s}")

    def transfer_s(self, kv_bytes: float) -> float:
        return self.latency_s + kv_bytes / self.bytes_per_s


SLOS_SERVE_LINK = TransferModel(latency_s=10e-3, bytes_per_s=300e9)
"""What the successor of SLOs-Serve assumes between GPUs."""
SHARED_MEMORY_LINK = TransferModel(latency_s=0.3e-3, bytes_per_s=3.6e9)
"""NIXL between two processes of one host without a GPU, measured with 3 to 47 MB."""
TCP_LINK = TransferModel(latency_s=0.5e-3, bytes_per_s=1.55e9)
"""The same with UCX held to TCP."""


class TransferFit:
    """The transfer model of one pair of workers, or of all, learnt from the pulls reported. Owned by one caller."""

    __slots__ = ("_errors", "_regression", "_shift", "transfers")

    def __init__(self, prior: TransferModel, spread: float = FIRST_SPREAD) -> None:
        """
        Args:
            spread: standard deviation of latency and of bandwidth around the prior, relative to it.
        """
        costs = (max(prior.latency_s, 1e-6), max(1.0 / prior.bytes_per_s, 1e-15))
        self._regression = RelativeRegression(costs, costs, spread, spread)
        self._shift = ShiftDetector(SHIFT_TRANSFERS, OUTLIER)
        self._errors = RatioWindow(PRIOR_ERROR, WINDOW, at_least=WINDOW)
        self.transfers = 0
        """Learnt from."""

    def observe(self, kv_bytes: float, transfer_s: float) -> None:
        """Learn from a transfer. One without bytes or without a credible duration is ignored."""
        if not credible(transfer_s) or kv_bytes <= 0:
            return
        regressors = np.array((1.0, float(kv_bytes)))
        ratio = transfer_s / self._regression.predict(regressors)
        spread = max(SMALLEST_SPREAD, self._errors.spread())
        # The first transfers may be far from an assumption and no outliers at all.
        limit = OUTLIER * spread if self.transfers >= ENOUGH else math.inf
        self._errors.add(ratio)
        self._regression.update(regressors, min(1.0 + limit, max(1.0 - limit, ratio)), 1.0 - FORGETTING)
        if self._shift.add(regressors, transfer_s, (ratio - 1.0) / spread):
            self._errors.drop_newest(SHIFT_TRANSFERS)
            self._shift.follow(self._regression)
        self.transfers += 1

    def model(self) -> TransferModel:
        latency_s, per_byte_s = self._regression.coefficients.tolist()
        return TransferModel(latency_s, 1.0 / max(per_byte_s, 1e-15))

    def margin(self, coverage: float) -> float:
        """Multiple of the expected time that transfers keep with probability `coverage`."""
        return self._errors.quantile(coverage)


class HandoverFit:
    """Decode steps that a hand-over takes on one worker, or on all. Owned by one caller."""

    __slots__ = ("_errors", "_steps", "handovers")

    def __init__(self, prior_steps: float) -> None:
        self._steps = prior_steps
        self._errors = RatioWindow(STEPS_ERROR, WINDOW, at_least=WINDOW)
        self.handovers = 0
        """Learnt from."""

    def observe(self, steps: float) -> None:
        ratio = steps / self._steps
        self._errors.add(ratio)
        limit = OUTLIER * max(SMALLEST_SPREAD, self._errors.spread())
        self._steps *= 1.0 + STEPS_WEIGHT * (min(1.0 + limit, max(1.0 - limit, ratio)) - 1.0)
        self.handovers += 1

    @property
    def steps(self) -> float:
        return self._steps

    def margin(self, coverage: float) -> float:
        return self._errors.quantile(coverage)


class Handovers:
    """What is known of the links between workers. New pairs are taken to be like those seen.

    Bounds add that of the transfer and that of the steps, which is more than both together need. Memory is bounded:
    pairs and workers not used for longest are forgotten. Owned by one event loop.
    """

    def __init__(self, prior: TransferModel) -> None:
        self._all_pairs = TransferFit(prior)
        self._pairs: RecentlyUsed[tuple[str, str], TransferFit] = RecentlyUsed(MAX_PAIRS)
        self._all_workers = {busy: HandoverFit(BUSY_STEPS if busy else IDLE_STEPS) for busy in (False, True)}
        self._workers: RecentlyUsed[tuple[str, bool], HandoverFit] = RecentlyUsed(2 * MAX_WORKERS)

    def observe(
        self,
        source: str,
        target: str,
        kv_bytes: int,
        transfer_s: float,
        wait_s: float,
        decode_step_s: float,
        *,
        busy: bool,
    ) -> None:
        """Learn from one hand-over.

        Args:
            transfer_s: of `KvPull`.
            wait_s: from the submission until the engine could work on the request, transfer included.
            decode_step_s: of the target at that time.
            busy: other requests were running on the target.
        """
        self._all_pairs.observe(kv_bytes, transfer_s)
        if self._all_pairs.transfers >= ENOUGH:
            # Not before: a pair holds on to what it starts from.
            pair = self._pairs.get_or_make((source, target), lambda: TransferFit(self._all_pairs.model(), PAIR_SPREAD))
            pair.observe(kv_bytes, transfer_s)
        waited_s = wait_s - transfer_s
        if credible(decode_step_s) and 0 <= waited_s <= LONGEST_S:
            steps = 1.0 + waited_s / decode_step_s
            everybody = self._all_workers[busy]
            worker = self._workers.get_or_make((target, busy), lambda: HandoverFit(everybody.steps))
            worker.observe(steps)
            everybody.observe(steps)

    def transfer_s(self, source: str, target: str, kv_bytes: int) -> float:
        """Expected time to read a KV cache over the fabric."""
        pair = self._pairs.get((source, target)) or self._all_pairs
        return pair.model().transfer_s(kv_bytes)

    def transfer_bound_s(self, source: str, target: str, kv_bytes: int, coverage: float) -> float:
        """What transfers keep with probability `coverage`."""
        return self.link(source, target, coverage).transfer_s(kv_bytes)

    def steps(self, target: str, *, busy: bool) -> float:
        """Expected decode steps from the first token to the second, the step that makes the second included."""
        worker = self._workers.get((target, busy)) or self._all_workers[busy]
        return worker.steps

    def steps_bound(self, target: str, coverage: float, *, busy: bool) -> float:
        """Decode steps that hand-overs to this worker keep with probability `coverage`."""
        worker = self._workers.get((target, busy))
        errors = self._all_workers[busy] if worker is None or worker.handovers < ENOUGH else worker
        return self.steps(target, busy=busy) * errors.margin(coverage)

    def link(self, source: str, target: str, coverage: float) -> TransferModel:
        """Upper bound of the transfer model of a pair."""
        pair = self._pairs.get((source, target))
        model = (pair or self._all_pairs).model()
        errors = self._all_pairs if pair is None or pair.transfers < ENOUGH else pair
        margin = errors.margin(coverage)
        return TransferModel(model.latency_s * margin, model.bytes_per_s / margin)

    def learnt_pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs with a model of their own."""
        return tuple(self._pairs)

    def handover_s(self, source: str, target: str, kv_bytes: int, decode_step_s: float, *, busy: bool) -> float:
        """Expected time from the first token to the second."""
        return self.steps(target, busy=busy) * decode_step_s + self.transfer_s(source, target, kv_bytes)

    def handover_bound_s(
        self, source: str, target: str, kv_bytes: int, decode_step_s: float, coverage: float, *, busy: bool
    ) -> float:
        """What hand-overs keep with at least the probability `coverage`, given the bound `decode_step_s`."""
        steps = self.steps_bound(target, coverage, busy=busy)
        return steps * decode_step_s + self.transfer_bound_s(source, target, kv_bytes, coverage)
