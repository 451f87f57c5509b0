"""Fine-tuned models, each owned by a tenant."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import delete, insert

from smelt.store.database import Database
from smelt.store.tables import models


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """A model made from `base_model`; `id` is what OpenAI calls `ft:…`."""

    id: str
    tenant: str
    created_ns: int
    base_model: str


class FineTunes:
    """The fine-tuned models of a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, model: FineTune) -> None:
        """Insert one; its id must be new."""
        with self._database.writing() as connection:
            connection.execute(insert(models).values(asdict(model)))

    def delete(self, tenant: str, model_id: str) -> bool:
        """Delete one of the tenant's; False where it has none of this id."""
        with self._database.writing() as connection:
            gone = delete(models).where(models.c.tenant == tenant, models.c.id == model_id)
            return connection.execute(gone).rowcount > 0
