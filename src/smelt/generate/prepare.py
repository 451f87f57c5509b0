"""From a request to something the engine can run: rendered, counted, checked against the limits, grammar compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from smelt.chat.renderer import Renderer, ReplyReader
from smelt.core.errors import ContextLengthError, InvalidRequestError
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.generate.constrain import offered_tools
from smelt.generate.grammar import Constraint


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Prompt tokens of a chat request: `total` = `messages` + `tools` (tool definitions and response format)."""

    total: int
    messages: int
    tools: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The window: prompt and answer together take at most `context_len` tokens, the answer `max_output_len`."""

    context_len: int
    max_output_len: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A request ready to run, any number of times; made by `LLM.prepare` and `LLM.prepare_completion`.

    max_new_tokens is the output limit after defaults. constraint and reader make one fresh matcher and one fresh
    reply reader per choice. hidden_ids: control tokens, which no report shows. calls_end_with_stop: a named tool
    choice reports "stop", not "tool_calls", as OpenAI does. echo: the prompt's text, to be given back first,
    without its first num_hidden tokens.
    report_stop: the end token appears in the log-probabilities (completions, where clients count entries).
    """

    prompt_ids: Sequence[int]
    privileges: bytes
    params: SamplingParams
    max_new_tokens: int
    stop_ids: frozenset[int]
    tokens: TokenCount
    constraint: Constraint
    reader: Callable[[], ReplyReader]
    hidden_ids: frozenset[int] = frozenset()
    calls_end_with_stop: bool = False
    echo: str | None = None
    num_hidden: int = 0
    report_stop: bool = False

    @property
    def score_prompt(self) -> bool:
        """The prompt's own log-probabilities were asked for."""
        return self.echo is not None and self.params.top_logprobs is not None


def count_tokens(renderer: Renderer, request: ChatRequest) -> tuple[list[int], bytes, TokenCount]:
    """Render the request with an open assistant turn; ids, privileges and how many tokens each part takes."""
    full = renderer.render(
        request.messages, tools=offered_tools(request), response_format=request.response_format, open_turn=True
    )
    bare = renderer.render(request.messages, open_turn=True)
    count = TokenCount(len(full), len(bare), len(full) - len(bare))
    return full.ids, full.privileges, count


def fit(limits: Limits, count: TokenCount, max_tokens: int | None, *, noun: str = "messages") -> int:
    """The answer's token limit. Raises ContextLengthError or InvalidRequestError in OpenAI's words.

    `noun` is what the prompt is called: "messages" for chat, "prompt" for completions.
    """
    param = noun
    if max_tokens is not None and max_tokens > limits.max_output_len:
        raise InvalidRequestError(
            f"max_tokens is too large: {max_tokens}. This model supports at most {limits.max_output_len} completion "
            f"tokens, whereas you provided {max_tokens}.",
            param="max_tokens",
            code="invalid_value",
        )
    window = f"This model's maximum context length is {limits.context_len} tokens. However, "
    room = limits.context_len - count.total
    if room < (1 if max_tokens is None else min(max_tokens, 1)):
        parts = f" ({count.messages} in the {noun}, {count.tools} in the functions)" if count.tools else ""
        also = " or functions" if count.tools else ""
        raise ContextLengthError(
            f"{window}your {noun} resulted in {count.total} tokens{parts}. "
            f"Please reduce the length of the {noun}{also}.",
            param=param,
        )
    if max_tokens is None:
        return min(limits.max_output_len, room)
    if max_tokens > room:
        functions = f"{count.tools} in the functions, " if count.tools else ""
        also = f"{noun}, functions," if count.tools else noun
        raise ContextLengthError(
            f"{window}you requested {count.total + max_tokens} tokens ({count.messages} in the {noun}, {functions}"
            f"{max_tokens} in the completion). Please reduce the length of the {also} or completion.",
            param=param,
        )
    return max_tokens


def check_params(params: SamplingParams, limits: Limits, max_new_tokens: int) -> SamplingParams:
    """The parameters with the limit filled in. Raises InvalidRequestError for a biased token that does not exist."""
    for token_id in params.logit_bias:
        if not 0 <= token_id < limits.vocab_size:
            raise InvalidRequestError(
                f"Invalid key in 'logit_bias': {token_id}. You should only be submitting token IDs of this model's "
                f"vocabulary, 0 to {limits.vocab_size - 1}.",
                param="logit_bias",
            )
    return replace(params, max_tokens=max_new_tokens)
