"""A Sampler over any OpenAI-compatible URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smelt.core.errors import EngineError, InvalidRequestError
from smelt.core.messages import Message, ToolCall, ToolChoice
from smelt.core.sampler import ChatAnswer, ChatRequest
from smelt.core.sampling import FinishReason, Usage

if TYPE_CHECKING:
    import httpx


class HTTPSampler:
    """Asks `base_url`/chat/completions. `client` may be handed in (other transports, tests); it is not closed."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str = "none",
        timeout_s: float = 120.0,
        client: httpx.Client | None = None,
    ) -> None:
        import httpx

        self._client = client or httpx.Client(timeout=timeout_s)
        self._url, self._model, self._api_key = base_url.rstrip("/"), model, api_key

    @property
    def name(self) -> str:
        """The model's name at the URL."""
        return self._model

    def chat(self, request: ChatRequest) -> ChatAnswer:
        """One request. A 4xx raises InvalidRequestError, anything else that fails EngineError."""
        import httpx

        try:
            response = self._client.post(
                f"{self._url}/chat/completions",
                json=request_body(request, self._model),
                headers={"Authorization": f"Bearer {self._api_key}"},
            )
        except httpx.HTTPError as error:
            raise EngineError(f"no answer from the server: {type(error).__name__}") from error
        if 400 <= response.status_code < 500:
            raise InvalidRequestError(f"refused with {response.status_code}: {response.text[:300]}")
        if response.status_code != 200:
            raise EngineError(f"the server failed with {response.status_code}")
        return answer_of(response.json())


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
