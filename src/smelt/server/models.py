"""GET /v1/models and /v1/models/{id}; DELETE for fine-tuned ones.

What is listed can be served by this process: the model it was started with, under each of its names. A fine-tuned
model that is only in the store is not among them, and can be deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request

from smelt.core.errors import ForbiddenError
from smelt.server.service import Answering, Service, no_such_model, service_of

if TYPE_CHECKING:
    from smelt.store.database import Database

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The model under each of its names."""
    service = service_of(request)
    return {"object": "list", "data": [_model(service, name) for name in service.names]}


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(request: Request, model_id: str) -> dict[str, Any]:
    """One of them."""
    service = service_of(request)
    service.resolve(model_id)
    return _model(service, model_id)


@router.delete("/v1/models/{model_id:path}")
async def delete_model(request: Request, model_id: str) -> dict[str, Any]:
    """Delete a fine-tuned model of the tenant's."""
    with Answering(request) as answering:
        service, tenant = answering.service, answering.record.tenant

        def work(database: Database) -> bool:
            from smelt.store.models import FineTunes

            return FineTunes(database).delete(tenant, model_id)

        if not await answering.run(service.storage.run(work, absent=False)):
            if model_id in service.names:
                raise ForbiddenError(f"The model `{model_id}` is a base model; only fine-tuned models can be deleted.")
            raise no_such_model(model_id)
    return {"id": model_id, "object": "model", "deleted": True}


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.llm.created, "owned_by": "smelt"}
