"""Every field of OpenAI's chat and completion requests, and what this server does with it, in one place.

Three things follow from it: refusals (`refusals.py` reads it for each request), docs/api-matrix.md (`python -m
smelt.server.matrix` writes it) and a test that compares it with OpenAI's own description.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

Status = Literal["done", "accepted", "refused"]
UNSUPPORTED_PARAMETER = "unsupported_parameter"
UNSUPPORTED_VALUE = "unsupported_value"


@dataclass(frozen=True, slots=True)
class Row:
    """One field. Paths name array items `[]`; `children` are fields inside a refused one, by relative path.

    done: has its effect. accepted: its meaning already holds here, nothing to do; `only` limits it to the values
    for which that is true. refused: 400. `refuses`: values of a done field that are refused. `hint`: second
    sentence of the refusal.
    """

    path: str
    status: Status = "done"
    note: str = ""
    only: tuple[object, ...] = ()
    refuses: tuple[object, ...] = ()
    hint: str = ""
    children: tuple[str, ...] = ()


def _refused(path: str, note: str, hint: str = "", children: str = "") -> Row:
    return Row(path, "refused", note, hint=hint, children=tuple(children.split()))


_METADATA = "16 pairs, keys up to 64 characters, values up to 512"

CHAT: tuple[Row, ...] = (
    Row("model", note="the served model or one of its aliases; anything else is 404 model_not_found"),
    Row("messages", note="1 to 2048 (SMELT_MAX_MESSAGES)"),
    Row("messages[].role", refuses=("function",), note="system, developer, user, assistant, tool"),
    Row("messages[].content", note="a string or text parts; null for an assistant turn with tool calls or a refusal"),
    Row(
        "messages[].content[].type",
        refuses=("image_url", "input_audio", "file"),
        note="text; refusal in assistant turns",
    ),
    Row("messages[].content[].text"),
    Row("messages[].content[].refusal", note="read as the assistant's text"),
    _refused("messages[].content[].image_url", "the shipped family reads text only", "", "detail url"),
    _refused("messages[].content[].input_audio", "no audio", "", "data format"),
    _refused("messages[].content[].file", "no files", "", "file_data file_id filename"),
    _refused(
        "messages[].content[].prompt_cache_breakpoint",
        "prefixes are cached without being asked",
        "Prefixes are cached automatically.",
        "mode",
    ),
    Row("messages[].name", note="rendered where the model's chat format has a place for it"),
    Row("messages[].refusal", note="read as the assistant's text when content is null"),
    Row("messages[].annotations", "accepted", "an answer sent back as history carries an empty list", only=([],)),
    _refused("messages[].audio", "no audio", "", "id"),
    Row("messages[].tool_calls"),
    Row("messages[].tool_calls[].id"),
    Row("messages[].tool_calls[].type", refuses=("custom",), note="function"),
    Row("messages[].tool_calls[].function"),
    Row("messages[].tool_calls[].function.name"),
    Row("messages[].tool_calls[].function.arguments", note="kept exactly as written"),
    _refused("messages[].tool_calls[].custom", "functions only", "", "input name"),
    _refused("messages[].function_call", "deprecated by OpenAI", "Use 'tool_calls' instead.", "arguments name"),
    Row("messages[].tool_call_id", note="must answer a call of the assistant turn before it"),
    Row("temperature", note="0 to 2; 0 is greedy"),
    Row("top_p", note="0 to 1"),
    Row("n", note="1 to 128 (SMELT_MAX_N)"),
    Row("seed", note="same seed, same answer, whatever else is in the batch"),
    Row("stop", note="a string or up to 4, none empty"),
    Row("max_completion_tokens", note="over the model's output limit or the context: 400, never truncated silently"),
    Row("max_tokens", note="as max_completion_tokens; both at once are refused"),
    Row("frequency_penalty", note="-2 to 2"),
    Row("presence_penalty", note="-2 to 2"),
    Row("logit_bias", note="up to 1024 token ids of the served model's vocabulary, -100 to 100"),
    Row("logprobs"),
    Row("top_logprobs", note="0 to 20, with logprobs"),
    Row("stream"),
    Row("stream_options", note="with stream"),
    Row("stream_options.include_usage"),
    Row("stream_options.include_obfuscation", note="padding is added when true; the default here is false"),
    Row("response_format"),
    Row("response_format.type", note="text, json_object, json_schema"),
    Row("response_format.json_schema"),
    Row("response_format.json_schema.name"),
    Row("response_format.json_schema.description"),
    Row("response_format.json_schema.schema", note="enforced while sampling; one that cannot be honoured is 400"),
    Row("response_format.json_schema.strict", note="true adds OpenAI's rules for strict schemas; both enforce"),
    Row("tools", note="up to 128"),
    Row("tools[].type", refuses=("custom",), note="function"),
    Row("tools[].function"),
    Row("tools[].function.name"),
    Row("tools[].function.description"),
    Row("tools[].function.parameters", note="arguments are valid under it by construction"),
    Row("tools[].function.strict", note="true adds OpenAI's rules for strict schemas; both enforce"),
    _refused(
        "tools[].custom",
        "functions only",
        "",
        "description format format.grammar format.grammar.definition format.grammar.syntax format.type name",
    ),
    Row("tool_choice", note="none, auto, required, a named function, allowed_tools"),
    Row("tool_choice.type", refuses=("custom",), note="function, allowed_tools"),
    Row("tool_choice.function"),
    Row("tool_choice.function.name"),
    Row("tool_choice.allowed_tools"),
    Row("tool_choice.allowed_tools.mode"),
    Row("tool_choice.allowed_tools.tools"),
    _refused("tool_choice.custom", "functions only", "", "name"),
    Row("parallel_tool_calls", note="false: at most one call"),
    _refused("functions", "deprecated by OpenAI", "Use 'tools' instead.", "[].description [].name [].parameters"),
    _refused("function_call", "deprecated by OpenAI", "Use 'tool_choice' instead.", "name"),
    Row("store", note="true: kept once the answer is complete; refused where nothing is kept (--store none)"),
    Row("metadata", note=f"with store; {_METADATA}"),
    Row("service_tier", "accepted", "there is one tier", only=("auto", "default")),
    Row("modalities", "accepted", "answers are text", only=(["text"],)),
    Row("user", "accepted", "an identifier; changes no answer"),
    Row("safety_identifier", "accepted", "an identifier; changes no answer"),
    Row("prompt_cache_key", "accepted", "a hint; the prefix cache finds prefixes by content"),
    Row("prompt_cache_retention", "accepted", "the prefix cache lives in memory", only=("in_memory",)),
    Row("prompt_cache_options", "accepted"),
    Row("prompt_cache_options.mode", "accepted", "prefixes are cached automatically", only=("implicit",)),
    _refused("prompt_cache_options.ttl", "blocks are kept while there is room, no time is promised"),
    Row("reasoning_effort", "accepted", "the model answers directly", only=("none",)),
    Row("verbosity", "accepted", "length is the model's choice", only=("medium",)),
    _refused("audio", "text only", "", "format voice voice.id"),
    _refused(
        "prediction",
        "no predicted outputs yet",
        "",
        "content content[].prompt_cache_breakpoint content[].prompt_cache_breakpoint.mode content[].text "
        "content[].type type",
    ),
    _refused(
        "moderation",
        "no moderation yet",
        "",
        "model policy policy.input policy.input.mode policy.output policy.output.mode",
    ),
    _refused(
        "web_search_options",
        "no web search",
        "",
        "search_context_size user_location user_location.type user_location.approximate "
        "user_location.approximate.city user_location.approximate.country user_location.approximate.region "
        "user_location.approximate.timezone",
    ),
)

COMPLETIONS: tuple[Row, ...] = (
    Row("model", note="the served model or one of its aliases; anything else is 404 model_not_found"),
    Row("prompt", note="a string, strings, token ids, or lists of token ids; control ids are refused"),
    Row("max_tokens", note="16 unless given; 0 with echo scores the prompt"),
    Row("temperature", note="0 to 2; 0 is greedy"),
    Row("top_p", note="0 to 1"),
    Row("n", note="1 to 128 (SMELT_MAX_N), for each prompt"),
    Row("seed", note="same seed, same answer, whatever else is in the batch"),
    Row("stop", note="a string or up to 4, none empty"),
    Row("frequency_penalty", note="-2 to 2"),
    Row("presence_penalty", note="-2 to 2"),
    Row("logit_bias", note="up to 1024 token ids of the served model's vocabulary, -100 to 100"),
    Row("logprobs", note="0 to 5"),
    Row("echo", note="with logprobs also scores the prompt, as lm-evaluation-harness needs"),
    Row("stream"),
    Row("stream_options", note="with stream"),
    Row("stream_options.include_usage"),
    Row("stream_options.include_obfuscation", note="padding is added when true; the default here is false"),
    Row("best_of", "accepted", "one candidate is made for each choice", only=(1,)),
    Row("suffix", "refused", "no insertion"),
    Row("user", "accepted", "an identifier; changes no answer"),
)

_LIST = (
    Row("after", note="an id of the list, or of an object that was in it; another is 404"),
    Row("limit", note="1 to 100, 20 unless given; has_more may be true of a shorter page (16 MiB of text)"),
    Row("order", note="asc (oldest first) unless given, or desc"),
)
LIST_COMPLETIONS: tuple[Row, ...] = (
    Row("model", note="the name that was asked for"),
    Row("metadata", note="`metadata[key]=value`, all of which must match"),
    *_LIST,
)
LIST_MESSAGES: tuple[Row, ...] = _LIST
UPDATE_COMPLETION: tuple[Row, ...] = (Row("metadata", note=f"replaces all of it; null: none; {_METADATA}"),)

TABLES = {
    "POST /v1/chat/completions": CHAT,
    "GET /v1/chat/completions": LIST_COMPLETIONS,
    "POST /v1/chat/completions/{completion_id}": UPDATE_COMPLETION,
    "GET /v1/chat/completions/{completion_id}/messages": LIST_MESSAGES,
    "POST /v1/completions": COMPLETIONS,
}


def paths(rows: tuple[Row, ...]) -> list[str]:
    """All paths the table speaks of, children written out."""
    return [path for row in rows for path in (row.path, *child_paths(row))]


def child_paths(row: Row) -> list[str]:
    """A refused field's inner fields as full paths."""
    return [row.path + child if child.startswith("[]") else f"{row.path}.{child}" for child in row.children]


def markdown() -> str:
    """docs/api-matrix.md."""
    lines = [
        "# API matrix",
        "",
        "Every field of OpenAI's request descriptions, in bodies and in query strings. *done*: has its effect.",
        "*accepted*: its meaning already holds here. *refused*: HTTP 400 with the code shown. A field that is not",
        "listed is refused with `unknown_parameter`. null means the same as leaving an optional field out.",
        "",
        "Written by `python -m smelt.server.matrix`; tests/server/test_matrix.py keeps it true.",
    ]
    for title, rows in TABLES.items():
        lines += ["", f"## {title}", "", "| field | status | remarks |", "|---|---|---|"]
        for row in rows:
            lines.append(f"| `{row.path}` | {_status(row)} | {_remarks(row)} |")
            lines += [f"| `{path}` | refused with its parent | |" for path in child_paths(row)]
    return "\n".join(lines) + "\n"


def _status(row: Row) -> str:
    return f"refused: `{UNSUPPORTED_PARAMETER}`" if row.status == "refused" else row.status


def _remarks(row: Row) -> str:
    parts = [row.note] if row.note else []
    if row.only:
        parts.append(f"only {_values(row.only)}, else `{UNSUPPORTED_VALUE}`")
    if row.refuses:
        parts.append(f"{_values(row.refuses)}: `{UNSUPPORTED_VALUE}`")
    return "; ".join(parts)


def _values(values: tuple[object, ...]) -> str:
    import json

    return ", ".join(f"`{json.dumps(value)}`" for value in values)


if __name__ == "__main__":
    sys.stdout.write(markdown())
