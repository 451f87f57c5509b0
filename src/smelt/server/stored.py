"""Stored chat completions: kept when a request says `store: true`; listed, read, labelled, deleted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from smelt.core.errors import NotFoundError
from smelt.server.chat_reply import ChatReply
from smelt.server.chat_request import ChatBody
from smelt.server.errors import shown
from smelt.server.matrix import LIST_COMPLETIONS, LIST_MESSAGES, UPDATE_COMPLETION
from smelt.server.queries import CompletionsQuery, ListQuery, Metadata, list_body, nothing_after, query_of
from smelt.server.service import Answering, Events
from smelt.server.validation import Body, validate
from smelt.store.pages import Cursor

if TYPE_CHECKING:
    from smelt.store.completions import Completions, StoredCompletion
    from smelt.store.database import Database

router = APIRouter()
# What is done in the store, given its completions and the tenant: the reply, or None where there is no such object.
Work = Callable[["Completions", str], "bytes | None"]
# Of a request, what OpenAI shows beside a stored answer, and what it shows where the request said nothing.
_ASKED: Mapping[str, Any] = {
    "tool_choice": None,
    "seed": None,
    "top_p": 1.0,
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "tools": None,
    "response_format": None,
}


class MetadataBody(Body):
    """POST /v1/chat/completions/{id}: the one thing that can be changed."""

    metadata: Metadata | None


async def kept(events: Events, reply: ChatReply, answering: Answering) -> Events:
    """The same events. When the answer is complete it is stored, before anybody hears that it is complete."""
    answer = reply.gather()
    async with aclosing(events):
        async for part in events:
            answer.add(part)
            yield part
    record = answering.record
    await answering.service.storage.keep(
        lambda: _row(reply, answer.completion(), tenant=record.tenant, request_id=record.request_id),
        request_id=record.request_id,
        within_s=answering.left_s,
    )


def _row(reply: ChatReply, completion: dict[str, Any], *, tenant: str, request_id: str) -> StoredCompletion:
    from smelt.store.completions import StoredCompletion

    body: ChatBody = reply.body
    request = body.model_dump(by_alias=True, exclude_unset=True)
    return StoredCompletion(
        id=completion["id"],
        tenant=tenant,
        created_ns=reply.created_ns,
        model=body.model,
        request_id=request_id,
        messages=tuple(request.pop("messages")),
        metadata=request.pop("metadata", None) or {},
        request=request,
        response=completion,
    )


@router.get("/v1/chat/completions")
async def list_completions(request: Request) -> Response:
    """The tenant's stored completions, a page at a time, by model and metadata where asked."""
    query = validate(CompletionsQuery, query_of(request), LIST_COMPLETIONS)
    cursor = Cursor(after=query.after, limit=query.limit, order=query.order)

    def work(completions: Completions, tenant: str) -> bytes | None:
        page = completions.page(tenant, cursor, model=query.model, metadata=query.metadata)
        return None if page is None else _json(list_body([_body(s) for s in page.items], has_more=page.has_more))

    nothing = _json(list_body((), has_more=False)) if query.after is None else None
    return _found(await _with_store(request, work, absent=nothing), nothing_after(query.after))


@router.get("/v1/chat/completions/{completion_id}")
async def retrieve_completion(request: Request, completion_id: str) -> Response:
    """One stored completion."""

    def work(completions: Completions, tenant: str) -> bytes | None:
        stored = completions.get(tenant, completion_id)
        return None if stored is None else _json(_body(stored))

    return _found(await _with_store(request, work), _unknown(completion_id))


@router.post("/v1/chat/completions/{completion_id}")
async def update_completion(request: Request, completion_id: str) -> Response:
    """Replace the metadata of one."""
    with Answering(request) as answering:
        body = await answering.read(lambda raw: validate(MetadataBody, raw, UPDATE_COMPLETION))

        def work(completions: Completions, tenant: str) -> bytes | None:
            stored = completions.set_metadata(tenant, completion_id, body.metadata or {})
            return None if stored is None else _json(_body(stored))

        return _found(await _in_store(answering, work), _unknown(completion_id))


@router.delete("/v1/chat/completions/{completion_id}")
async def delete_completion(request: Request, completion_id: str) -> Response:
    """Delete one, with its messages and metadata."""

    def work(completions: Completions, tenant: str) -> bytes | None:
        gone = {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}
        return _json(gone) if completions.delete(tenant, completion_id) else None

    return _found(await _with_store(request, work), _unknown(completion_id))


@router.get("/v1/chat/completions/{completion_id}/messages")
async def list_messages(request: Request, completion_id: str) -> Response:
    """The messages of a stored completion's request, a page at a time. Their ids are the completion's and a number."""
    query = validate(ListQuery, query_of(request), LIST_MESSAGES)
    after = _position(query.after, completion_id)

    def work(completions: Completions, tenant: str) -> bytes | None:
        page = completions.messages(
            tenant, completion_id, after=after, limit=query.limit, descending=query.order == "desc"
        )
        if page is None:
            return None
        return _json(list_body([_message(completion_id, *item) for item in page.items], has_more=page.has_more))

    return _found(await _with_store(request, work), _unknown(completion_id))


async def _with_store(request: Request, work: Work, *, absent: bytes | None = None) -> bytes | None:
    with Answering(request) as answering:
        return await _in_store(answering, work, absent=absent)


async def _in_store(answering: Answering, work: Work, *, absent: bytes | None = None) -> bytes | None:
    """What `work` makes of the tenant's completions, in a thread: rows, their JSON, and the reply's."""
    tenant, storage = answering.record.tenant, answering.service.storage

    def in_thread(database: Database) -> bytes | None:
        from smelt.store.completions import Completions

        return work(Completions(database), tenant)

    return await answering.run(storage.run(in_thread, absent=absent))


def _found(body: bytes | None, otherwise: NotFoundError) -> Response:
    if body is None:
        raise otherwise
    return Response(body, media_type="application/json")


def _unknown(completion_id: str) -> NotFoundError:
    return NotFoundError(f"No chat completion found with id '{shown(completion_id)}'.")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _body(stored: StoredCompletion) -> dict[str, Any]:
    """The completion as it was answered, and of the request what OpenAI shows with it."""
    asked = {name: value for name, value in stored.request.items() if name in _ASKED and value is not None}
    return {
        **stored.response,
        **_ASKED,
        **asked,
        "request_id": stored.request_id,
        "input_user": stored.request.get("user"),
        "metadata": stored.metadata,
    }


def _message(completion_id: str, position: int, body: dict[str, Any]) -> dict[str, Any]:
    """A message in the list's shape: a string in `content`, an array in `content_parts`."""
    content = body.get("content")
    is_array = isinstance(content, list)
    return {
        "refusal": None,
        "name": None,
        **body,
        "id": f"{completion_id}-{position}",
        "content": None if is_array else content,
        "content_parts": content if is_array else None,
    }


def _position(after: str | None, completion_id: str) -> int | None:
    """The number in a message's id. Raises NotFoundError for an id of another completion."""
    if after is None:
        return None
    number = after.removeprefix(f"{completion_id}-")
    if number == after or not (number.isascii() and number.isdecimal() and len(number) <= 9):
        raise nothing_after(after)
    return int(number)
