"""From a request to something the engine can run: rendered, counted, checked against the limits, grammar compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from smelt.chat.renderer import Rendered, Renderer, ReplyReader
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


def render(renderer: Renderer, request: ChatRequest) -> Rendered:
    """The prompt of a request, with an open assistant turn. Tools that this answer may not use are not shown."""
    tools, form = offered_tools(request), request.response_format
    return renderer.render(request.messages, tools=tools, response_format=form, open_turn=True)


def count_tokens(renderer: Renderer, request: ChatRequest, rendered: Rendered) -> TokenCount:
    """What each part of the prompt takes; renders the messages once more where there is anything beside them."""
    total = len(rendered)
    if not offered_tools(request) and request.response_format.kind == "text":
        return TokenCount(total, total, 0)
    messages = len(renderer.render(request.messages, open_turn=True))
    return TokenCount(total, messages, total - messages)


def fit(
    limits: Limits, prompt_len: int, max_tokens: int | None, *, parts: Callable[[], TokenCount] | None = None
) -> int:
    """The answer's token limit. Raises ContextLengthError or InvalidRequestError in OpenAI's words.

    `parts` counts a chat prompt by its parts, for the message of a refusal; without it the prompt is a completion's.
    """
    if max_tokens is not None and max_tokens > limits.max_output_len:
        raise InvalidRequestError(
            f"max_tokens is too large: {max_tokens}. This model supports at most {limits.max_output_len} completion "
            f"tokens, whereas you provided {max_tokens}.",
            param="max_tokens",
            code="invalid_value",
        )
    room = limits.context_len - prompt_len
    if room >= (1 if max_tokens is None else max_tokens):
        return min(limits.max_output_len, room) if max_tokens is None else max_tokens
    noun = "messages" if parts else "prompt"
    count = parts() if parts else TokenCount(prompt_len, prompt_len, 0)
    window = f"This model's maximum context length is {limits.context_len} tokens. However,"
    if max_tokens is None or room < min(max_tokens, 1):
        split = f" ({count.messages} in the {noun}, {count.tools} in the functions)" if count.tools else ""
        lengths = f"{noun} or functions" if count.tools else noun
        raise ContextLengthError(
            f"{window} your {noun} resulted in {prompt_len} tokens{split}. Please reduce the length of the {lengths}.",
            param=noun,
        )
    functions = f"{count.tools} in the functions, " if count.tools else ""
    lengths = f"{noun}, functions," if count.tools else noun
    raise ContextLengthError(
        f"{window} you requested {prompt_len + max_tokens} tokens ({count.messages} in the {noun}, {functions}"
        f"{max_tokens} in the completion). Please reduce the length of the {lengths} or completion.",
        param=noun,
    )


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
