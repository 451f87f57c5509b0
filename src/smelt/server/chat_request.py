"""The body of POST /v1/chat/completions, and the question it asks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import ResponseFormat, Tool, ToolChoice
from smelt.core.sampler import ChatRequest
from smelt.server.errors import shown
from smelt.server.matrix import UNSUPPORTED_VALUE
from smelt.server.messages import MAX_NAME_LEN, MessageBody, ToolName, conversation
from smelt.server.queries import Metadata
from smelt.server.sampling import SamplingBody
from smelt.server.settings import Settings
from smelt.server.validation import OBJECT, STRING, Body, by_kind, too_many
from smelt.store.location import NOWHERE

MAX_TOOLS = 128
MAX_DESCRIPTION_LEN = 2**20

Description = Annotated[str, Field(max_length=MAX_DESCRIPTION_LEN)]


class FunctionBody(Body):
    """A function the model may call."""

    name: ToolName
    description: Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Body):
    """One entry of `tools`."""

    type: Literal["function"]
    function: FunctionBody


class FunctionName(Body):
    """A function, by name."""

    name: Annotated[str, Field(min_length=1)]


class NamedChoice(Body):
    """A function that must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    """The tools this answer may use."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(Body):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


_ChoiceObject = Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]
ToolChoiceBody = Annotated[
    Annotated[Literal["none", "auto", "required"], STRING] | Annotated[_ChoiceObject, OBJECT],
    by_kind("a string or an object"),
]


class JsonSchemaBody(Body):
    """A schema with a name."""

    name: ToolName
    description: Description | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON valid under a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaBody


ResponseFormatBody = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class CacheOptions(Body):
    """How prefixes are cached; the matrix leaves one value."""

    mode: Literal["implicit", "explicit"] | None = None


class ChatBody(SamplingBody):
    """Every field that is not refused. Refused ones never get here (see `matrix`)."""

    messages: Annotated[list[MessageBody], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormatBody | None = None
    tools: Annotated[list[ToolDefinition], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    safety_identifier: Annotated[str, Field(max_length=MAX_NAME_LEN)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: CacheOptions | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @property
    def limit_field(self) -> str:
        """Which of the two output limits the caller used."""
        return "max_tokens" if self.max_tokens is not None else "max_completion_tokens"

    def check(self, settings: Settings) -> None:
        """What one field's type cannot say. Raises InvalidRequestError."""
        super().check(settings)
        if len(self.messages) > settings.max_messages:
            raise too_many("messages", settings.max_messages, len(self.messages))
        if len(self.tools or ()) > settings.max_tools:
            raise too_many("tools", settings.max_tools, len(self.tools or ()))
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidRequestError(
                "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
                param="max_tokens",
                code="invalid_parameter_combination",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
            )
        if self.parallel_tool_calls is not None and not self.tools:
            raise _needs_tools("parallel_tool_calls")
        if self.metadata is not None and not self.store:
            raise InvalidRequestError(
                "The 'metadata' parameter is only allowed when 'store' is enabled.", param="metadata"
            )
        if self.store and settings.store == NOWHERE:
            raise InvalidRequestError(
                "Unsupported value: 'store' does not support true with this server, which runs with --store none.",
                param="store",
                code=UNSUPPORTED_VALUE,
            )

    def question(self) -> ChatRequest:
        """The request in core's words. Raises InvalidRequestError where its fields contradict each other."""
        messages = conversation(self.messages)
        tools = self._tools()
        response_format = self._response_format()
        mentions_json = any("json" in message.text.lower() for message in messages)
        if response_format.kind == "json_object" and not mentions_json:
            raise InvalidRequestError(
                "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
                param="messages",
            )
        top_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        limit = self.max_tokens if self.max_tokens is not None else self.max_completion_tokens
        return ChatRequest(
            messages=messages,
            tools=tools,
            tool_choice=self._tool_choice({tool.name for tool in tools}),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            response_format=response_format,
            params=self.params(max_tokens=limit, top_logprobs=top_logprobs),
        )

    def _tools(self) -> tuple[Tool, ...]:
        tools: dict[str, Tool] = {}
        for i, definition in enumerate(self.tools or ()):
            function = definition.function
            if function.name in tools:
                raise InvalidRequestError(
                    f"Invalid value for 'tools': the function name '{function.name}' is used twice.",
                    param=f"tools[{i}].function.name",
                    code="invalid_value",
                )
            tools[function.name] = Tool(
                name=function.name,
                description=function.description or "",
                parameters=function.parameters or {},
                strict=bool(function.strict),
            )
        return tuple(tools.values())

    def _tool_choice(self, names: set[str]) -> ToolChoice:
        choice = self.tool_choice
        if choice is None:
            return ToolChoice("auto" if names else "none")
        if not names:
            if choice in ("none", "auto"):
                return ToolChoice("none")
            raise _needs_tools("tool_choice")
        if isinstance(choice, str):
            return ToolChoice(choice)
        if isinstance(choice, NamedChoice):
            return ToolChoice("required", (_known(choice.function.name, names),))
        allowed = dict.fromkeys(_known(tool.function.name, names) for tool in choice.allowed_tools.tools)
        return ToolChoice(choice.allowed_tools.mode, tuple(allowed))

    def _response_format(self) -> ResponseFormat:
        chosen = self.response_format
        if not isinstance(chosen, JsonSchemaFormat):
            return ResponseFormat("text" if chosen is None else chosen.type)
        body = chosen.json_schema
        return ResponseFormat(
            "json_schema",
            name=body.name,
            schema=body.schema_,
            description=body.description or "",
            strict=bool(body.strict),
        )


def _needs_tools(param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid value for '{param}': '{param}' is only allowed when 'tools' are specified.", param=param
    )


def _known(name: str, names: set[str]) -> str:
    if name not in names:
        raise InvalidRequestError(f"Tool choice '{shown(name)}' not found in 'tools' parameter.", param="tool_choice")
    return name
