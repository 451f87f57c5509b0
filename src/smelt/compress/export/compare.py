"""How two readers of one model are compared: logits, ids of texts. T positions, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smelt.compress.export.samples import TEXTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from smelt.core.decoder import DecoderConfig
    from smelt.tokenizer import Tokenizer

_MOST_POSITIONS = 1200


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One comparison. found, sought: numbers or words; told: the same for a person."""

    name: str
    passed: bool
    found: float | str | None = None
    sought: float | str | None = None
    told: str = ""


def our_logits(config: DecoderConfig, tensors: Mapping[str, NDArray[np.float32]], ids: Sequence[int]) -> NDArray[Any]:
    """Logits [T, V] of our decoder in float32."""
    import torch

    from smelt.model.decoder import Decoder

    with torch.inference_mode():
        logits_BTV = Decoder.from_tensors(config, tensors).eval()(torch.tensor([list(ids)]))
    found: NDArray[Any] = logits_BTV[0].numpy()
    return found


def sample_ids(tokenizer: Tokenizer, config: DecoderConfig, context_len: int) -> list[int]:
    """Ids of the sample texts, over and over, behind the begin token; past the edge of a sliding window if near."""
    edge = max((layer.window or 0 for layer in config.layers), default=0)
    wanted = edge + 48 if edge and edge + 48 <= _MOST_POSITIONS else 256
    texts = [i for text in TEXTS for i in tokenizer.encode(text)]
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = first + texts * (1 + wanted // len(texts))
    return ids[: min(wanted, context_len)]


def relative_error(found_TV: NDArray[Any], sought_TV: NDArray[Any]) -> float:
    """Root mean square of the difference, by that of the sought logits around their mean of each position."""
    found, sought = found_TV.astype(np.float64), sought_TV.astype(np.float64)
    spread = sought - sought.mean(-1, keepdims=True)
    return float(np.sqrt(np.square(found - sought).mean() / np.square(spread).mean()))


def compare_logits(name: str, found_TV: NDArray[Any], sought_TV: NDArray[Any], limit: float | None) -> Check:
    """Relative error against `limit` (None: told, not judged), and how often the first choice is the same."""
    error = relative_error(found_TV, sought_TV)
    agree = float((found_TV.argmax(-1) == sought_TV.argmax(-1)).mean())
    told = f"relative error {error:.2e}" + ("" if limit is None else f" (at most {limit:g})")
    return Check(
        name=name,
        passed=limit is None or error <= limit,
        found=error,
        sought=limit,
        told=f"{told}, same first choice at {agree:.1%} of {len(found_TV)} positions",
    )


def compare_texts(tokenizer: Tokenizer, encoded: Sequence[Sequence[int]], least: float) -> Check:
    """The share of tokens that stand at the same place of `TEXTS` with the same id, in `encoded`; `least` 1.0: all."""
    same = total = 0
    worst, worst_text = 1.0, ""
    for text, ids in zip(TEXTS, encoded, strict=True):
        sought, found = placed(tokenizer, tokenizer.encode(text)), placed(tokenizer, ids)
        share = len(sought & found) / max(len(sought), len(found))
        same, total = same + len(sought & found), total + max(len(sought), len(found))
        if share < worst:
            worst, worst_text = share, text
    told = f"{same} of {total} tokens in {len(TEXTS)} texts (English, German, Chinese, code)"
    if worst_text:
        told += f"; worst: {worst_text[:40]!r}, {worst:.0%}"
    return Check(name="ids of texts", passed=same >= least * total, found=same / total, sought=least, told=told)


def placed(tokenizer: Tokenizer, ids: Sequence[int]) -> set[tuple[int, int]]:
    """(first byte, id) of every token."""
    at, placed = 0, set()
    for token_id in ids:
        placed.add((at, token_id))
        at += len(tokenizer.token_bytes(token_id))
    return placed
