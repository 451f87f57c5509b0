"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from smelt.core.errors import InvalidRequestError
from smelt.generate.prepare import Prepared
from smelt.server.chat_reply import ChatReply
from smelt.server.chat_request import ChatBody
from smelt.server.matrix import CHAT
from smelt.server.service import Answering, Service, metered, service_of
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
        if body.stream:
            return await answering.stream(events, reply.chunks)
        return JSONResponse(await answering.run(reply.whole(events)))


def _prepare(service: Service, raw: dict[str, Any]) -> tuple[ChatBody, Prepared]:
    body = validate(ChatBody, raw, CHAT)
    model = service.resolve(body.model)
    body.check(service.settings)
    question = body.question()
    service.check_length((message.text for message in question.messages), "messages")
    try:
        return body, model.prepare(question)
    except InvalidRequestError as error:
        if error.param == "max_tokens":  # the caller may have used its newer name
            raise InvalidRequestError(error.message, param=body.limit_field, code=error.code) from None
        raise
