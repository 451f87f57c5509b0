"""The stage "prune": score, search, measure, slice."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from smelt.checkpoint import Checkpoint
from smelt.compress.made import write_made
from smelt.compress.prune.importance import Shape, check_within, importance, kept_at, norm_gains
from smelt.compress.prune.scores import Scores, scores_of
from smelt.compress.prune.search import Search
from smelt.compress.prune.shapes import Limits, Target, check_limits
from smelt.compress.prune.slice import Kept, check_loads, check_prunable, sliced
from smelt.compress.prune.trials import Slicer, Trials
from smelt.compress.stage import Needs, Progress, Work, how
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError, TrainingStoppedError
from smelt.model.decoder import Decoder
from smelt.train.finetune.folder import stored_dtype
from smelt.train.hardware import pick_device

_SAVE_S = 30.0  # between two savings of the scores


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Structured pruning of a decoder of plain layers.

    target: a `Shape`, or what the result must fit (`Share`, `Bytes`, `Speed`). candidates: shapes measured on held-out
    text after the cheap rank. trial_steps: the `finalists` best of these are distilled so long from the chain's teacher
    before the choice, as ranks change with the first per cent of the tokens; 0: none is.
    score: `activation` is Minitron's, `outgoing` the same times the norm of the weights that read it.
    norm_repair: norms' gains are scaled so that outputs keep their size (see `importance.norm_gains`).
    scores: a folder where scores stay, by source and calibration set, so that a second target needs no pass of the
    model; None: the scratch folder.
    """

    target: Shape | Target
    candidates: int = 10
    limits: Limits = Limits()
    score: Literal["activation", "outgoing"] = "activation"
    norm_repair: bool = True
    finalists: int = 3
    trial_steps: int = 0
    seed: int = 0
    device: str = how("auto")
    scores: Path | None = how(None)

    @property
    def name(self) -> str:
        """Prune."""
        return "prune"

    def needs(self, config: DecoderConfig) -> Needs:
        """The source, a candidate and the tensor under way; trials add a teacher, gradients and two momenta."""
        copies = 3 + (5 if self.trial_steps else 0)
        kept = 1 + (4 * self.finalists if self.trial_steps else 0)  # the result; each trial's state
        weights = 4 * config.num_parameters
        return Needs(memory_bytes=copies * weights, disk_bytes=kept * weights)

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """See `compress.stage.Stage`. Facts: the shape, the candidates, held-out bits per byte before and after.

        Raises InvalidRequestError for a target that one shot cannot meet, UnsupportedError for layers that are shared
        or linearised.
        """
        self._check(source)
        device, config = pick_device(self.device), source.config
        model = Decoder.from_tensors(config, source.tensors).to(device).eval()
        scores = self._scored(model, source, work, device)
        found = importance(scores, config, source.tensors if self.score == "outgoing" else None)

        def gains(kept: Kept) -> Mapping[str, float]:
            return norm_gains(scores, config, kept.hidden) if self.norm_repair else {}

        slicer = Slicer(config, source.tensors, found, gains)
        trials = Trials(slicer, work, device, steps=self.trial_steps, seed=self.seed)
        before = trials.whole(model)
        del model
        if isinstance(self.target, Shape):
            chosen, told = self.target, dict[str, Any]()
        else:
            search = Search(
                target=self.target, limits=self.limits, candidates=self.candidates, finalists=self.finalists
            )
            chosen, told = search.run(config, found, trials, before)
        after = trials.pruned(chosen)
        kept = kept_at(found, config, chosen)
        smaller, tensors = sliced(config, source.tensors, kept, gains(kept))
        dtype = stored_dtype(source)
        write_made(work, source, smaller, tensors)
        item_bytes = 4 if dtype == "F32" else 2
        sizes = (config.num_parameters, smaller.num_parameters)
        return {
            "shape": {"before": asdict(Shape.of(config)), "after": asdict(chosen)},
            "kept_layers": list(kept.layers),
            "parameters": {"before": sizes[0], "after": sizes[1]},
            "weight_bytes": {"before": sizes[0] * item_bytes, "after": sizes[1] * item_bytes},
            "held_out_bpb": {"before": before, "pruned": after},
            "calibration": {"documents": scores.num_documents, "tokens": scores.num_tokens},
            **told,
        }

    def _check(self, source: Checkpoint) -> None:
        check_prunable(source.config)
        if source.scheme is not None:
            raise InvalidRequestError(
                f"prune: the source's weights are stored in {source.scheme.weights.bits} bits; prune before quantizing"
            )
        check_limits(self.limits)
        for name, least in (("candidates", 1), ("finalists", 1), ("trial_steps", 0)):
            if (value := getattr(self, name)) < least:
                raise InvalidRequestError(f"{name} is {value}; sought {least} or more", param=name)
        if isinstance(self.target, Shape):
            check_within(source.config, self.target)
            shape = self.target
            check_loads(source.config.family, shape.hidden_size, shape.num_kv_heads * shape.heads_per_group)

    def _scored(self, model: Decoder, source: Checkpoint, work: Work, device: torch.device) -> Scores:
        """The calibration set's sums, from where a pass before this one came to."""
        calibration = work.material.calibration
        folder = self.scores or work.scratch
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"scores-{source.fingerprint[:16]}-{calibration.digest[:16]}.npz"
        scores = Scores.load(path) if path.is_file() else Scores.nothing(source.config)
        done, began = scores.num_batches, time.monotonic()
        saved = began
        for number, batch in enumerate(calibration.batches[done:], done + 1):
            if work.stopping.is_set():
                scores.save(path)
                raise TrainingStoppedError("prune: stopped; the scores so far are kept, called again it goes on")
            scores = scores + scores_of(model, batch, device)
            now = time.monotonic()
            if number == len(calibration.batches) or now - saved > _SAVE_S:
                scores.save(path)
                saved = now
            left_s = (now - began) / (number - done) * (len(calibration.batches) - number)
            work.on_progress(Progress(unit="batches", done=number, total=len(calibration.batches), left_s=left_s))
        if scores.num_tokens == 0:
            raise InvalidRequestError(
                f"calibration: sought tokens to watch the model on, found none: {calibration.source}"
            )
        return scores
