"""What spark learns from: mixtures by stage, public sets beside them, its tokenizer's corpus."""

from __future__ import annotations

import dataclasses

from recipes.public import texts
from smelt.chat.house import HOUSE_CONTROLS, HouseRenderer
from smelt.data.batches import mixed
from smelt.data.example import Example
from smelt.data.prefetch import Prefetched
from smelt.data.stream import Conversations, PackedStream
from smelt.data.tasks.about import Limits
from smelt.data.tasks.mixture import Mixture
from smelt.data.text import Pools
from smelt.tokenizer import Tokenizer, train_tokenizer
from smelt.train.loop import Stage

ABOUT = Limits(name="spark", context_len=4096, max_output_len=4096)
# Copying is learned late and fast (reference runs: flat until 1.5 M tokens): so it comes first, in its densest form.
EARLY = Mixture(
    limits=ABOUT, weights={"repeat": 4, "lookup": 5, "offered": 2, "call": 2, "free": 2, "extract": 1, "facts": 1}
)
MAIN = Mixture(
    limits=ABOUT,
    weights={
        "call": 22, "session": 12, "offered": 14, "no_tool": 6, "result": 4, "extract": 17, "free": 5, "basket": 2,
        "classify": 5, "service": 10, "facts": 3, "talk": 2, "repeat": 4, "lookup": 4, "long": 2,
    }
)  # fmt: skip
FINAL = Mixture(limits=ABOUT, weights={**MAIN.weights, "long": 1.5, "longer": 0.6})
SOURCE_SHARE = 0.15
CHUNK_ROWS = 32


def make_tokenizer(sources: dict[str, list[Example]], vocab_size: int, num_examples: int, seed: int) -> Tokenizer:
    """A tokenizer for the main mixture, a fifth of its corpus public text."""
    example_at = mixed(MAIN, seed, sources, 0.2)
    return train_tokenizer(
        texts(example_at(i) for i in range(num_examples)), vocab_size, controls=HOUSE_CONTROLS, pattern="copying"
    )


def make_stages(
    renderer: HouseRenderer,
    pad_id: int,
    sources: dict[str, list[Example]],
    pools: Pools,
    *,
    batch_tokens: int,
    early_tokens: int,
) -> list[Stage]:
    """Copying first, then everything short, then everything with longer texts while the rate falls."""

    def stream(mixture: Mixture, seed: int, max_len: int, share: float) -> Prefetched:
        example_at = mixed(dataclasses.replace(mixture, pools=pools), seed, sources, share)
        row_len = max(1024, max_len)
        rows = max(1, batch_tokens // row_len)
        packed = PackedStream(
            sources=[(Conversations(example_at=example_at, renderer=renderer, max_len=max_len), 1.0)],
            row_len=row_len,
            rows=rows,
            pad_id=pad_id,
            seed=seed,
            batches_per_chunk=max(1, CHUNK_ROWS // rows),
        )
        return Prefetched(packed)

    return [
        Stage(name="copying", stream=stream(EARLY, 11, 320, 0.0), until_tokens=early_tokens),
        Stage(name="main", stream=stream(MAIN, 12, 512, SOURCE_SHARE)),
        Stage(name="final", stream=stream(FINAL, 13, 3072, SOURCE_SHARE), at_decay=True),
    ]
