"""How alike layers are: by their matrices, or by what they do. Shapes: L layers, N tokens, H hidden width."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smelt.compress.calibration import Calibration
from smelt.core.decoder import MATRICES, DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.model.decoder import Decoder
from smelt.train.objectives import batch_entered, kept_places

_TOKENS = 1024  # whose products are compared; [N, N] numbers a layer


def weight_cosines(config: DecoderConfig, tensors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """[L, L]: the cosine of two layers' matrices, a mean over the matrices of a layer. One kind is read at a time."""
    found = np.zeros((config.num_layers, config.num_layers))
    for stem in MATRICES:
        rows_LX = [
            torch.from_numpy(np.array(tensors[f"model.layers.{config.home(i)}.{stem}_proj.weight"])).flatten()
            for i in range(config.num_layers)
        ]
        products = np.array([[float(torch.dot(a, b)) for b in rows_LX] for a in rows_LX])
        found += _normalised(products)
    return found / len(MATRICES)


@torch.no_grad()
def activation_cka(model: Decoder, calibration: Calibration, num_tokens: int = _TOKENS) -> NDArray[np.float64]:
    """[L, L]: linear CKA (Kornblith et al. 2019, arXiv:1905.00414) of what two layers add to the residual stream.

    What they add, not the stream behind them: that is nearly the same behind any two neighbours. Tokens are spread
    evenly over the set. Raises InvalidRequestError where there are fewer than two.
    """
    device = model.model.embed_tokens.weight.device
    total = sum(len(kept_places(batch)) for batch in calibration.batches)
    wanted = np.unique(np.linspace(0, total - 1, min(num_tokens, total)).astype(np.int64)) if total else np.empty(0)
    if len(wanted) < 2:
        raise InvalidRequestError(
            f"calibration: sought tokens to compare layers on, found {total}: {calibration.source}"
        )
    seen, added_LNH = 0, [list[Tensor]() for _ in range(model.config.num_layers)]
    for batch in calibration.batches:
        places = kept_places(batch)
        chosen = places[wanted[(wanted >= seen) & (wanted < seen + len(places))] - seen]
        seen += len(places)
        if not len(chosen):
            continue
        index = torch.from_numpy(chosen).to(device)
        x_BTH, views = batch_entered(model, batch, device)
        for layer, view, added in zip(model.model.layers, views, added_LNH, strict=True):
            out_BTH = layer(x_BTH, view)
            added.append((out_BTH - x_BTH).flatten(0, 1)[index].double().cpu())
            x_BTH = out_BTH
    return cka([torch.cat(added) for added in added_LNH])


def cka(features_LNH: list[Tensor]) -> NDArray[np.float64]:
    """[L, L]: linear CKA of rows that stand for the same tokens; 1 where they differ by a rotation and a scale."""
    grams_LX = []
    for features_NH in features_LNH:
        centred = features_NH - features_NH.mean(0)
        grams_LX.append((centred @ centred.mT).flatten())
    return _normalised(np.array([[float(torch.dot(a, b)) for b in grams_LX] for a in grams_LX]))


def _normalised(products_LL: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.sqrt(np.maximum(np.diagonal(products_LL), 1e-300))
    found: NDArray[np.float64] = products_LL / lengths[:, None] / lengths[None, :]
    return found
