"""The state of one request inside the engine."""

from __future__ import annotations

from array import array

from smelt.core.messages import Privilege
from smelt.core.sampling import TokenLogprob
from smelt.engine.blocks import BlockHash, block_hash, root_hash
from smelt.engine.requests import EngineRequest

_ASSISTANT = int(Privilege.ASSISTANT)


class TokenCounts:
    """How often each token was generated, as two arrays a StepBatch can copy from; O(1) per token."""

    __slots__ = ("_places", "counts", "ids")

    def __init__(self) -> None:
        self.ids = array("i")
        self.counts = array("i")
        self._places: dict[int, int] = {}

    def add(self, token_id: int) -> None:
        """One more of `token_id`."""
        place = self._places.setdefault(token_id, len(self.ids))
        if place == len(self.ids):
            self.ids.append(token_id)
            self.counts.append(0)
        self.counts[place] += 1


class EngineSequence:
    """One request: tokens known, tokens computed, blocks held.

    `token_ids` is prompt and answer so far; positions below `num_computed` have keys and values in `blocks`. The
    sequence is `decoding` when all but the tokens of its last step were computed: it asks for little and goes first.
    """

    __slots__ = (
        "blocks",
        "cached_len",
        "counts",
        "decoding",
        "hashes",
        "num_computed",
        "num_published",
        "privileges",
        "prompt_len",
        "prompt_logprobs",
        "request",
        "token_ids",
        "wants_logprobs",
    )

    def __init__(self, request: EngineRequest) -> None:
        params = request.params
        self.request = request
        self.prompt_len = len(request.prompt_ids)
        self.token_ids = array("i", request.prompt_ids)
        self.privileges = bytearray(request.privileges)
        self.num_computed = 0
        self.blocks: list[int] = []
        self.hashes: list[BlockHash] = [
            root_hash(tenant=request.tenant, adapter=request.adapter, media=request.media)
        ]  # hashes[i + 1] is block i's: an entry is always the parent of the next block
        self.num_published = 0
        self.decoding = False
        self.cached_len: int | None = None  # None before the first admission
        self.wants_logprobs = params.top_logprobs is not None
        has_penalty = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self.counts: TokenCounts | None = TokenCounts() if has_penalty else None
        self.prompt_logprobs: list[TokenLogprob | None] | None = [None] if request.score_prompt else None

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far, drawn or forced; also the number of the next draw."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_missing(self) -> int:
        """Known tokens still to be computed; at least 1 while the sequence lives."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_unscored(self) -> int:
        """Prompt tokens whose log-probability is still to be reported."""
        return 0 if self.prompt_logprobs is None else self.prompt_len - len(self.prompt_logprobs)

    def append(self, token_id: int) -> None:
        """One more token of the answer."""
        self.token_ids.append(token_id)
        self.privileges.append(_ASSISTANT)
        if self.counts is not None:
            self.counts.add(token_id)

    def block_hashes(self, num_blocks: int, block_size: int) -> list[BlockHash]:
        """Hashes with at least the first `num_blocks` blocks in them, block i at i + 1; each computed once."""
        for i in range(len(self.hashes) - 1, num_blocks):
            span = slice(i * block_size, (i + 1) * block_size)
            self.hashes.append(block_hash(self.hashes[i], self.token_ids[span], self.privileges[span]))
        return self.hashes

    def forget_computed(self) -> None:
        """Back to the state before admission, with the answer so far kept as known tokens."""
        self.blocks = []
        self.num_computed = 0
        self.num_published = 0
        self.decoding = False
