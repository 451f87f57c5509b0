"""Training a byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019) with the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from smelt.core.errors import InvalidRequestError
from smelt.tokenizer.bytelevel import ALPHABET
from smelt.tokenizer.patterns import PATTERNS
from smelt.tokenizer.tiktoken import byte_level_json
from smelt.tokenizer.tokenizer import Tokenizer


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    controls: Sequence[str] = (),
    pattern: str = "house",
    min_frequency: int = 2,
) -> Tokenizer:
    """A tokenizer of `vocab_size` ids: 256 bytes, merges learnt from `texts`, then `controls` in their order.

    Fewer merges are learnt when the texts hold fewer pairs seen `min_frequency` times. The same texts in the same
    order give the same tokenizer. `pattern` names a pre-tokenizer expression in `patterns.PATTERNS`; "house"
    suits small vocabularies and models that copy (see there), "o200k_base" large ones.
    """
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    if len(set(controls)) != len(controls):
        raise InvalidRequestError("controls: sought distinct names, found one twice")
    if (num_base := vocab_size - len(controls)) < 256:
        raise InvalidRequestError(f"vocab_size {vocab_size} is too small: 256 bytes and {len(controls)} controls")
    if pattern not in PATTERNS:
        raise InvalidRequestError(f"pattern {pattern!r} is not one of {', '.join(sorted(PATTERNS))}")
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=num_base,
        min_frequency=min_frequency,
        initial_alphabet=list(ALPHABET),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    model = json.loads(library.to_str())["model"]
    first = len(model["vocab"])
    specials = {control: first + index for index, control in enumerate(controls)}
    merges = [(left, right) for left, right in model["merges"]]
    return Tokenizer.from_json(byte_level_json(model["vocab"], merges, PATTERNS[pattern], specials))
