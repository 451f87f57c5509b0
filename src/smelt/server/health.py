"""GET /health, a word for whoever watches the process, and GET /metrics, numbers for whoever holds a key."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from smelt.server.service import service_of

router = APIRouter()


@router.get("/health")
async def health() -> JSONResponse:
    """The process answers, so its model is loaded. Open without a key: it says nothing else."""
    return JSONResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus' exposition format."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
