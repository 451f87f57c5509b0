"""The house format as a Jinja text, for others: transformers and vLLM render it, smelt never runs it.

It gives the ids of HouseRenderer for conversations in OpenAI's shape, and for tools whose schemas keep to types, enums,
constants, anyOf, arrays, objects, defaults and descriptions; other schemas appear as JSON. Unlike smelt, those
programs find control tokens in the text itself, so there untrusted text can forge a turn.
"""

from __future__ import annotations

from typing import Any

HOUSE_TEMPLATE = r"""
{%- macro json(value) -%}{{ value | tojson(separators=(",", ":")) }}{%- endmacro -%}
{%- macro words(text) -%}{{ (text or "").split() | join(" ") }}{%- endmacro -%}
{%- macro note(schema) -%}
  {%- if schema is mapping -%}
    {%- if "default" in schema %}={{ json(schema.default) }}{% endif -%}
    {%- set told = words(schema.description).replace("*/", "* /") -%}
    {%- if told %} /*{{ told }}*/{% endif -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro inner(schema) -%}
  {%- set count = namespace(most=0) -%}
  {%- if schema is mapping -%}
    {%- for word in ["anyOf", "enum", "type"] -%}
      {%- if word in schema and schema[word] is not string -%}
        {%- set count.most = [count.most, schema[word] | length] | max -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if count.most > 1 %}({{ type(schema) }}){% else %}{{ type(schema) }}{% endif -%}
  {{ note(schema) }}
{%- endmacro -%}
{%- macro fields(schema) -%}
  {%- for name, field in (schema.properties or {}).items() -%}
    {%- if not loop.first %}, {% endif -%}
    {%- if name.isidentifier() %}{{ name }}{% else %}{{ json(name) }}{% endif -%}
    {%- if name not in (schema.required or []) %}?{% endif %}: {{ type(field) }}{{ note(field) }}
  {%- endfor -%}
{%- endmacro -%}
{%- macro one(kind, schema) -%}
  {%- if kind == "array" -%}
    {{ inner(schema["items"] if "items" in schema else true) }}[]
  {%- elif kind == "object" -%}
    {%- set extra = schema.additionalProperties -%}
    {%- if not schema.properties and extra is not mapping and "properties" not in schema %}object
    {%- else -%}
      {{ "{" }}{{ fields(schema) }}
      {%- if extra is mapping %}{% if schema.properties %}, {% endif %}[key]: {{ type(extra) }}{% endif -%}
      {{ "}" }}
    {%- endif -%}
  {%- else -%}{{ kind }}
  {%- endif -%}
{%- endmacro -%}
{%- macro type(schema) -%}
  {%- set silent = ["title", "description", "default", "examples", "$schema", "strict"] -%}
  {%- set shape = ["items", "properties", "required", "additionalProperties"] -%}
  {%- if schema is not mapping -%}
    {%- if schema is true %}any{% elif schema is false %}never{% else %}{{ json(schema) }}{% endif -%}
  {%- else -%}
    {%- set rest = schema.keys() | reject("in", silent) | reject("equalto", "type") | list -%}
    {%- if rest == ["const"] -%}{{ json(schema.const) }}
    {%- elif rest == ["enum"] -%}
      {%- for value in schema.enum %}{% if not loop.first %}|{% endif %}{{ json(value) }}{% endfor -%}
    {%- elif rest == ["anyOf"] -%}
      {%- for choice in schema.anyOf %}{% if not loop.first %}|{% endif %}{{ inner(choice) }}{% endfor -%}
    {%- elif rest | reject("in", shape) | list -%}{{ json(schema) }}
    {%- elif schema.type is string -%}{{ one(schema.type, schema) }}
    {%- elif schema.type -%}
      {%- for kind in schema.type %}{% if not loop.first %}|{% endif %}{{ one(kind, schema) }}{% endfor -%}
    {%- elif "items" in schema -%}{{ one("array", schema) }}
    {%- elif rest -%}{{ one("object", schema) }}
    {%- else %}any{% endif -%}
  {%- endif -%}
{%- endmacro -%}
<|bos|>
{%- if tools -%}
  <|tools|>
  {%- for tool in tools -%}
    {%- set f = tool.function -%}
    {%- if not loop.first %}{{ "\n" }}{% endif -%}
    {%- set about = words((f.description or "") ~ " " ~ ((f.parameters or {}).description or "")) -%}
    {{ f.name }}({{ fields(f.parameters or {}) }}){% if about %} //{{ about }}{% endif -%}
  {%- endfor -%}
  <|end|>
{%- endif -%}
{%- for m in messages -%}
  {{ "<|" ~ m.role ~ "|>" }}
  {%- if m.name is string %}<|name|>{{ m.name }}{% endif -%}
  {%- if m.tool_call_id is string %}<|id|>{{ m.tool_call_id }}{% endif -%}
  {%- if m.name is string or m.tool_call_id is string %}<|body|>{% endif -%}
  {%- if m.content is string -%}
    {%- if m.content %}{{ m.content }}{% elif not m.tool_calls %}<|part|>{% endif -%}
  {%- elif m.content -%}
    {%- for part in m.content -%}
      {%- if m.content | length > 1 or not part.text %}<|part|>{% endif %}{{ part.text }}
    {%- endfor -%}
  {%- endif -%}
  {%- for call in m.tool_calls or [] -%}
    {%- set f = call.function -%}
    <|call|>{{ f.name }}<|args|>
    {%- if f.arguments is string %}{{ f.arguments }}{% else %}{{ json(f.arguments) }}{% endif -%}
  {%- endfor -%}
  <|end|>
  {%- for call in m.tool_calls or [] %}<|id|>{{ call.id }}{% endfor -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}
""".strip()


def house_tokenizer_config() -> dict[str, Any]:
    """The tokenizer_config.json of a folder that speaks the house format, as transformers reads it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": HOUSE_TEMPLATE,
    }
