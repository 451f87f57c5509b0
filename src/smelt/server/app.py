"""The ASGI application: routes inside guards, every reply in OpenAI's shapes."""

from __future__ import annotations

from typing import NoReturn

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request

from smelt import __version__
from smelt.server import chat, completions, health, models, stored
from smelt.server.errors import StatusError, unknown_route, wrong_method
from smelt.server.middleware import HeaderLimits, KeyGuard, OriginGuard, Recorder
from smelt.server.service import ServedModel, Service
from smelt.server.settings import Settings


def create_app(llm: ServedModel, settings: Settings) -> FastAPI:
    """An application that serves `llm`. Raises nothing; the settings were checked when they were made.

    No interactive documentation: its pages would load scripts from elsewhere.
    """
    app = FastAPI(
        title="smelt", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.service = service = Service(llm, settings)
    for module in (chat, stored, completions, models, health):
        app.include_router(module.router)
    app.add_exception_handler(HTTPException, _refuse_route)
    # The last one added is the outermost.
    app.add_middleware(KeyGuard, settings=settings)
    app.add_middleware(OriginGuard, settings=settings)
    app.add_middleware(HeaderLimits, settings=settings)
    app.add_middleware(Recorder, done=service.metrics.note)
    return app


async def _refuse_route(request: Request, error: Exception) -> NoReturn:
    """What the router itself refuses, in our shape; the Recorder turns it into a reply."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        raise unknown_route(request.method, request.url.path)
    if status == 405:
        raise wrong_method(request.method, request.url.path)
    raise StatusError(status, "The request could not be routed.")
