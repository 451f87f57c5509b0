"""The tables as they are now. How an older database becomes this one: `migrations`; a test compares the two.

JSON is TEXT: what is searched has a column or a row of its own, and the rest is given back as it came. Times are
nanoseconds since 1970 (UTC). `tenant` is who owns the row ("" where the server has no keys): every query names it.
What is made at the machine itself (training runs) has none.
"""

from __future__ import annotations

from sqlalchemy import DOUBLE_PRECISION, BigInteger, Column, ForeignKey, Index, Integer, MetaData, Table, Text

metadata = MetaData()

migrations_done = Table(
    "migrations",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("applied_ns", BigInteger, nullable=False),
)

# An answer that was asked to be kept: `request` without its messages and metadata, `response` as it was given.
chat_completions = Table(
    "chat_completions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("response", Text, nullable=False),
    Index("chat_completions_by_age", "tenant", "created_ns", "id"),
    Index("chat_completions_oldest", "created_ns"),
)

chat_messages = Table(
    "chat_messages",
    metadata,
    Column("completion_id", Text, ForeignKey("chat_completions.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
)

chat_metadata = Table(
    "chat_metadata",
    metadata,
    Column("completion_id", Text, ForeignKey("chat_completions.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# Fine-tuned models. Base models are folders that a server is started with, and have no row.
models = Table(
    "models",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("base_model", Text, nullable=False),
)

# A run of `smelt train`; `heard_ns` is renewed while it lives, so that one that was killed is told from one that works.
training_runs = Table(
    "training_runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("heard_ns", BigInteger, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("state", Text, nullable=False),
    Index("training_runs_by_age", "created_ns", "id"),
)

training_points = Table(
    "training_points",
    metadata,
    Column("run_id", Text, ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("total_steps", BigInteger, nullable=False),
    Column("stage", Text, nullable=False),
    Column("loss", DOUBLE_PRECISION, nullable=False),
    Column("num_tokens", BigInteger, nullable=False),
    Column("elapsed_s", DOUBLE_PRECISION, nullable=False),
    Column("rest", Text, nullable=False),
)
