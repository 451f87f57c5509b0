"""docs/api-matrix.md says what is true: against the document, OpenAI's description, our schema, and behaviour."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from smelt.server.chat_request import ChatBody
from smelt.server.completions_request import CompletionBody
from smelt.server.matrix import CHAT, COMPLETIONS, TABLES, Row, markdown, paths
from smelt.server.queries import CompletionsQuery, ListQuery
from smelt.server.stored import MetadataBody
from tests.conftest import SHARED
from tests.server.conftest import CHAT as CHAT_REQUEST
from tests.server.conftest import COMPLETION as COMPLETION_REQUEST
from tests.server.conftest import Post
from tests.server.matrix_samples import CHAT_SAMPLES, COMPLETION_SAMPLES, REFUSED_VALUES
from tests.server.spec_paths import field_paths

ROOT = Path(__file__).resolve().parents[2]
BEYOND_OPENAI = {"messages[].annotations"}  # OpenAI's own answers carry it, and clients send it back
ENDPOINTS = {"chat": (CHAT, CHAT_SAMPLES), "completions": (COMPLETIONS, COMPLETION_SAMPLES)}
ROWS = [(endpoint, row) for endpoint, (rows, _) in ENDPOINTS.items() for row in rows]


def _id(case: Any) -> str:
    return case.path if isinstance(case, Row) else str(case)


def test_the_document_is_the_table() -> None:
    """Run `python -m smelt.server.matrix > docs/api-matrix.md` when this fails."""
    assert (ROOT / "docs/api-matrix.md").read_text() == markdown()


@cache
def _openais_description() -> dict[str, Any]:
    description = SHARED / "reference/openai-openapi.yaml"
    if not description.is_file():
        pytest.skip("needs ../shared/reference/openai-openapi.yaml beside the repository")
    return yaml.load(description.read_text(), Loader=yaml.CSafeLoader)


@pytest.mark.parametrize(
    ("schema", "rows"), [("CreateChatCompletionRequest", CHAT), ("CreateCompletionRequest", COMPLETIONS)]
)
def test_the_table_has_every_field_of_openais_description(schema: str, rows: tuple[Row, ...]) -> None:
    schemas = _openais_description()["components"]["schemas"]
    listed = paths(rows)
    assert len(listed) == len(set(listed))
    assert set(listed) - BEYOND_OPENAI == set(field_paths(schemas[schema], schemas))


@pytest.mark.parametrize("title", [title for title in TABLES if title.startswith("GET")])
def test_the_table_has_every_field_of_a_query_string(title: str) -> None:
    method, path = title.split()
    operation = _openais_description()["paths"][path.removeprefix("/v1")][method.lower()]
    in_query = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert set(paths(TABLES[title])) == in_query


_SCHEMAS = {
    "POST /v1/chat/completions": ChatBody,
    "GET /v1/chat/completions": CompletionsQuery,
    "POST /v1/chat/completions/{completion_id}": MetadataBody,
    "GET /v1/chat/completions/{completion_id}/messages": ListQuery,
    "POST /v1/completions": CompletionBody,
}


@pytest.mark.parametrize(("model", "rows"), [(_SCHEMAS[title], rows) for title, rows in TABLES.items()])
def test_the_servers_schema_has_what_the_table_does_not_refuse(model: Any, rows: tuple[Row, ...]) -> None:
    schema = model.model_json_schema()
    # OpenAI leaves the items of allowed_tools.tools open; here they have fields.
    fields = {path for path in field_paths(schema, schema.get("$defs", {})) if ".allowed_tools.tools[]" not in path}
    assert fields == {row.path for row in rows if row.status != "refused"}


def _post(endpoint: str, fields: dict[str, Any], client: Any) -> Any:
    smallest = CHAT_REQUEST if endpoint == "chat" else COMPLETION_REQUEST
    path = "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"
    return client.post(path, json=smallest | fields)


@pytest.mark.parametrize(("endpoint", "row"), ROWS, ids=_id)
def test_each_row_behaves_as_it_says(endpoint: str, row: Row, client: Any) -> None:
    fields = ENDPOINTS[endpoint][1][row.path]
    reply = _post(endpoint, fields, client)
    if row.status != "refused":
        assert reply.status_code == 200, reply.text
        return
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "unsupported_parameter")
    assert re.sub(r"\[\d+\]", "[]", error["param"]) == row.path
    assert _post(endpoint, _nulled(fields, row.path), client).status_code == 200


def _nulled(fields: Any, path: str) -> Any:
    """`fields` with null at `path`: the same as leaving it out."""
    head, _, rest = path.partition(".")
    name, is_array = head.removesuffix("[]"), head.endswith("[]")
    if not isinstance(fields, dict) or name not in fields:
        return fields
    if not rest:
        return fields | {name: None}
    inner = fields[name]
    return fields | {name: [_nulled(item, rest) for item in inner] if is_array else _nulled(inner, rest)}


@pytest.mark.parametrize(("endpoint", "param", "fields"), REFUSED_VALUES)
def test_values_that_are_refused(endpoint: str, param: str, fields: dict[str, Any], client: Any) -> None:
    reply = _post(endpoint, fields, client)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "unsupported_value", param)


def test_every_limited_row_has_a_refused_value() -> None:
    limited = {row.path for _, row in ROWS if row.only or row.refuses}
    tried = {re.sub(r"\[\d+\]", "[]", param) for _, param, _ in REFUSED_VALUES}
    assert tried == limited


def test_optional_fields_may_be_null(chat: Post, complete: Post) -> None:
    chat_fields = {row.path: None for row in CHAT if "." not in row.path and "[" not in row.path}
    del chat_fields["model"], chat_fields["messages"]
    assert chat(**chat_fields).status_code == 200
    fields = {row.path: None for row in COMPLETIONS if "." not in row.path and row.path not in ("model", "prompt")}
    assert complete(**fields).status_code == 200
