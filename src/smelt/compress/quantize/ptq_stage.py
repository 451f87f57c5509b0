"""The stage "quantize": a calibrated walk, a folder in few bits, and plain rounding beside it as the control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from numpy.typing import NDArray

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.checkpoint.compressed_tensors import EMBEDDING, HEAD
from smelt.checkpoint.quantized import QuantizedWeight
from smelt.compress.made import write_made
from smelt.compress.quality import quality
from smelt.compress.quantize import grid, rtn
from smelt.compress.quantize.calibrated import Calibrated, Method, Range, layer_errors, plain_statics, stored_weights
from smelt.compress.quantize.few_bits import in_few_bits
from smelt.compress.quantize.prepare import with_statics
from smelt.compress.stage import Material, Needs, Work, how
from smelt.compress.walk import walk
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import Scheme
from smelt.model.decoder import Decoder
from smelt.train.hardware import pick_device
from smelt.train.objectives import kept_places, mean_loss

WARN_ABOVE = 0.05  # rise of bits per byte; int4 is expected below 0.03
_RANGES: dict[Method, Range] = {"rtn": "whole", "gptq": "mse", "awq": "output"}
_HEAD_CLIP = grid.Clip(kind="mse")


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Post-training quantization of a whole model; settings as in `Calibrated`.

    scheme: what is stored how. The embedding and the head have no inputs to be calibrated by (a row of the one is read
    at a time, the other's error meets all words alike): they are rounded with a search of the range, tied ones once.
    range None: the method's own, whole for rtn, mse for gptq, output for awq. fit_groups: groups that do not divide the
    source's rows are narrowed (`rtn.fitted`) instead of refused, for a chain that prunes first.
    """

    scheme: Scheme
    method: Method = "gptq"
    range: Range | None = None
    smooth: float | None = None
    act_order: bool = True
    damping: float = 0.01
    search_tokens: int = 4096
    fit_groups: bool = False
    device: str = how("auto")

    @property
    def name(self) -> str:
        """Quantize."""
        return "quantize"

    def needs(self, config: DecoderConfig) -> Needs:
        """Two models in float32 and what a third is made of, and the Hessian of the widest input."""
        widest = max(width for _, width in config.matrix_shapes().values())
        whole = 4 * config.num_parameters
        return Needs(memory_bytes=3 * whole + 6 * 4 * widest**2, disk_bytes=3 * whole)

    def run(self, source: Checkpoint, work: Work) -> dict[str, Any]:
        """See `compress.stage.Stage`.

        Facts: the share of its output that every matrix lost, by the method and by rounding to nearest; bits per byte,
        KL and agreement with the source, of the control (all of the model rounded to nearest) and of the result as the
        folder holds it; `warnings`, sentences, empty where nothing is amiss.
        """
        if self.fit_groups:
            scheme = rtn.fitted(source.config, self.scheme, work.say)
            return replace(self, scheme=scheme, fit_groups=False).run(source, work)
        self._check(source, work.material)
        config, calibration = source.config, work.material.calibration
        treatment = self._treatment(config)
        model = Decoder.from_tensors(config, source.tensors).to(pick_device(self.device)).eval()
        kept = walk(
            model,
            calibration,
            treatment,
            work.scratch / "walk",
            on_progress=work.on_progress,
            stopping=work.stopping,
        )
        quantized = stored_weights(kept, self.scheme.weights) | self._apart(source)
        write_made(work, source, config, model.tensors(), quantized=quantized, scheme=self.scheme)
        del model
        errors = layer_errors(kept, self.method)
        facts = {
            "method": self.method,
            "range": treatment.range,
            "smooth": self.smooth,
            "scheme": asdict(self.scheme),
            "bits_per_weight": _bits_per_weight(config, self.scheme),
            "calibration": {
                "source": calibration.source,
                "digest": calibration.digest,
                "tokens": sum(len(kept_places(batch)) for batch in calibration.batches),
            },
            "layers": errors,
            **self._measured(source, work, kept, treatment),
        }
        facts["warnings"] = _warnings(facts, config)
        for warning in facts["warnings"]:
            work.say(f"quantize: {warning}")
        return facts

    def _check(self, source: Checkpoint, material: Material) -> None:
        rtn.check_scheme(source.config, self.scheme)
        if source.scheme is not None:
            raise InvalidRequestError(
                "the model is in few bits already, and rounding it again only adds error; sought the one it was made of"
            )
        if self.method not in _RANGES:
            raise InvalidRequestError(f"method is {self.method!r}; sought rtn, gptq or awq", param="method")
        if self.range not in (None, "whole", "mse", "output"):
            raise InvalidRequestError(f"range is {self.range!r}; sought whole, mse or output", param="range")
        if self.smooth is not None and self.scheme.activations is None:
            raise InvalidRequestError(
                "smooth hands outliers of the inputs to the weights, which helps inputs in few bits alone; sought "
                "activations in the scheme, or no smooth",
                param="smooth",
            )
        if self.smooth is not None and not 0.0 <= self.smooth <= 1.0:
            raise InvalidRequestError(f"smooth is {self.smooth}; sought 0 to 1, best 0.5 to 0.8", param="smooth")
        if not (math.isfinite(self.damping) and self.damping > 0):
            raise InvalidRequestError(f"damping is {self.damping}; sought a number above 0", param="damping")
        if not material.held_out or material.held_out_bytes < 1:
            raise InvalidRequestError("no held-out text: what quantization costs could not be told")
        if not sum(len(kept_places(batch)) for batch in material.calibration.batches):
            raise InvalidRequestError(f"calibration: sought tokens, found none: {material.calibration.source}")

    def _treatment(self, config: DecoderConfig) -> Calibrated:
        return Calibrated(
            config=config,
            scheme=self.scheme,
            method=self.method,
            range=self.range or _RANGES[self.method],
            smooth=self.smooth,
            act_order=self.act_order,
            damping=self.damping,
            search_tokens=self.search_tokens,
        )

    def _apart(self, source: Checkpoint) -> dict[str, QuantizedWeight]:
        """The embedding and the head, where the scheme has a format for them."""
        found = {}
        for name, form in rtn.formats(source.config, self.scheme).items():
            if name in (EMBEDDING, HEAD):
                weight_VH = torch.from_numpy(source.tensors[name].copy())
                found[name] = grid.quantized(weight_VH, form, _HEAD_CLIP)
        return found

    def _measured(
        self, source: Checkpoint, work: Work, kept: Mapping[str, NDArray[Any]], treatment: Calibrated
    ) -> dict[str, Any]:
        """What the source, the control and the result make of the held-out text."""
        material, config = work.material, source.config
        device = pick_device(self.device)
        whole = Decoder.from_tensors(config, source.tensors).to(device).eval()
        learned = sum(batch.num_learned for batch in material.held_out)
        nats = mean_loss(whole, material.held_out, device) * learned
        before = {"bits_per_byte": nats / math.log(2) / material.held_out_bytes}
        stored = open_checkpoint(work.out)
        result = in_few_bits(config, stored.tensors, stored.quantized, self.scheme).to(device)
        after = quality(result, whole, material)
        del result
        plain = rtn.rounded(config, source.tensors, self.scheme, treatment.plain_clip) | self._apart(source)
        plain = with_statics(plain, plain_statics(kept))
        control = quality(in_few_bits(config, source.tensors, plain, self.scheme).to(device), whole, material)
        return {"before": before, "rtn": control, "after": after}


def _bits_per_weight(config: DecoderConfig, scheme: Scheme) -> float:
    """Of all quantized matrices together, scales of 16 bits included."""
    bits = numbers = 0.0
    for name, form in rtn.formats(config, scheme).items():
        rows, width = config.tensor_shapes()[name]
        bits += rows * width * form.bits_per_weight(width)
        numbers += rows * width
    return bits / numbers


def _warnings(facts: Mapping[str, Any], config: DecoderConfig) -> list[str]:
    """What a reader of the facts must not overlook."""
    found = []
    before = facts["before"]["bits_per_byte"]
    after = facts["after"]["bits_per_byte"]["value"]
    if not after <= before * (1 + WARN_ABOVE):  # also where it is no number
        found.append(
            f"bits per byte rose by {(after / before - 1) * 100:.1f} % ({before:.4f} to {after:.4f}), more than "
            f"{WARN_ABOVE * 100:.0f} %: take more bits, smaller groups, or calibration text like the one it is for"
        )
    losses = [cast(float, facts[side]["kl"]["value"]) for side in ("after", "rtn")]
    if facts["method"] != "rtn" and not losses[0] <= losses[1]:
        found.append(
            f"{facts['method']} is further from the source than rounding to nearest (KL {losses[0]:.4g} against "
            f"{losses[1]:.4g}): its calibration does not fit the held-out text, or there was too little of it"
        )
    tokens, widest = facts["calibration"]["tokens"], max(width for _, width in config.matrix_shapes().values())
    if facts["method"] != "rtn" and tokens < widest:
        found.append(f"{tokens} tokens of calibration for matrices of up to {widest} inputs: sought several times more")
    return found
