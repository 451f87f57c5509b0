"""What ember learns from: every generated task, public dialogue sets, and running text of a filtered corpus."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipes.mixtures import CHOICES, COPYING, LONGER, SKILLS
from recipes.public import load_sources, texts
from smelt.chat.house import HOUSE_CONTROLS, HouseRenderer
from smelt.data.batches import mixed
from smelt.data.corpus.shards import manifest_of, read_documents
from smelt.data.example import Example
from smelt.data.prefetch import Prefetched
from smelt.data.shards import tokenize_corpus
from smelt.data.stream import Conversations, PackedStream, Source, Texts
from smelt.data.tasks.about import Limits
from smelt.data.tasks.mixture import Mixture
from smelt.data.text import Pools, read_pools
from smelt.tokenizer import Tokenizer, train_tokenizer
from smelt.train.loop import Stage
from smelt.train.recipe import Workshop

# The newest encyclopedia in the corpus, the Chinese one, is of August 2023: 98 mentions of that month, 6 of the next.
LIMITS = Limits(name="ember", cutoff=(2023, 8))
DIALOGUE_SHARE = 0.15  # of the conversations: public sets
# Shares of the running text by language or kind; what a corpus lacks is shared out among the rest.
TEXT_SHARES = {
    "enwiki": 40.0, "openstax": 8.0, "onestop": 3.0, "storybook": 1.0, "dewiki": 22.0, "zhwiki": 18.0, "d2l": 4.0,
    "vue-docs": 2.0, "tldr": 2.0,
}  # fmt: skip
CHUNK_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything there is to learn from, loaded."""

    dialogues: dict[str, list[Example]]
    pools: Pools
    corpus: Path | None

    @staticmethod
    def load(data: Path | None, corpus: Path | None, seed: int) -> Material:
        """Raises DataError for a folder that is no corpus."""
        if corpus is not None:
            manifest_of(corpus)
        return Material(dialogues=load_sources(data, seed), pools=read_pools(data), corpus=corpus)


def make_tokenizer(material: Material, vocab_size: int, num_examples: int, num_documents: int, seed: int) -> Tokenizer:
    """Merges learned from the main mixture and from the corpus, by whole documents cut at 2,000 characters."""
    example_at = mixed(SKILLS, seed, material.dialogues, 0.2)
    spoken = texts(example_at(i) for i in range(num_examples))
    return train_tokenizer(
        _both(spoken, material.corpus, num_documents), vocab_size, controls=HOUSE_CONTROLS, pattern="copying"
    )


def _both(spoken: Iterator[str], corpus: Path | None, num_documents: int) -> Iterator[str]:
    yield from spoken
    if corpus is not None:
        for source in _weights(corpus):
            share = TEXT_SHARES[source] / sum(TEXT_SHARES.values())
            for i, document in enumerate(read_documents(corpus, "train", [source])):
                if i >= num_documents * share:
                    break
                yield document.text[:2000]


def _weights(corpus: Path) -> dict[str, float]:
    present = {shard["source"] for shard in manifest_of(corpus)["shards"] if shard["split"] == "train"}
    return {source: weight for source, weight in TEXT_SHARES.items() if source in present}


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """text_share: of the tokens, running text. max_len: the longest conversation; rows are as long.

    until_tokens: of the run, where the stage ends; None: where the next one begins by itself.
    """

    text_share: float
    max_len: int
    until_tokens: int | None = None


def make_stages(
    material: Material,
    tokenizer: Tokenizer,
    shop: Workshop,
    *,
    batch_tokens: int,
    early_tokens: int,
    main: StageConfig,
    choices: StageConfig,
    final: StageConfig,
) -> list[Stage]:
    """Copying first, then everything short, then more decisions, then longer texts while the rate falls."""
    renderer, pad_id = HouseRenderer(tokenizer), tokenizer.control_ids["<|pad|>"]

    def stream(mixture: Mixture, seed: int, config: StageConfig, dialogue_share: float) -> Prefetched:
        known = dataclasses.replace(mixture, pools=material.pools, limits=LIMITS)
        example_at = mixed(known, seed, material.dialogues, dialogue_share)
        talk = Conversations(example_at=example_at, renderer=renderer, max_len=config.max_len)
        sources: list[tuple[Source, float]] = [(talk, 1.0 - config.text_share)]
        if material.corpus is not None and config.text_share > 0:
            sources += text_sources(material.corpus, tokenizer, config.text_share, seed, shop)
        rows = max(1, batch_tokens // config.max_len)
        packed = PackedStream(
            sources=sources,
            row_len=config.max_len,
            rows=rows,
            pad_id=pad_id,
            seed=seed,
            batches_per_chunk=max(1, CHUNK_ROWS // rows),
        )
        return Prefetched(packed)

    return [
        Stage(
            name="copying",
            stream=stream(COPYING, 31, StageConfig(text_share=0.0, max_len=main.max_len), 0.0),
            until_tokens=early_tokens,
        ),
        Stage(name="main", stream=stream(SKILLS, 32, main, DIALOGUE_SHARE), until_tokens=main.until_tokens),
        Stage(name="choices", stream=stream(CHOICES, 34, choices, DIALOGUE_SHARE)),
        Stage(name="final", stream=stream(LONGER, 33, final, DIALOGUE_SHARE), at_decay=True),
    ]


def text_sources(
    corpus: Path, tokenizer: Tokenizer, share: float, seed: int, shop: Workshop
) -> list[tuple[Source, float]]:
    """The corpus's sources as tokens, made where they are not there yet, with their parts of `share`."""
    weights = _weights(corpus)
    total = sum(weights.values())
    found: list[tuple[Source, float]] = []
    for name, weight in weights.items():
        shards = tokenize_corpus(
            corpus,
            tokenizer,
            sources=[name],
            on_progress=lambda progress, name=name: shop.say(  # type: ignore[misc]
                f"{name}: {progress.done_bytes / 1e6:.0f} of {progress.total_bytes / 1e6:.0f} MB as tokens, "
                f"{progress.left_s:.0f} s left"
            ),
        )
        found.append((Texts(shards=shards, seed=seed), share * weight / total))
    return found
