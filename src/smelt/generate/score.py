"""The probability of a given text, through the same engine that generates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from smelt.core.errors import EngineError, InvalidRequestError
from smelt.core.sampler import ScoreRequest, TextScore
from smelt.core.sampling import SamplingParams, Usage
from smelt.generate.completion import Event, PromptText
from smelt.generate.events import AnswerUsage

if TYPE_CHECKING:
    from smelt.core.decoder import DecoderConfig
    from smelt.tokenizer import Tokenizer

PARAMS = SamplingParams(temperature=0.0, max_tokens=0, top_logprobs=0)
"""Generates nothing and tells each prompt token's log-probability, where the prompt is echoed."""


def score_text(
    request: ScoreRequest,
    *,
    tokenizer: Tokenizer,
    config: DecoderConfig,
    echo: Callable[[Sequence[int]], Iterable[Event]],
) -> TextScore:
    """Log-probabilities of the text's tokens after the begin id and the context; `echo` completes ids under `PARAMS`.

    Context and text are encoded apart, so that no token spans the boundary and the bytes add up. A tokenizer without
    a begin id puts an end id in front, as documents are told apart in training; with neither, the first token of a
    text without context has no probability and is left out. Raises InvalidRequestError for an empty text and
    ContextLengthError where both do not fit the window.
    """
    if not request.text:
        raise InvalidRequestError("The text to score is empty; expected at least one character.", param="text")
    first = (tokenizer.bos_id, config.bos_id, *config.eos_ids)
    begin = [token_id for token_id in first if token_id is not None][:1]
    text_ids = tokenizer.encode(request.text)
    prompt_ids = [*begin, *tokenizer.encode(request.context), *text_ids]
    echoed: PromptText | None = None
    usage = Usage(len(prompt_ids), 0)
    for event in echo(prompt_ids):
        if isinstance(event, PromptText):
            echoed = event
        elif isinstance(event, AnswerUsage):
            usage = event.usage
    if echoed is None:
        raise EngineError("the engine scored no prompt")
    tokens = echoed.tokens[len(prompt_ids) - len(text_ids) :]
    unscored = sum(len(token.bytes) for token in tokens if token.logprob is None)
    return TextScore(
        logprobs=tuple(token.logprob for token in tokens if token.logprob is not None),
        num_bytes=len(request.text.encode()) - unscored,
        usage=usage,
    )
