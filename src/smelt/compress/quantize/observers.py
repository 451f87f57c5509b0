"""Observers: what they saw of a tensor over a calibration set, and the range that codes should cover.

All but `average` are the same for any order of the batches, and two that saw parts of a set merge into what one of
them would have been. Histograms have bins of a power of two over a range of a power of two, which doubles when a value
falls outside, two bins becoming one: no count is ever split, so that holds for them to the bit.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from smelt.compress.quantize.activations import codes_of_inputs, scales_between
from smelt.compress.quantize.grid import values_of
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import ActivationFormat

NUM_BINS = 2048  # on each side of 0
_LEAST_REACH = 2.0**-40
_MSE_STEPS = 100
_AVERAGE_RATE = 0.01

Range = tuple[float, float]


class Observer(Protocol):
    """Sees tensors, then names a range with 0 in it."""

    def update(self, x: Tensor) -> None:
        """Take in a batch's values, of any shape."""
        ...

    def range(self) -> Range:
        """Lowest and highest value to cover. Raises InvalidRequestError where nothing was seen."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All it knows."""
        ...

    def merge(self, state: dict[str, Tensor]) -> None:
        """Take in what another observer of the same kind saw; a new one thereby goes on where that one stood."""
        ...


def make_observer(format: ActivationFormat) -> Observer:
    """The observer that a format names."""
    match format.observer:
        case "minmax":
            return MinMax()
        case "average":
            return Average()
        case "percentile":
            return Percentile(format.percentile)
        case "mse":
            return LeastError(format)
        case "entropy":
            return Entropy(format)


class MinMax:
    """Everything seen."""

    def __init__(self) -> None:
        self.lowest, self.highest = math.inf, -math.inf

    def update(self, x: Tensor) -> None:
        """Widen."""
        if x.numel():
            lowest, highest = torch.aminmax(x)
            self.lowest, self.highest = min(self.lowest, float(lowest)), max(self.highest, float(highest))

    def range(self) -> Range:
        """The extremes."""
        return _with_zero(self.lowest, self.highest)

    def state(self) -> dict[str, Tensor]:
        """The extremes."""
        return {"ends": torch.tensor([self.lowest, self.highest], dtype=torch.float64)}

    def merge(self, state: dict[str, Tensor]) -> None:
        """The outer ones of both."""
        lowest, highest = state["ends"].tolist()
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)


class Average:
    """The mean of the batches' extremes, over about the last `1 / rate` of them: one odd batch counts for little."""

    def __init__(self, rate: float = _AVERAGE_RATE) -> None:
        self.rate, self.count = rate, 0
        self.lowest, self.highest = 0.0, 0.0

    def update(self, x: Tensor) -> None:
        """Move towards the batch's extremes."""
        if x.numel():
            lowest, highest = torch.aminmax(x)
            self.count += 1
            self._move(float(lowest), float(highest), max(self.rate, 1 / self.count))

    def range(self) -> Range:
        """The averages."""
        return _with_zero(self.lowest, self.highest) if self.count else _with_zero(math.inf, -math.inf)

    def state(self) -> dict[str, Tensor]:
        """The averages and of how many batches."""
        return {"ends": torch.tensor([self.lowest, self.highest, self.count], dtype=torch.float64)}

    def merge(self, state: dict[str, Tensor]) -> None:
        """The mean of both, weighted by how many batches each saw."""
        lowest, highest, count = state["ends"].tolist()
        self.count += int(count)
        if count:
            self._move(lowest, highest, count / self.count)

    def _move(self, lowest: float, highest: float, rate: float) -> None:
        self.lowest += (lowest - self.lowest) * rate
        self.highest += (highest - self.highest) * rate


class Histogram:
    """Counts of values, and the extremes; what percentile, least error and entropy are taken from."""

    def __init__(self) -> None:
        self.reach = _LEAST_REACH  # a power of two above everything seen
        self.counts = torch.zeros(2 * NUM_BINS, dtype=torch.int64)
        self.ends = MinMax()

    def update(self, x: Tensor) -> None:
        """Count a batch's values. Raises InvalidRequestError where one is no number."""
        if not x.numel():
            return
        values = x.detach().flatten().float()
        largest = float(values.abs().max())
        if not math.isfinite(largest):
            raise InvalidRequestError("the model's activations hold infinities or values that are no numbers")
        self._grow(2.0 ** math.frexp(largest)[1])
        self.ends.update(values)
        # Division by a power of two is exact, so that a bin's edges are the same for every range.
        bins = torch.floor(values * (NUM_BINS / self.reach)).long() + NUM_BINS
        self.counts += torch.bincount(bins, minlength=2 * NUM_BINS).cpu()

    def state(self) -> dict[str, Tensor]:
        """Counts, their reach and the extremes."""
        return {"counts": self.counts.clone(), "reach": torch.tensor(self.reach), **self.ends.state()}

    def merge(self, state: dict[str, Tensor]) -> None:
        """Add the counts of both over the wider range."""
        other = Histogram()
        other.counts, other.reach = state["counts"].clone(), float(state["reach"])
        other._grow(self.reach)
        self._grow(other.reach)
        self.counts += other.counts
        self.ends.merge(state)

    def centers(self) -> Tensor:
        """The middle of each bin, float64."""
        return (torch.arange(2 * NUM_BINS, dtype=torch.float64) - NUM_BINS + 0.5) * (self.reach / NUM_BINS)

    def _grow(self, reach: float) -> None:
        while self.reach < reach:
            pairs = self.counts.view(-1, 2).sum(-1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[NUM_BINS // 2 : NUM_BINS // 2 + NUM_BINS] = pairs
            self.reach *= 2


class Percentile(Histogram):
    """The middle `percent` of the values."""

    def __init__(self, percent: float) -> None:
        super().__init__()
        if not 50.0 < percent <= 100.0:
            raise InvalidRequestError(f"a percentile of {percent}; sought above 50 and up to 100")
        self.percent = percent

    def range(self) -> Range:
        """Without the floor of (100 - percent) / 200 of all values at each end, out to the edges of their bins."""
        lowest, highest = self.ends.range()
        dropped = int((100 - self.percent) / 200 * float(self.counts.sum()) + 1e-6)
        below = int((self.counts.cumsum(0) <= dropped).sum())
        above = int((self.counts.flip(0).cumsum(0) <= dropped).sum())
        width = self.reach / NUM_BINS
        return _with_zero(max(lowest, (below - NUM_BINS) * width), min(highest, (NUM_BINS - above) * width))


class LeastError(Histogram):
    """The threshold on |x| (1, 0.99, ... 0.01 of the largest) with which codes have the least squared error."""

    def __init__(self, format: ActivationFormat) -> None:
        super().__init__()
        self.format = format

    def range(self) -> Range:
        """Of equal thresholds the largest."""
        lowest, highest = self.ends.range()
        centers, weights = self.centers(), self.counts.double()
        tried = [max(-lowest, highest) * (1 - i / _MSE_STEPS) for i in range(_MSE_STEPS)]
        errors = []
        for reach in tried:
            ends = torch.tensor([max(lowest, -reach), min(highest, reach)], dtype=torch.float64)
            scale, zero = scales_between(ends[0], ends[1], self.format)
            rounded = values_of(codes_of_inputs(centers, scale, zero, self.format), scale, zero)
            errors.append(float(((centers - rounded).square() * weights).sum()))
        reach = tried[errors.index(min(errors))]
        return max(lowest, -reach), min(highest, reach)


class Entropy(Histogram):
    """The range in which codes keep the most of the values' distribution (least KL divergence, Migacz 2017).

    For every threshold on |x|: the distribution with all beyond counted at the threshold, against the same one as
    2^(bits - 1) codes tell it.
    """

    def __init__(self, format: ActivationFormat) -> None:
        super().__init__()
        self.num_codes = 1 << (format.bits - 1)

    def range(self) -> Range:
        """Of equal thresholds the largest."""
        lowest, highest = self.ends.range()
        counts = (self.counts[NUM_BINS:] + self.counts[:NUM_BINS].flip(0)).double()
        used = int(counts.nonzero().max()) + 1
        stride = max(1, self.num_codes // 8)
        tried = list(range(used, self.num_codes, -stride)) or [used]
        losses = [_lost(counts, bins, self.num_codes) for bins in tried]
        reach = tried[losses.index(min(losses))] * (self.reach / NUM_BINS)
        return max(lowest, -reach), min(highest, reach)


def _lost(counts: Tensor, num_bins: int, num_codes: int) -> float:
    """KL divergence, in nats, of `num_bins` bins (those behind counted in the last) from what the codes tell."""
    kept = counts[:num_bins]
    told = kept.clone()
    kept = kept.clone()
    kept[-1] += counts[num_bins:].sum()
    present = told > 0
    codes = torch.arange(num_bins) * num_codes // num_bins
    sums = torch.zeros(num_codes, dtype=torch.float64).index_add_(0, codes, told)
    sizes = torch.zeros(num_codes, dtype=torch.float64).index_add_(0, codes, present.double())
    spread = torch.where(present, (sums / sizes.clamp_min(1))[codes], 0.0)
    p, q = kept / kept.sum(), spread / spread.sum().clamp_min(1)
    mass = p > 0
    # What is counted at a threshold where no value lies has no probability there: as good as lost.
    return float((p[mass] * (p[mass].log() - q[mass].clamp_min(1e-12).log())).sum())


def _with_zero(lowest: float, highest: float) -> Range:
    if lowest > highest:
        raise InvalidRequestError("no activation was seen; sought a calibration set with at least one token")
    return min(lowest, 0.0), max(highest, 0.0)
