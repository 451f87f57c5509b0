"""Fake quantization: a decoder in floating point that computes with the values its codes would stand for.

Codes and values come from `grid`, so what is trained here is, to the bit, what is stored afterwards. Parameter names
are the decoder's own. Gradients pass straight through the rounding where the code was not clipped (Bengio et al. 2013,
arXiv:1308.3432). Shapes: O outputs, I inputs, G groups, V vocabulary, H hidden width; ... any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smelt.compress.quantize import grid
from smelt.compress.quantize.activations import integers, scales_of_tokens
from smelt.compress.quantize.grid import MINMAX, Clip
from smelt.compress.quantize.rtn import formats
from smelt.core.decoder import DecoderConfig
from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat
from smelt.model.decoder import Decoder

Noise = Literal["none", "shared", "all"]


class _Rounded(torch.autograd.Function):
    """x to the value of its code; the gradient of 1 within half a step of the outermost codes, of 0 beyond."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, format: WeightFormat) -> Tensor:
        place = grid.wide(x) / scale if zero is None else grid.wide(x) / scale + zero
        ctx.save_for_backward((place >= format.lowest - 0.5) & (place <= format.highest + 0.5))
        return grid.values_of(grid.codes_of(x, scale, zero, format), scale, zero)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def rounded(x: Tensor, scale: Tensor, zero: Tensor | None, format: WeightFormat) -> Tensor:
    """The value of x's code, elementwise, with the straight-through gradient; in the scale's type."""
    apply: Any = _Rounded.apply
    return cast(Tensor, apply(x, scale, zero, format))


def fake_weight(weight_OI: Tensor, scales: tuple[Tensor, Tensor | None], format: WeightFormat) -> Tensor:
    """The matrix its codes stand for under given scales and zero points [O, G]; equal to `grid.dequantized`."""
    scale_OG, zero_OG = scales
    groups_OGS = grid.grouped(weight_OI, format)
    found = rounded(groups_OGS, scale_OG[..., None], None if zero_OG is None else zero_OG[..., None], format)
    return grid.ungrouped(found, weight_OI.shape[-1])


def noisy_weight(weight_OI: Tensor, scales_OG: Tensor, format: WeightFormat, generator: torch.Generator) -> Tensor:
    """The matrix with uniform noise of one step's width, as rounding would add it: blind to where the codes lie.

    For matrices that run several times a pass: their error is amplified by every round, and noise of exactly the
    step of the stored format teaches the model to bear it without pinning weights to codes.
    """
    groups_OGS = grid.grouped(weight_OI, format)
    noise_OGS = torch.rand(groups_OGS.shape, generator=generator, device=weight_OI.device) - 0.5
    return grid.ungrouped(groups_OGS + noise_OGS * scales_OG[..., None], weight_OI.shape[-1])


def fake_inputs(x: Tensor, format: ActivationFormat, static: tuple[float, int] | None) -> Tensor:
    """The inputs their codes stand for: by the token's own scale, or by a calibrated scale and zero point."""
    if static is None:
        with torch.no_grad():
            scale, zero = scales_of_tokens(x, format)
    else:
        like = grid.wide(x)
        scale = torch.full((), static[0], dtype=like.dtype, device=x.device)
        zero = None if format.symmetric else torch.full((), static[1], dtype=torch.int8, device=x.device)
    return rounded(x, scale, zero, integers(format)).to(x.dtype)


@dataclass
class Moment:
    """Where a training stands, which all fake modules of a decoder look at. rounds: whether they quantize at all."""

    step: int = 0
    rounds: bool = True


@dataclass(kw_only=True)
class Matrix:
    """How one matrix is quantized. name: of its tensor in a folder. noise_seed: noise in place of rounding."""

    name: str
    format: WeightFormat
    clip: Clip
    moment: Moment
    noise_seed: int | None
    _known: tuple[int, int, tuple[Tensor, Tensor | None]] | None = None

    def __call__(self, weight_OI: Tensor) -> Tensor:
        """The matrix to compute with, at this moment."""
        if not self.moment.rounds:
            return weight_OI
        if self.noise_seed is None:
            return fake_weight(weight_OI, self._scales(weight_OI), self.format)
        generator = torch.Generator(weight_OI.device)
        generator.manual_seed(_seed(self.noise_seed, self.moment.step, self.name))
        return noisy_weight(weight_OI, self._scales(weight_OI)[0], self.format, generator)

    @torch.no_grad()
    def _scales(self, weight_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of the weight as it is now; once a step, as a search of the clip costs as much as a layer."""
        now = (self.moment.step, weight_OI._version)
        if self._known is None or self._known[:2] != now:
            self._known = (*now, grid.scales(weight_OI, self.format, self.clip))
        return self._known[2]


class FakeLinear(nn.Linear):
    """A matrix, and its inputs where `activations` is set."""

    def __init__(
        self, linear: nn.Linear, matrix: Matrix, activations: ActivationFormat | None, static: tuple[float, int] | None
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.matrix, self.activations, self.static = matrix, activations, static

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if self.activations is not None and self.matrix.moment.rounds:
            x = fake_inputs(x, self.activations, self.static)
        return F.linear(x, self.matrix(self.weight), self.bias)


class FakeEmbedding(nn.Embedding):
    """A table of rows."""

    def __init__(self, embedding: nn.Embedding, matrix: Matrix) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight, self.matrix = embedding.weight, matrix

    def forward(self, ids: Tensor) -> Tensor:
        """[...] to [..., H]."""
        return F.embedding(ids, self.matrix(self.weight))


class FakeDecoder(Decoder):
    """A decoder whose matrices are those of `scheme`; made by `faked`."""

    moment: Moment

    @property
    def head_weight(self) -> Tensor:
        """[V, H]: as the head's codes stand for it."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return head.matrix(head.weight) if isinstance(head, FakeLinear | FakeEmbedding) else head.weight


def faked(
    model: Decoder,
    scheme: Scheme,
    *,
    clip: Clip = MINMAX,
    statics: Mapping[str, tuple[float, int]] | None = None,
    noise: Noise = "none",
    seed: int = 0,
) -> FakeDecoder:
    """A copy of the model under fake quantization.

    statics: scale and zero point of the inputs of every matrix inside the layers, for a static activation format.
    noise: which of these matrices get noise instead of rounding; of a step it depends on `seed`, step and name alone.
    """
    made = FakeDecoder(model.config)
    made.load_state_dict(model.state_dict())
    made.moment = Moment()
    known = formats(model.config, scheme)
    # A matrix that several layers share has the name under which it comes first.
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    noisy = _noisy(model.config, noise)
    for path, module in list(made.named_modules()):
        if not isinstance(module, nn.Linear | nn.Embedding) or (name := names[id(module.weight)]) not in known:
            continue
        inside = ".layers." in name
        matrix = Matrix(
            name=name,
            format=known[name],
            clip=clip,
            moment=made.moment,
            noise_seed=seed if name in noisy else None,
        )
        new: FakeLinear | FakeEmbedding
        if isinstance(module, nn.Embedding):
            new = FakeEmbedding(module, matrix)
        elif inside:
            new = FakeLinear(module, matrix, scheme.activations, None if statics is None else statics[name])
        else:
            new = FakeLinear(module, matrix, None, None)
        parent, _, last = path.rpartition(".")
        setattr(made.get_submodule(parent), last, new)
    return made.to(next(model.parameters()).device)


def _noisy(config: DecoderConfig, noise: Noise) -> set[str]:
    """Names of the matrices inside the layers that get noise."""
    homes = {layer.weights for layer in config.layers if layer.weights is not None}
    chosen = range(config.num_layers) if noise == "all" else homes if noise == "shared" else ()
    return {
        name
        for i in chosen
        for name in config.tensor_shapes()
        if name.startswith(f"model.layers.{i}.") and name.endswith("_proj.weight")
    }


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")
