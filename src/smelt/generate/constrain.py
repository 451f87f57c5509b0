"""From tools, tool choice and response format to the one constraint an answer is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from smelt.chat.renderer import CallSyntax
from smelt.core.messages import ResponseFormat, Tool, ToolChoice
from smelt.core.sampler import ChatRequest
from smelt.generate.finite import has_finite_instance
from smelt.generate.grammar import Constraint, GrammarCompiler, GrammarError
from smelt.generate.lark import ANY_OBJECT, NO_ARGUMENTS, CallRule, calls_grammar, json_grammar, json_rule
from smelt.generate.schema import MAX_CHARS, Subject, check_schema
from smelt.generate.strict_subset import check_strict
from smelt.generate.tighten import tighten

T = TypeVar("T")


def offered_tools(request: ChatRequest) -> tuple[Tool, ...]:
    """The tools this answer may use: none under tool_choice "none", else the allowed ones, in request order."""
    choice = request.tool_choice
    if choice.mode == "none":
        return ()
    if choice.allowed is None:
        return request.tools
    return tuple(tool for tool in request.tools if tool.name in choice.allowed)


def is_named(choice: ToolChoice) -> bool:
    """One certain function must be called."""
    return choice.mode == "required" and choice.allowed is not None and len(choice.allowed) == 1


def check_schemas(request: ChatRequest) -> None:
    """Refuse what is too large or malformed, before anything renders or compiles it. Raises InvalidRequestError."""
    num_chars = 0  # of all functions: a prompt shows them all
    for tool in request.tools:
        subject = _tool_subject(request, tool)
        if not isinstance(tool.parameters, Mapping) or tool.parameters:
            num_chars += _check(tool.parameters, subject)
            if num_chars > MAX_CHARS:
                raise subject.refuse(f"with those before it, it has more than {MAX_CHARS} characters.")
            if tool.strict:
                check_strict(tool.parameters, subject)
            kind = tool.parameters.get("type", "object")
            if kind != "object":
                raise subject.refuse(f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'.")
    form = request.response_format
    if form.kind == "json_schema":
        subject = _format_subject(form)
        _check(form.schema, subject)
        if form.strict and form.schema is not None:
            check_strict(form.schema, subject)


def _check(schema: Any, subject: Subject) -> int:
    num_chars = check_schema(schema, subject)
    if not has_finite_instance(schema):
        raise subject.refuse("it requires itself within itself, so nothing finite satisfies it.")
    return num_chars


def constrain(request: ChatRequest, compiler: GrammarCompiler, syntax: CallSyntax) -> Constraint:
    """The constraint of an answer to `request`. Raises InvalidRequestError where a schema cannot be honoured.

    required: calls from the first token; a named tool: exactly one call. auto: text, or JSON under the response
    format, or calls. Call arguments follow the tool's schema from the first token of a call. A tool that is not
    strict may lose the keywords llguidance does not know; a response format and a strict tool never do.
    """
    tools = offered_tools(request)
    if not tools:
        return _answer_only(request.response_format, compiler)
    otherwise = None if request.tool_choice.mode == "required" else _otherwise(request.response_format, compiler)
    parallel = request.parallel_tool_calls and not is_named(request.tool_choice)

    def grammar(calls: Sequence[tuple[CallRule, str]]) -> Constraint:
        return compiler.compile(calls_grammar(syntax, calls, parallel=parallel, otherwise=otherwise))

    try:
        return grammar([(rule := _call(tool), json_rule(rule.schema)) for tool in tools])
    except GrammarError:  # now find out whose schema it is, and whether it can do with less
        calls = [_lenient_call(request, tool, compiler) for tool in tools]
    return _compiled(lambda: grammar(calls), Subject("tools", "tools"))


def _answer_only(form: ResponseFormat, compiler: GrammarCompiler) -> Constraint:
    if form.kind == "text":
        return compiler.free_text()
    lark = json_grammar(_format_schema(form))
    return _compiled(lambda: compiler.compile(lark), _format_subject(form))


def _otherwise(form: ResponseFormat, compiler: GrammarCompiler) -> str:
    if form.kind == "text":
        return "text"
    _answer_only(form, compiler)  # so that a schema at fault is named before the tools are
    return json_rule(_format_schema(form))


def _format_schema(form: ResponseFormat) -> Mapping[str, Any]:
    return ANY_OBJECT if form.kind == "json_object" or form.schema is None else tighten(form.schema)


def _call(tool: Tool) -> CallRule:
    schema = tighten({"type": "object", **tool.parameters}) if tool.parameters else NO_ARGUMENTS
    return CallRule(tool.name, schema)


def _lenient_call(request: ChatRequest, tool: Tool, compiler: GrammarCompiler) -> tuple[CallRule, str]:
    """A function and the rule of its arguments that compiles by itself. Raises InvalidRequestError."""
    rule = _call(tool)
    try:
        compiler.check(json_grammar(rule.schema))
        return rule, json_rule(rule.schema)
    except GrammarError as error:
        subject = _tool_subject(request, tool)
        if tool.strict:
            raise subject.refuse(str(error)) from None
        _compiled(lambda: compiler.check(json_grammar(rule.schema, lenient=True)), subject)
        return rule, json_rule(rule.schema, lenient=True)


def _compiled(compile_: Callable[[], T], subject: Subject) -> T:
    try:
        return compile_()
    except GrammarError as error:
        raise subject.refuse(str(error)) from None


def _tool_subject(request: ChatRequest, tool: Tool) -> Subject:
    index = request.tools.index(tool)
    return Subject(f"function '{tool.name}'", f"tools[{index}].function.parameters", "invalid_function_parameters")


def _format_subject(form: ResponseFormat) -> Subject:
    return Subject(f"response_format '{form.name}'", "response_format")
