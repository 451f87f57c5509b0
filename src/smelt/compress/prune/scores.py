"""What a decoder does on a calibration set, in sums from which everything is ranked. No gradients.

Per Minitron (arXiv:2407.14679): a channel's activity is the mean of its absolute value over a document, and its score
the L2 norm of that over documents. Watched are the inputs of down_proj (neurons) and o_proj (heads) and the outputs of
every norm (hidden channels). A layer's score is 1 - cos of what enters and leaves it, mean over tokens (ShortGPT, Men
et al. 2024, arXiv:2403.03853). Documents of a packed row count apart, padding not at all.

All sums are float64 and added batch by batch in order: a pass that was cut off and goes on ends at the same bits, and
the sums of several processes add up.

Shapes: B rows, T tokens, S documents, N = B T, C channels, L layers, M norms, H hidden, F neurons, Q query channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smelt.compress.prune.slice import is_stream_norm
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import CheckpointError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import batch_hidden, kept_places

Sums = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Sums over `num_documents` and `num_tokens`, of `num_batches` batches so far.

    neurons [L, F], heads [L, Q], norms [M, H]: squared mean absolute activity, summed over documents.
    inside [M, H]: what each channel is of its norm's input, squared and divided by the mean square, summed over tokens.
    layers [L]: 1 - cos, summed over tokens. Norms in the order of `norm_names`.
    """

    neurons: Sums
    heads: Sums
    norms: Sums
    inside: Sums
    layers: Sums
    num_documents: int = 0
    num_tokens: int = 0
    num_batches: int = 0

    @classmethod
    def nothing(cls, config: DecoderConfig) -> Scores:
        """Before the first batch."""
        num, norms = config.num_layers, len(norm_names(config))
        return cls(
            neurons=np.zeros((num, config.intermediate_size)),
            heads=np.zeros((num, config.num_heads * config.head_dim)),
            norms=np.zeros((norms, config.hidden_size)),
            inside=np.zeros((norms, config.hidden_size)),
            layers=np.zeros(num),
        )

    def __add__(self, other: Scores) -> Scores:
        """Of both together."""
        return Scores(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial.npz")
        np.savez(partial, **{f.name: getattr(self, f.name) for f in fields(self)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read it back. Raises CheckpointError for another kind of file."""
        names = [f.name for f in fields(cls)]
        try:
            with np.load(path, allow_pickle=False) as file:
                found: dict[str, Any] = {name: file[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise CheckpointError(f"{path.name} holds no scores of a model: {error!r:.80}") from error
        return cls(**(found | {name: int(found[name]) for name in names if name.startswith("num_")}))


def norm_names(config: DecoderConfig) -> list[str]:
    """The norms over the residual stream's width, in the order of the tensors."""
    return [name for name in config.tensor_shapes() if is_stream_norm(name)]


@torch.no_grad()
def scores_of(model: Decoder, batch: Batch, device: torch.device) -> Scores:
    """The sums of one batch."""
    weights_SN = torch.from_numpy(document_weights(batch)).to(device)
    watch = _Watch(weights_SN)
    with ExitStack() as hooks:
        for i, layer in enumerate(model.model.layers):
            for kind, slot in (("neurons", "mlp.down_proj"), ("heads", "self_attn.o_proj")):
                reader = layer.get_submodule(slot)
                hooks.callback(reader.register_forward_pre_hook(watch.entering(kind, i)).remove)
            hooks.callback(layer.register_forward_hook(watch.layer(i)).remove)
        for i, name in enumerate(norm_names(model.config)):
            norm = model.get_submodule(name.removesuffix(".weight"))
            hooks.callback(norm.register_forward_hook(watch.norm(i)).remove)
        batch_hidden(model, batch, device)
    return watch.scores()


class _Watch:
    """Hooks for one batch, and what they saw. weights_SN: see `document_weights`."""

    def __init__(self, weights_SN: Tensor) -> None:
        self.weights_SN, self.valid_N = weights_SN, (weights_SN > 0).any(0)
        self.found: dict[str, dict[int, Sums]] = {}

    def entering(self, kind: str, index: int) -> Callable[..., None]:
        """A hook in front of a matrix."""
        return lambda _module, inputs: self._keep(kind, index, self._activity(inputs[0]))

    def norm(self, index: int) -> Callable[..., None]:
        """A hook behind a norm."""

        def hook(_module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._keep("norms", index, self._activity(output))
            self._keep("inside", index, self._inside(inputs[0]))

        return hook

    def layer(self, index: int) -> Callable[..., None]:
        """A hook behind a layer."""

        def hook(_module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            similar_N = torch.cosine_similarity(inputs[0].flatten(0, 1).double(), output.flatten(0, 1).double(), dim=-1)
            self._keep("layers", index, ((1.0 - similar_N) * self.valid_N).sum())

        return hook

    def scores(self) -> Scores:
        """Everything seen."""
        sums = {kind: np.stack([seen[i] for i in range(len(seen))]) for kind, seen in self.found.items()}
        documents, tokens = len(self.weights_SN), int(self.valid_N.sum())
        return Scores(**sums, num_documents=documents, num_tokens=tokens, num_batches=1)

    def _keep(self, kind: str, index: int, value: Tensor) -> None:
        self.found.setdefault(kind, {})[index] = value.double().cpu().numpy()

    def _activity(self, x_BTC: Tensor) -> Tensor:
        mean_SC = self.weights_SN @ x_BTC.flatten(0, 1).abs().float()
        return mean_SC.double().square().sum(0)

    def _inside(self, x_BTH: Tensor) -> Tensor:
        square_NH = x_BTH.flatten(0, 1).float().square()
        share_NH = square_NH / square_NH.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return self.valid_N.float() @ share_NH


def document_weights(batch: Batch) -> NDArray[np.float32]:
    """[S, B T]: a row averages over one document's tokens. Padding is in none, and a row without tokens is left out."""
    places, num_rows = kept_places(batch), batch.inputs.shape[0]
    segments = np.zeros_like(batch.inputs) if batch.segment_ids is None else batch.segment_ids.astype(np.int64)
    rows = np.repeat(np.arange(num_rows), batch.inputs.shape[1])
    owners = (rows * (int(segments.max()) + 1) + segments.reshape(-1))[places]
    documents, inverse, lengths = np.unique(owners, return_inverse=True, return_counts=True)
    weights = np.zeros((len(documents), batch.inputs.size), dtype=np.float32)
    weights[inverse, places] = 1.0 / lengths[inverse]
    return weights
