"""POST /v1/completions: raw prompts, echo and log-probabilities."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from smelt.core.sampling import Usage
from smelt.generate.completion import PromptText
from smelt.generate.events import AnswerEvent, AnswerUsage
from smelt.generate.prepare import Prepared
from smelt.server.completions_reply import CompletionReply
from smelt.server.completions_request import DEFAULT_MAX_TOKENS, CompletionBody
from smelt.server.matrix import COMPLETIONS
from smelt.server.service import Answering, Events, ServedModel, Service, metered, service_of
from smelt.server.validation import validate

router = APIRouter()
MAX_ANSWERS_AT_ONCE = 32  # of one request: a list of 1000 prompts must not fill the engine's queue
MAX_QUEUED_EVENTS = 64


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    """Continue one or more prompts, whole or as a stream."""
    service = service_of(request)
    with Answering(request) as answering:
        body, prepared = await answering.read(lambda raw: _prepare(service, raw))
        answering.record.model, answering.record.stream = service.llm.name, bool(body.stream)
        reply = CompletionReply(body, service.llm)
        events = merged(service.llm, prepared, n=body.n or 1, tenant=answering.record.tenant)
        events = metered(events, answering.record)
        if body.stream:
            return await answering.stream(events, reply.chunks)
        return JSONResponse(await answering.run(reply.whole(events)))


def _prepare(service: Service, raw: dict[str, Any]) -> tuple[CompletionBody, list[Prepared]]:
    body = validate(CompletionBody, raw, COMPLETIONS)
    model = service.resolve(body.model)
    body.check(service.settings)
    for prompt in body.prompts:
        if isinstance(prompt, str):
            service.check_length([prompt], "prompt")
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = body.params(max_tokens=limit, top_logprobs=body.logprobs)
    return body, [model.prepare_completion(prompt, params, echo=bool(body.echo)) for prompt in body.prompts]


async def merged(model: ServedModel, prepared: Sequence[Prepared], *, n: int, tenant: str = "") -> Events:
    """The answers to all prompts, running together, as one stream with one AnswerUsage at its end."""
    if len(prepared) == 1:
        async with aclosing(model.stream(prepared[0], n=n, tenant=tenant)) as only:
            async for part in only:
                yield part
        return
    queue: asyncio.Queue[AnswerEvent | PromptText | Exception | None] = asyncio.Queue(MAX_QUEUED_EVENTS)
    gate = asyncio.Semaphore(max(1, MAX_ANSWERS_AT_ONCE // n))
    usages: list[Usage] = []

    async def feed(index: int, one: Prepared) -> None:
        try:
            async with gate, aclosing(model.stream(one, n=n, tenant=tenant)) as parts:
                async for part in parts:
                    if isinstance(part, AnswerUsage):
                        usages.append(part.usage)
                    else:
                        await queue.put(dataclasses.replace(part, choice=part.choice + index * n))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    feeders = [asyncio.create_task(feed(index, one)) for index, one in enumerate(prepared)]
    try:
        num_open = len(feeders)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for feeder in feeders:
            feeder.cancel()
        await asyncio.gather(*feeders, return_exceptions=True)
    yield AnswerUsage(_sum(usages))


def _sum(usages: list[Usage]) -> Usage:
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )
