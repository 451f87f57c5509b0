"""From a target to one shape: prices by probing, a cheap rank, measurements, and short distillations of the best."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smelt.compress.prune.importance import Importance, Losses, Shape
from smelt.compress.prune.shapes import Candidate, Limits, Target, near, probes, ranked
from smelt.compress.prune.trials import Trials
from smelt.compress.stage import Progress
from smelt.core.decoder import DecoderConfig

_FLOOR = 1e-6  # a price below any measured one: where a probe costs nothing, losing less is still better


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for, among what, and how hard; the fields are those of `stage.Prune`."""

    target: Target
    limits: Limits
    candidates: int
    finalists: int

    def run(
        self, config: DecoderConfig, found: Importance, trials: Trials, before: float
    ) -> tuple[Shape, dict[str, Any]]:
        """The best shape, and what is told of the search. before: the source's held-out bits per byte."""
        considered = near(config, found, self.target, self.limits, enough=self.candidates)
        prices = self._prices(config, found, trials, before)
        best = ranked(considered, prices, self.candidates)
        rows = []
        for number, candidate in enumerate(best, 1):
            rows.append(_told(candidate) | {"pruned_bpb": trials.pruned(candidate.shape)})
            trials.work.on_progress(Progress(unit="candidates", done=number, total=len(best)))
        order = sorted(range(len(best)), key=lambda i: (rows[i]["pruned_bpb"], best[i].shape))
        if trials.steps:
            order = order[: self.finalists]
            for number, i in enumerate(order, 1):
                rows[i]["distilled_bpb"] = trials.distilled(best[i].shape)
                trials.work.on_progress(Progress(unit="finalists", done=number, total=len(order)))
            order.sort(key=lambda i: (rows[i]["distilled_bpb"], best[i].shape))
        chosen = best[order[0]].shape
        trials.work.say(
            f"prune: {_words(chosen)}: the best of {len(best)} measured; {len(considered)} shapes fit the target"
        )
        return chosen, {"candidates": rows, "considered": len(considered), "prices": prices}

    def _prices(self, config: DecoderConfig, found: Importance, trials: Trials, before: float) -> dict[str, float]:
        """Bits per byte that losing all of an axis's importance would cost, were cost in proportion to it."""
        losses, prices = Losses(found, config), {}
        for axis, shape in probes(config, self.limits).items():
            share = getattr(losses.at(shape), axis)
            rise = trials.pruned(shape) - before
            prices[axis] = max(_FLOOR, rise / share) if share > 0 else _FLOOR
        return prices


def _told(candidate: Candidate) -> dict[str, Any]:
    return {"shape": asdict(candidate.shape), "burden": candidate.burden, "lost": asdict(candidate.lost)}


def _words(shape: Shape) -> str:
    heads = f"{shape.num_kv_heads * shape.heads_per_group} heads over {shape.num_kv_heads} keys and values"
    return f"{shape.num_layers} layers, {shape.hidden_size} wide, {shape.intermediate_size} neurons, {heads}"
