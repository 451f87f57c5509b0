"""A Sampler over any OpenAI-compatible URL."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from smelt.core.errors import (
    AuthenticationError,
    EngineError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UserError,
)
from smelt.core.messages import Message, ToolCall, ToolChoice
from smelt.core.sampler import ChatAnswer, ChatRequest, ScoreRequest, TextScore
from smelt.core.sampling import FinishReason, Usage

if TYPE_CHECKING:
    import httpx

_REFUSALS: dict[int, type[UserError]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    429: OverloadedError,
}
_PASSING = frozenset({408, 429, 502, 503, 504})  # worth trying again
_RETRY_WAITS_S = (1.0, 4.0, 15.0)


class HTTPSampler:
    """Asks `base_url`/chat/completions. `client` may be handed in (other transports, tests); it is not closed.

    Otherwise call `close` at the end.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str = "none",
        timeout_s: float = 120.0,
        client: httpx.Client | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        self._client = client or httpx.Client(timeout=timeout_s)
        self._owned = client is None
        self._url, self._model, self._api_key = base_url.rstrip("/"), model, api_key
        self._sleep = sleep
        self._fingerprint: str | None = None

    @property
    def name(self) -> str:
        """The model's name at the URL."""
        return self._model

    @property
    def fingerprint(self) -> str:
        """The URL and the name; for a smelt server also when its model's folder was written.

        Others give no dependable sign that the model behind a name has changed.
        """
        if self._fingerprint is None:
            self._fingerprint = f"{self._url} {self._model}{self._made()}"
        return self._fingerprint

    def chat(self, request: ChatRequest) -> ChatAnswer:
        """One request. Raises the UserError that the status says, EngineError for anything else that fails.

        What may pass (busy, no connection) is tried four times over 20 seconds.
        """
        return answer_of(self._post("chat/completions", request_body(request, self._model)))

    def score(self, request: ScoreRequest) -> TextScore:
        """Over /completions with echo and logprobs, as lm-evaluation-harness asks for them.

        Context and text travel as one string, so a token over the boundary counts wholly as the text's. One token is
        drawn and thrown away, since many servers refuse to draw none. Raises InvalidRequestError where the server
        gives no log-probabilities of a prompt.
        """
        if not request.text:
            raise InvalidRequestError("The text to score is empty; expected at least one character.", param="text")
        body = {
            "model": self._model,
            "prompt": request.context + request.text,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "echo": True,
        }
        return score_of(self._post("completions", body), request)

    def close(self) -> None:
        """Close the connections, unless the client was handed in."""
        if self._owned:
            self._client.close()

    def _made(self) -> str:
        try:
            listed = self._request("GET", f"models/{self._model}", None)
        except (UserError, EngineError):
            return ""
        ours = isinstance(listed, dict) and listed.get("owned_by") == "smelt"
        return f" {listed.get('created')}" if ours else ""

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        for wait_s in (*_RETRY_WAITS_S, None):
            try:
                return self._request("POST", path, body)
            except (OverloadedError, _PassingError):
                if wait_s is None:
                    raise
                self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        import httpx

        headers = {"Authorization": f"Bearer {self._api_key}"}
        try:
            response = self._client.request(method, f"{self._url}/{path}", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise _PassingError(f"no answer from the server: {type(error).__name__}") from error
        status = response.status_code
        if 400 <= status < 500 and status != 408:
            raise _REFUSALS.get(status, InvalidRequestError)(f"refused with {status}: {response.text[:300]}")
        if status != 200:
            kind = _PassingError if status in _PASSING else EngineError
            raise kind(f"the server failed with {status}")
        try:
            return response.json()
        except ValueError as error:
            raise EngineError("the server's answer is no JSON") from error


class _PassingError(EngineError):
    """A failure that may pass."""


def score_of(body: Any, request: ScoreRequest) -> TextScore:
    """The text's share of an echoed prompt's log-probabilities; raises where there are none.

    A begin token that the server shows in front of the prompt is skipped.
    """
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        lists = choice["logprobs"]
        names, logprobs, offsets = lists["tokens"], lists["token_logprobs"], list(lists["text_offset"])
    except (KeyError, IndexError, TypeError) as error:
        raise InvalidRequestError(
            "the server gives no log-probabilities of a prompt; scoring needs echo and logprobs on /completions"
        ) from error
    prompt = request.context + request.text
    start, end = len(request.context), len(prompt)
    shown_begin = len(offsets) > 1 and logprobs[0] is None and not prompt.startswith(names[0].removeprefix("bytes:"))
    if shown_begin and not names[0].startswith("bytes:"):
        names, logprobs, offsets = names[1:], logprobs[1:], [offset - offsets[1] for offset in offsets[1:]]
    if not offsets or len(names) != len(logprobs) or offsets[-1] < end - len(names[-1]) - 1:
        raise InvalidRequestError("the server did not echo the whole prompt; scoring needs echo on /completions")
    ends = [*offsets[1:], max(end, offsets[-1]) + 1]
    scored, num_unscored = [], 0
    for logprob, first, last in zip(logprobs, offsets, ends, strict=True):
        if first >= end or (last <= start and first < start):
            continue
        if logprob is None:
            num_unscored += len(prompt[first:last].encode())
        else:
            scored.append(float(logprob))
    return TextScore(
        logprobs=tuple(scored),
        num_bytes=len(request.text.encode()) - num_unscored,
        usage=Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)),
    )


def request_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The request in OpenAI's form."""
    params = request.params
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    optional = {
        "seed": params.seed,
        "stop": list(params.stop) or None,
        "max_completion_tokens": params.max_tokens,
        "presence_penalty": params.presence_penalty or None,
        "frequency_penalty": params.frequency_penalty or None,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias.items()} or None,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                    "strict": tool.strict,
                },
            }
            for tool in request.tools
        ]
        body["parallel_tool_calls"] = request.parallel_tool_calls
        body["tool_choice"] = _tool_choice(request.tool_choice)
    if request.response_format.kind == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif request.response_format.kind == "json_schema":
        wanted = request.response_format
        spec = {"name": wanted.name or "answer", "schema": dict(wanted.schema or {}), "strict": wanted.strict}
        body["response_format"] = {"type": "json_schema", "json_schema": spec}
    return body


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.allowed is None:
        return choice.mode
    functions = [{"type": "function", "function": {"name": name}} for name in choice.allowed]
    if choice.mode == "required" and len(functions) == 1:
        return functions[0]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": functions}}


def _message(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.text if message.content else None}
    if message.name is not None:
        found["name"] = message.name
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return found


def answer_of(body: dict[str, Any]) -> ChatAnswer:
    """The first choice of a chat completion; raises EngineError when the body is none."""
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        said = choice["message"]
        calls = tuple(
            ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
            for call in said.get("tool_calls") or ()
        )
        text = said.get("content") or ""
        message = Message.of("assistant", text, tool_calls=calls) if text else Message("assistant", tool_calls=calls)
        return ChatAnswer(
            message=message,
            finish_reason=FinishReason(choice["finish_reason"]),
            usage=Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineError("the server's answer is no chat completion") from error
