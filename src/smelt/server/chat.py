"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from smelt.core.errors import InvalidRequestError
from smelt.core.sampler import ChatRequest
from smelt.generate.constrain import offered_tools
from smelt.generate.prepare import Prepared
from smelt.server.chat_reply import ChatReply
from smelt.server.chat_request import ChatBody
from smelt.server.matrix import CHAT
from smelt.server.service import Answering, Service, metered, service_of
from smelt.server.stored import kept
from smelt.server.validation import validate

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    service = service_of(request)
    with Answering(request) as answering:
        body, prepared = await answering.read(lambda raw: _prepare(service, raw))
        answering.record.model, answering.record.stream = service.llm.name, bool(body.stream)
        reply = ChatReply(body, service.llm)
        events = service.llm.stream(prepared, n=body.n or 1, tenant=answering.record.tenant)
        events = metered(events, answering.record)
        if body.store:
            events = kept(events, reply, answering)
        if body.stream:
            return await answering.stream(events, reply.chunks)
        return JSONResponse(await answering.run(reply.whole(events)))


def _prepare(service: Service, raw: dict[str, Any]) -> tuple[ChatBody, Prepared]:
    body = validate(ChatBody, raw, CHAT)
    model = service.resolve(body.model)
    body.check(service.settings)
    question = body.question()
    service.check_length(_texts(question), "messages", " or functions" if question.tools else "")
    try:
        return body, model.prepare(question)
    except InvalidRequestError as error:
        if error.param == "max_tokens":  # the caller may have used its newer name
            raise InvalidRequestError(error.message, param=body.limit_field, code=error.code) from None
        raise


def _texts(question: ChatRequest) -> Iterator[str]:
    """The texts of a caller's own length that chat formats show; schemas have a limit of their own.

    Of descriptions the words only: between them formats may write less.
    """
    for message in question.messages:
        yield message.text
        yield from (call.arguments for call in message.tool_calls)
    descriptions = [tool.description for tool in offered_tools(question)]
    if question.response_format.kind == "json_schema":
        descriptions.append(question.response_format.description)
    yield from (" ".join(description.split()) for description in descriptions)
