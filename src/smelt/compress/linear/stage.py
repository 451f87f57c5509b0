"""The stage "linearise": layers of a trained model attend with a state of fixed size instead of keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from smelt.checkpoint import Checkpoint
from smelt.compress.linear.convert import default_layers, linear_config, linearised
from smelt.compress.linear.measure import memory, warnings_of, worth
from smelt.compress.linear.transfer import AttentionTransfer, transfer_errors
from smelt.compress.made import telling, train_config, write_made
from smelt.compress.stage import Needs, Work, how
from smelt.core.decoder import DecoderConfig, LinearConfig
from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder
from smelt.train.config import OptimizerConfig
from smelt.train.hardware import pick_device
from smelt.train.loop import Run, Stage


@dataclass(frozen=True, kw_only=True)
class Linearise:
    """Attention transfer into linear layers; distillation (the stage `distil`) repairs what is left.

    layers: which; None: spread over the first three quarters, `keep` of all layers left as they are (published hybrids
    keep a quarter to a half). kind, window and feature_dim as in `core.decoder.LinearConfig`. steps: of transfer, each
    over `batch` batches of the material's stream, at Adam's rate `lr`. Matrices q, k, v and o are the source's.
    """

    layers: tuple[int, ...] | None = None
    keep: float = 0.5
    kind: Literal["hybrid", "gated delta"] = "hybrid"
    window: int = 64
    feature_dim: int = 64
    steps: int = 200
    batch: int = 1
    lr: float = 1e-2
    seed: int = 0
    workers: int = how(1)
    device: str = how("auto")
    checkpoint_s: float = how(60.0)
    name: ClassVar[str] = "linearise"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not (math.isfinite(self.lr) and self.lr > 0):
            raise InvalidRequestError("linearise: steps and batch must be at least 1, and lr above 0")

    @property
    def linear(self) -> LinearConfig:
        """What the layers become."""
        return LinearConfig(kind=self.kind, window=self.window, feature_dim=self.feature_dim)

    def needs(self, config: DecoderConfig) -> Needs:
        """Source and result, a copy of each for the checkpoint, and a row's activations in every linear layer."""
        whole = 4 * config.num_parameters
        width = config.num_heads * (2 * self.feature_dim + 2 * max(64, self.window) + config.head_dim)
        rows = 4 * config.context_len * config.num_layers * (width + 4 * config.hidden_size)
        return Needs(memory_bytes=4 * whole + min(rows, 1 << 31), disk_bytes=4 * whole)

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """See `compress.stage.Stage`. Facts: the error of each layer's output before and after, held-out bits per byte
        and recall of source, result and its parts, memory, `warnings`.

        Raises InvalidRequestError for layers that cannot become linear and for a source in few bits.
        """
        config = self._shape(source)
        layers = tuple(i for i, x in enumerate(config.layers) if x != source.config.layers[i])
        device, material = pick_device(self.device), work.material
        teacher = Decoder.from_tensors(source.config, source.tensors).to(device).eval()
        student = linearised(teacher, config, self.seed).to(device)
        before = transfer_errors(student, teacher, material.held_out, layers, device)
        run = self._run(student, teacher, layers, work)
        position = run.train()
        made = run.result().to(device).eval()
        after = transfer_errors(made, teacher, material.held_out, layers, device)
        facts: dict[str, Any] = {
            "layers": list(layers),
            "linear": {"kind": self.kind, "window": self.window, "feature_dim": self.feature_dim},
            "transfer": {"steps": position.step, "tokens": position.num_tokens},
            "errors": {str(i): {"before": before[i], "after": after[i]} for i in layers},
            **worth(teacher, made, self.linear, material, device),
            "memory": memory(source.config, config),
            "parameters": {"before": source.config.num_parameters, "after": config.num_parameters},
            "claims": [],  # no speed before a fast runner, no bytes: what it buys is memory at length
        }
        row_lens = [batch.inputs.shape[1] for batch in material.held_out]
        facts["warnings"] = warnings_of(facts, config, self.linear, row_lens)
        for warning in facts["warnings"]:
            work.say(f"linearise: {warning}")
        write_made(work, source, config, made.tensors())
        return facts

    def _shape(self, source: Checkpoint) -> DecoderConfig:
        if source.scheme is not None:
            raise InvalidRequestError(
                f"linearise: the source's weights are stored in {source.scheme.weights.bits} bits; sought floating "
                "point: linearise before quantizing"
            )
        chosen = default_layers(source.config, self.keep) if self.layers is None else self.layers
        return linear_config(source.config, chosen, self.linear)

    def _run(self, student: Decoder, teacher: Decoder, layers: tuple[int, ...], work: Work) -> Run:
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(any(f"model.layers.{i}.self_attn.mixer." in name for i in layers))

        return Run(
            model=student,
            stages=[
                Stage(
                    name=self.name,
                    stream=work.material.stream(self.seed),
                    objective=AttentionTransfer(teacher, layers),
                )
            ],
            config=train_config(self, self.steps, OptimizerConfig(muon_lr=self.lr, adam_lr=self.lr, weight_decay=0.0)),
            folder=work.scratch / "run",
            on_report=telling(work, self.steps),
            stopping=work.stopping,
        )
