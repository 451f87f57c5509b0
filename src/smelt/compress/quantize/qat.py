"""The stage "quantize-aware": a trained model learns to be right in few bits, then is stored in them.

It trains through the one loop with fake quantization in place (`fake`), so every step sees the numbers that are stored
afterwards, and is drawn to what it was itself in full precision: forward KL to its own distributions (as the makers of
Gemma 3 report) needs few steps and no labels. Worth its cost where rounding with calibration loses over a per cent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch

from smelt.checkpoint import Checkpoint
from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.made import telling, train_config, write_made
from smelt.compress.quality import quality
from smelt.compress.quantize import rtn
from smelt.compress.quantize.fake import FakeDecoder, Noise, faked
from smelt.compress.quantize.few_bits import in_few_bits
from smelt.compress.quantize.grid import Clip
from smelt.compress.quantize.prepare import Statics, calibrated, prepare, with_statics
from smelt.compress.stage import Needs, Work, how
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import Scheme
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig
from smelt.train.distill.objective import Distillation
from smelt.train.loop import Run
from smelt.train.loop import Stage as Part
from smelt.train.objectives import CrossEntropy, Objective
from smelt.train.report import read
from smelt.train.teachers.online import DecoderTeacher


@dataclass(frozen=True, kw_only=True)
class QuantizeAware:
    """steps of `batch` batches of the material's stream each. In the first `delay_steps` nothing is rounded, and the
    text alone is learned: a model has nothing to learn from itself until it is rounded.

    scheme, clip: what is stored how, and learned for. ratio: the share of the divergence from the model's own
    distributions against the text's cross-entropy: 1 learns from the model alone (QAD), 0 from the text alone (QAT).
    noise: matrices inside the layers that learn under uniform noise of a step's width instead of rounding, for those
    that several layers share. The range is searched anew at every step, and coarser than for storing once: at 3 and 4
    bits that halves what rounding loses before a step is taken. Rates are a fortieth of those from scratch, and fall
    to 0. fit_groups: as in `ptq_stage.Quantize`.
    """

    scheme: Scheme
    clip: Clip = Clip(kind="mse", num_steps=10, smallest=0.5)
    steps: int = 200
    delay_steps: int = 0
    batch: int = 1
    ratio: float = 1.0
    noise: Noise = "none"
    muon_lr: float = 5e-4
    adam_lr: float = 7.5e-5
    warmup: float = 0.05
    decay: float = 0.7
    fit_groups: bool = False
    seed: int = 0
    workers: int = how(1)
    device: str = how("auto")
    checkpoint_s: float = how(60.0)
    name: ClassVar[str] = "quantize-aware"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.delay_steps < self.steps:
            raise InvalidRequestError(
                f"{self.name}: sought steps and batch of at least 1 and a delay of fewer steps, found steps "
                f"{self.steps}, batch {self.batch}, delay_steps {self.delay_steps}"
            )
        if not 0.0 <= self.ratio <= 1.0:
            raise InvalidRequestError(
                f"{self.name}: ratio is {self.ratio}; sought 0 (the text) to 1 (the model itself)"
            )
        if self.delay_steps and self.ratio == 1.0:
            raise InvalidRequestError(
                f"{self.name}: delay_steps is {self.delay_steps} and ratio 1: before it is rounded a model learns "
                "nothing from itself; sought no delay, or a ratio below 1"
            )
        if self.noise not in ("none", "shared", "all"):
            raise InvalidRequestError(f"{self.name}: noise is {self.noise!r}; sought none, shared or all")

    def needs(self, config: DecoderConfig) -> Needs:
        """Weights, gradients, two momenta, their copy for the checkpoint, the values of codes, the teacher; a row."""
        whole = 4 * config.num_parameters
        rows = 4 * config.context_len * config.hidden_size * config.num_layers * 16
        return Needs(memory_bytes=9 * whole + min(rows, 1 << 30), disk_bytes=8 * whole)

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """See `compress.stage.Stage`.

        Facts: objective, steps, tokens, first and last loss; of the source bits per byte, of plain rounding and of the
        result also KL and agreement with the source; `recovered` and `recovered_kl`, the shares of what rounding loses
        in bits per byte and in KL that training won back (None where it loses nothing); `warnings`.
        """
        if self.fit_groups:
            scheme = rtn.fitted(source.config, self.scheme, work.say)
            return replace(self, scheme=scheme, fit_groups=False).run(source, work)
        self._check(source, work)
        config = source.config
        full = Decoder.from_tensors(config, source.tensors).eval()
        prepared = prepare(full, self.scheme, clip=self.clip)
        statics = calibrated(prepared, work.material.calibration.batches, work.scratch).statics()
        objective = self._objective(full)
        run = self._training(self._student(full, statics), objective, work)
        position = run.train()
        made = run.result()
        quantized = self._converted(made, statics)
        write_made(work, source, config, made.tensors(), quantized=quantized, scheme=self.scheme)
        losses = [entry["loss"] for entry in read(run.folder)]
        facts = {
            "scheme": asdict(self.scheme),
            "objective": objective.name,
            "steps": position.step,
            "tokens": position.num_tokens,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            **self._measured(full, made, statics, work),
        }
        for warning in facts["warnings"]:
            work.say(f"{self.name}: {warning}")
        return facts

    def _check(self, source: Checkpoint, work: Work) -> None:
        rtn.check_scheme(source.config, self.scheme)
        if source.scheme is not None:
            raise InvalidRequestError(
                f"{self.name}: the source is stored in {source.scheme.weights.bits} bits already; sought the model it "
                "was made of"
            )
        shared = any(layer.weights is not None for layer in source.config.layers)
        if self.noise == "shared" and not shared:
            raise InvalidRequestError(f"{self.name}: noise on shared matrices, but no layers of the source share any")
        if not work.material.held_out or work.material.held_out_bytes < 1:
            raise InvalidRequestError(f"{self.name}: no held-out text: what quantization costs could not be told")

    def _student(self, full: Decoder, statics: Statics) -> FakeDecoder:
        return faked(full, self.scheme, clip=self.clip, statics=statics or None, noise=self.noise, seed=self.seed)

    def _objective(self, full: Decoder) -> Objective:
        if self.ratio == 0.0:
            return CrossEntropy()
        teacher = DecoderTeacher(Decoder.from_tensors(full.config, full.tensors()), full.config.vocab_size)
        return Distillation(teacher, ratio=self.ratio)

    def _training(self, student: FakeDecoder, objective: Objective, work: Work) -> Run:
        def before(step: int) -> None:
            student.moment.step, student.moment.rounds = step, step >= self.delay_steps

        return Run(
            model=student,
            stages=[Part(name=self._told(), stream=work.material.stream(self.seed), objective=objective)],
            config=train_config(self, self.steps, self._optimizer, warmup=self.warmup, decay=self.decay),
            folder=work.scratch / "run",
            on_report=telling(work, self.steps),
            stopping=work.stopping,
            before_step=before,
        )

    def _told(self) -> str:
        """What decides what the steps learn, for the identity of the run: a scratch of other settings is refused."""
        settings = (self.scheme, self.clip, self.delay_steps, self.noise)
        return f"{self.name} {settings}"

    @property
    def _optimizer(self) -> OptimizerConfig:
        return OptimizerConfig(muon_lr=self.muon_lr, adam_lr=self.adam_lr, weight_decay=0.0)

    def _converted(self, model: Decoder, statics: Statics) -> dict[str, QuantizedWeight]:
        """By the quantizer that the model was trained with."""
        return with_statics(rtn.rounded(model.config, model.tensors(), self.scheme, self.clip), statics)

    @torch.no_grad()
    def _measured(self, full: Decoder, made: Decoder, statics: Statics, work: Work) -> dict[str, Any]:
        """The source, plain rounding of it, and the result, on the held-out text."""
        found = {}
        for key, model in (("rtn", full), ("after", made)):
            held = in_few_bits(model.config, model.tensors(), self._converted(model, statics), self.scheme)
            found[key] = quality(held, full, work.material)
        rounded, after = (found[key]["bits_per_byte"]["value"] for key in ("rtn", "after"))
        before = rounded / (1 + found["rtn"]["bpb_increase"]["value"])
        lost, left = (found[key]["kl"]["value"] for key in ("rtn", "after"))
        warnings = []
        if not after <= rounded:  # also where it is no number
            warnings.append(
                f"bits per byte are {after:.4f}, and {rounded:.4f} by rounding alone: training made it worse; lower "
                "the rates, or take more steps"
            )
        return {
            "before": {"bits_per_byte": before},
            **found,
            "recovered": (rounded - after) / (rounded - before) if rounded > before else None,
            "recovered_kl": 1 - left / lost if lost > 0 else None,
            "warnings": warnings,
        }
