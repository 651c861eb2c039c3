"""Times of KV transfers between workers and of hand-overs, learnt from those that happened."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from services.slo.recent import RecentlyUsed
from services.slo.regression import LONGEST_S, RatioWindow, RelativeRegression, ShiftDetector, credible

FORGETTING = 0.01
"""Part of what is learnt that one transfer makes the regression forget."""
OUTLIER = 2.5
"""Standard deviations from what is expected beyond which the rest of a transfer's deviation does not count."""
SMALLEST_SPREAD = 0.05
"""Smallest relative standard deviation that outliers are judged by."""
SHIFT_TRANSFERS = 6
"""Number of latest transfers that show that a link has changed, if half are off by more than `OUTLIER` to one side."""
FIRST_SPREAD, PAIR_SPREAD = 10.0, 3.0
"""Standard deviations of latency and bandwidth, relative to themselves, around an assumption, and around what other
pairs show."""
PRIOR_ERROR = 0.3
"""Relative error of transfer times that bounds allow for before any was seen."""
WINDOW = 200
"""Number of latest transfers, or hand-overs, whose errors bounds are made from."""
ENOUGH = 20
"""Number of transfers of a pair, or of hand-overs to a worker, from which its own errors say more than everybody's."""
MAX_PAIRS, MAX_WORKERS = 4096, 1024
"""Largest numbers of pairs and of workers that are learnt of by themselves."""

BUSY_STEPS, IDLE_STEPS = 3.0, 1.5
"""Decode steps that a hand-over takes on a busy and on an idle worker, measured with NIXL. A busy worker receives the
request at the end of a step, starts to read, notices that the KV cache is there, and then runs the request; an idle one
polls, and runs it as soon as the KV cache is there."""
STEPS_WEIGHT = 0.05
"""Weight of the newest hand-over in the steps that are expected."""
STEPS_ERROR = 0.3
"""Relative error of those steps that bounds allow for before any hand-over was seen."""


@dataclass(frozen=True, slots=True)
class TransferModel:
    """A link between two workers: a transfer takes latency + bytes / bandwidth.

    Raises:
        ValueError: the latency is negative or not finite, or the bandwidth not positive.
    """

    latency_s: float
    """Seconds that a transfer takes besides its bytes."""
    bytes_per_s: float
    """Bandwidth."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.latency_s) or self.latency_s < 0:
            raise ValueError(f"latency_s must be a finite number of seconds, not negative; got {self.latency_s}")
        if not self.bytes_per_s > 0:
            raise ValueError(f"bytes_per_s must be positive; got {self.bytes_per_s}")

    def transfer_s(self, kv_bytes: float) -> float:
        """Return the seconds that a transfer of so many bytes takes."""
        return self.latency_s + kv_bytes / self.bytes_per_s


SLOS_SERVE_LINK = TransferModel(latency_s=10e-3, bytes_per_s=300e9)
"""Link that the successor of SLOs-Serve assumes between GPUs."""
SHARED_MEMORY_LINK = TransferModel(latency_s=0.3e-3, bytes_per_s=3.6e9)
"""Link of NIXL between two processes of one host without a GPU, measured with 3 to 47 MB."""
TCP_LINK = TransferModel(latency_s=0.5e-3, bytes_per_s=1.55e9)
"""Link of NIXL between two such processes with UCX held to TCP."""


class TransferFit:
    """Learns the transfer model of one pair of workers, or of all, from its transfers. Owned by one caller."""

    __slots__ = ("_errors", "_regression", "_shift", "transfers")

    def __init__(self, prior: TransferModel, spread: float = FIRST_SPREAD) -> None:
        """
        Args:
            prior: model before any transfer.
            spread: standard deviation of latency and of bandwidth around the prior, relative to it.
        """
        costs = (max(prior.latency_s, 1e-6), max(1.0 / prior.bytes_per_s, 1e-15))
        self._regression = RelativeRegression(costs, costs, spread, spread)
        self._shift = ShiftDetector(SHIFT_TRANSFERS, OUTLIER)
        self._errors = RatioWindow(PRIOR_ERROR, WINDOW, at_least=WINDOW)
        self.transfers = 0
        """Number of transfers learnt from."""

    def observe(self, kv_bytes: float, transfer_s: float) -> None:
        """Learn from a transfer; ignore one without bytes or without a credible duration."""
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
        """Return the model of expected transfer times."""
        latency_s, per_byte_s = self._regression.coefficients.tolist()
        return TransferModel(latency_s, 1.0 / max(per_byte_s, 1e-15))

    def margin(self, coverage: float) -> float:
        """Return the multiple of the expected time that transfers keep with probability `coverage`.

        Raises:
            ValueError: coverage is not between 0 and 1.
        """
        return self._errors.quantile(coverage)


class HandoverFit:
    """Learns how many decode steps a hand-over takes on one worker, or on all. Owned by one caller."""

    __slots__ = ("_errors", "_steps", "handovers")

    def __init__(self, prior_steps: float) -> None:
        self._steps = prior_steps
        self._errors = RatioWindow(STEPS_ERROR, WINDOW, at_least=WINDOW)
        self.handovers = 0
        """Number of hand-overs learnt from."""

    def observe(self, steps: float) -> None:
        """Learn from a hand-over that took so many decode steps, the transfer apart."""
        ratio = steps / self._steps
        self._errors.add(ratio)
        limit = OUTLIER * max(SMALLEST_SPREAD, self._errors.spread())
        self._steps *= 1.0 + STEPS_WEIGHT * (min(1.0 + limit, max(1.0 - limit, ratio)) - 1.0)
        self.handovers += 1

    @property
    def steps(self) -> float:
        """Decode steps that a hand-over is expected to take, the transfer apart."""
        return self._steps

    def margin(self, coverage: float) -> float:
        """Return the multiple of the expected steps that hand-overs keep with probability `coverage`.

        Raises:
            ValueError: coverage is not between 0 and 1.
        """
        return self._errors.quantile(coverage)


class Handovers:
    """Learns the links between workers, and how long hand-overs over them take.

    A hand-over takes some decode steps of the target and the transfer of the KV cache. New pairs are taken to be like
    those seen. A bound of a hand-over is the sum of both bounds, which is more than both together need. Memory is
    bounded: pairs and workers not used for longest are forgotten. Owned by one event loop.
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
            source, target: ids of the workers.
            transfer_s: seconds that the transfer took, of `KvPull`.
            wait_s: seconds from the submission until the engine could work on the request, transfer included.
            decode_step_s: time of a decode step of the target then.
            busy: whether other requests were running on the target.
        """
        self._all_pairs.observe(kv_bytes, transfer_s)
        if self._all_pairs.transfers >= ENOUGH:
            # A pair holds on to what it starts from, so it starts once all pairs together have shown something.
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
        """Return the expected seconds to read a KV cache over the fabric."""
        pair = self._pairs.get((source, target)) or self._all_pairs
        return pair.model().transfer_s(kv_bytes)

    def transfer_bound_s(self, source: str, target: str, kv_bytes: int, coverage: float) -> float:
        """Return the seconds that reading a KV cache keeps with probability `coverage`."""
        return self.link(source, target, coverage).transfer_s(kv_bytes)

    def steps(self, target: str, *, busy: bool) -> float:
        """Return the expected decode steps from the first token to the second, the one that makes it included."""
        worker = self._workers.get((target, busy)) or self._all_workers[busy]
        return worker.steps

    def steps_bound(self, target: str, coverage: float, *, busy: bool) -> float:
        """Return the decode steps that hand-overs to this worker keep with probability `coverage`."""
        worker = self._workers.get((target, busy))
        errors = self._all_workers[busy] if worker is None or worker.handovers < ENOUGH else worker
        return self.steps(target, busy=busy) * errors.margin(coverage)

    def link(self, source: str, target: str, coverage: float) -> TransferModel:
        """Return an upper bound of the transfer model of a pair, which transfers keep with probability `coverage`."""
        pair = self._pairs.get((source, target))
        model = (pair or self._all_pairs).model()
        errors = self._all_pairs if pair is None or pair.transfers < ENOUGH else pair
        margin = errors.margin(coverage)
        return TransferModel(model.latency_s * margin, model.bytes_per_s / margin)

    def learnt_pairs(self) -> tuple[tuple[str, str], ...]:
        """Return the pairs of workers that have a model of their own."""
        return tuple(self._pairs)

    def handover_s(self, source: str, target: str, kv_bytes: int, decode_step_s: float, *, busy: bool) -> float:
        """Return the expected seconds from the first token to the second."""
        return self.steps(target, busy=busy) * decode_step_s + self.transfer_s(source, target, kv_bytes)

    def handover_bound_s(
        self, source: str, target: str, kv_bytes: int, decode_step_s: float, coverage: float, *, busy: bool
    ) -> float:
        """Return the seconds that hand-overs keep with at least probability `coverage`.

        Args:
            decode_step_s: bound of a decode step of the target.
        """
        steps = self.steps_bound(target, coverage, busy=busy)
        return steps * decode_step_s + self.transfer_bound_s(source, target, kv_bytes, coverage)
