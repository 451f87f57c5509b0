"""Stored chat completions and fine-tuned models, with the official client against a live server."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from smelt.store.database import Database
from smelt.store.location import Location
from smelt.store.models import FineTune, FineTunes
from tests.server.live import NEVER_END, Server, running

KEYS = ("sk-stored-first", "sk-stored-second")
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ASKED: Any = {"model": "gpt-4o-mini", "messages": HELLO, "max_tokens": 4, "seed": 1}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tiny_folder, tmp_path_factory.mktemp("stored"), api_keys=",".join(KEYS)) as server:
        yield server


def _client(server: Server, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """A client of the first tenant, which owns nothing yet."""
    with _client(server, KEYS[0]) as client:
        for stored in client.chat.completions.list():
            client.chat.completions.delete(stored.id)
        yield client


def test_a_stored_answer_is_given_back_as_it_was(client: OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, store=True, metadata={"team": "a", "run": "1"}, temperature=0.5)
    stored = client.chat.completions.retrieve(answer.id)
    shown: Any = stored.model_dump()
    for name in ("id", "object", "created", "model", "system_fingerprint", "choices", "usage", "service_tier"):
        assert shown[name] == answer.model_dump()[name]
    assert stored.metadata == {"team": "a", "run": "1"}
    assert (shown["temperature"], shown["seed"], shown["top_p"], shown["tools"]) == (0.5, 1, 1.0, None)
    assert shown["request_id"] == answer._request_id


def test_a_stream_is_stored_whole(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        **ASKED | {"max_tokens": 20}, store=True, stream=True, logprobs=True, top_logprobs=1
    )
    chunks = list(stream)
    stored = client.chat.completions.retrieve(chunks[0].id)
    (choice,) = stored.choices
    assert choice.message.content == "".join(c.choices[0].delta.content or "" for c in chunks)
    assert choice.finish_reason == chunks[-1].choices[0].finish_reason
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or ()]
    assert choice.logprobs and choice.logprobs.content == streamed
    assert stored.usage and stored.usage.completion_tokens == 20 or choice.finish_reason == "stop"


def test_calls_are_stored(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        **ASKED, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, store=True
    )
    stored = client.chat.completions.retrieve(answer.id)
    assert stored.choices == answer.choices and answer.choices[0].message.tool_calls
    assert stored.model_dump()["tools"] == [TOOL]


@pytest.mark.parametrize("fields", [{}, {"store": False}])
def test_nothing_else_is_stored(client: OpenAI, fields: Any) -> None:
    answer = client.chat.completions.create(**ASKED, **fields)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(answer.id)
    assert client.chat.completions.list().data == []


def test_a_stream_left_early_is_not_stored(client: OpenAI, server: Server) -> None:
    """Thirty-two answers take the tiny model seconds; one alone was sometimes complete before the client had left."""
    stream = client.chat.completions.create(
        **ASKED | {"max_tokens": 800, "logit_bias": NEVER_END, "n": 32}, store=True, stream=True
    )
    next(iter(stream))
    stream.close()
    server.wait_idle(5)
    assert client.chat.completions.list().data == []


def test_list_update_delete(client: OpenAI) -> None:
    made = [
        client.chat.completions.create(**ASKED | {"model": model}, store=True, metadata={"i": str(i % 2)}).id
        for i, model in enumerate(["gpt-4o-mini", "tiny", "tiny", "gpt-4o-mini", "tiny"])
    ]
    completions = client.chat.completions
    assert [c.id for c in completions.list(limit=2)] == made  # the client follows `after` by itself
    assert [c.id for c in completions.list(order="desc", limit=3)] == made[::-1]
    assert [c.id for c in completions.list(model="tiny")] == [made[1], made[2], made[4]]
    assert [c.id for c in completions.list(metadata={"i": "1"})] == [made[1], made[3]]
    assert [c.id for c in completions.list(metadata={"i": "0"}, model="tiny", limit=1)] == [made[2], made[4]]
    changed = completions.update(made[0], metadata={"i": "1", "more": "ü\n"})
    assert changed.metadata == completions.retrieve(made[0]).metadata == {"i": "1", "more": "ü\n"}
    assert completions.update(made[1], metadata=None).metadata == {}
    assert [c.id for c in completions.list(metadata={"i": "1"})] == [made[0], made[3]]
    gone = completions.delete(made[2])
    assert (gone.id, gone.deleted, gone.object) == (made[2], True, "chat.completion.deleted")
    assert [c.id for c in completions.list(after=made[2])] == made[3:], "a place in the list outlives its object"
    for request in (completions.retrieve, completions.delete, lambda i: completions.update(i, metadata={})):
        with pytest.raises(openai.NotFoundError):
            request(made[2])


def test_everything_can_be_deleted_while_it_is_listed(client: OpenAI) -> None:
    for _ in range(5):
        client.chat.completions.create(**ASKED, store=True)
    assert len([client.chat.completions.delete(c.id) for c in client.chat.completions.list(limit=2)]) == 5
    assert client.chat.completions.list().data == []


def test_messages(client: OpenAI) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "in"}, {"type": "text", "text": " parts"}]
    messages: Any = [
        {"role": "developer", "content": "short", "name": "ada"},
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "21"},
    ]
    made = client.chat.completions.create(**ASKED | {"messages": messages}, store=True).id
    listed: list[Any] = [m.model_dump(exclude_unset=True) for m in client.chat.completions.messages.list(made, limit=3)]
    assert [m["id"] for m in listed] == [f"{made}-{i}" for i in range(4)]
    assert [m["role"] for m in listed] == [m["role"] for m in messages]
    assert [m["content"] for m in listed] == ["short", None, None, "21"]
    assert [m["content_parts"] for m in listed] == [None, parts, None, None]
    assert (listed[0]["name"], listed[2]["tool_calls"], listed[3]["tool_call_id"]) == ("ada", [call], "c")
    page = client.chat.completions.messages.list(made, order="desc", after=f"{made}-2")
    assert [m.id for m in page] == [f"{made}-1", f"{made}-0"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.messages.list(made, after="another-1")


def test_a_tenant_sees_only_its_own(client: OpenAI, server: Server) -> None:
    mine = client.chat.completions.create(**ASKED, store=True, metadata={"secret": "x"}).id
    with _client(server, KEYS[1]) as other:
        completions = other.chat.completions
        assert completions.list().data == [] == completions.list(metadata={"secret": "x"}).data
        attempts: list[Callable[[], Any]] = [
            lambda: completions.retrieve(mine),
            lambda: completions.update(mine, metadata={"secret": "y"}),
            lambda: completions.delete(mine),
            lambda: completions.messages.list(mine),
        ]
        for attempt in attempts:
            with pytest.raises(openai.NotFoundError) as refused:
                attempt()
            assert refused.value.body == {
                "message": f"No chat completion found with id '{mine}'.",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
    assert client.chat.completions.retrieve(mine).metadata == {"secret": "x"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"metadata": {"a": "b"}}, "metadata", None),
        ({"store": True, "metadata": {str(i): "" for i in range(17)}}, "metadata", "object_above_max_properties"),
        ({"store": True, "metadata": {"k" * 65: ""}}, "metadata", "property_name_above_max_length"),
        ({"store": True, "metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length"),
        ({"store": True, "metadata": {"k": 1}}, "metadata.k", "invalid_type"),
        ({"store": True, "metadata": ["k"]}, "metadata", "invalid_type"),
        ({"store": 1}, "store", "invalid_type"),
    ],
)
def test_metadata_has_openais_limits(client: OpenAI, fields: Any, param: str, code: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASKED, extra_body=fields)
    assert (refused.value.param, refused.value.code) == (param, code)
    most = {"k" * 62 + f"{i:02}": "v" * 512 for i in range(16)}
    assert client.chat.completions.create(**ASKED, store=True, metadata=most).metadata == most


@pytest.mark.parametrize(
    ("query", "status", "param", "code"),
    [
        ("limit=0", 400, "limit", "integer_below_min_value"),
        ("limit=101", 400, "limit", "integer_above_max_value"),
        ("limit=ten", 400, "limit", "invalid_type"),
        ("order=up", 400, "order", "invalid_value"),
        ("before=x", 400, "before", "unknown_parameter"),
        ("limit=1&limit=2", 400, "limit", None),
        ("metadata=x", 400, "metadata", "invalid_type"),
        ("metadata[k]=1&metadata[k]=2", 400, "metadata[k]", None),
        (f"metadata[{'k' * 65}]=1", 400, "metadata", "property_name_above_max_length"),
        ("after=nothing", 404, "after", None),
    ],
)
def test_bad_queries(client: OpenAI, server: Server, query: str, status: int, param: str, code: str | None) -> None:
    client.chat.completions.create(**ASKED, store=True)
    reply = server.request("GET", f"/v1/chat/completions?{query}")
    assert (reply.status, reply.error["param"], reply.error["code"]) == (status, param, code)


def test_bad_updates(client: OpenAI, server: Server) -> None:
    made = client.chat.completions.create(**ASKED, store=True, metadata={"a": "b"}).id
    for body, code in [
        ({}, "missing_required_parameter"),
        ({"metadata": {}, "model": "x"}, "unknown_parameter"),
        ({"metadata": {"a": 1}}, "invalid_type"),
        (b"{", "invalid_json"),
    ]:
        reply = server.post(f"/v1/chat/completions/{made}", body)
        assert (reply.status, reply.error["code"]) == (400, code)
    assert client.chat.completions.retrieve(made).metadata == {"a": "b"}


def test_writers_and_readers_at_once(client: OpenAI, server: Server) -> None:
    """Six threads, two tenants: each gets its own rows, all of them, and never half of one."""
    made: dict[str, list[str]] = {key: [] for key in KEYS}
    failures: list[BaseException] = []

    def work(key: str) -> None:
        try:
            with _client(server, key) as own:
                for i in range(3):
                    answer = own.chat.completions.create(**ASKED, store=True, metadata={"i": str(i)})
                    made[key].append(answer.id)
                    assert own.chat.completions.retrieve(answer.id).choices == answer.choices
                    own.chat.completions.update(answer.id, metadata={"i": "9"})
                    assert all(c.choices and c.metadata for c in own.chat.completions.list(order="desc").data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(key,)) for key in KEYS for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    for key in KEYS:
        with _client(server, key) as own:
            assert sorted(c.id for c in own.chat.completions.list(limit=7, metadata={"i": "9"})) == sorted(made[key])
            for completion_id in made[key]:
                own.chat.completions.delete(completion_id)


def test_fine_tuned_models_are_their_owners_to_delete(client: OpenAI, server: Server) -> None:
    """A model made elsewhere is in the store; a server lists what it can serve, which that is not."""
    name = "ft:gpt-4o-mini:acemeco:suffix:abc123"
    first, second = (server.request("GET", "/v1/models", headers={"Authorization": f"Bearer {k}"}) for k in KEYS)
    assert first.body == second.body and b"ft:" not in first.body
    client.chat.completions.create(**ASKED, store=True)  # makes the store
    with closing(Database.open(Location(path=server.log.parent / "store.db"))) as database:
        tenant = [line for line in server.log.read_text().splitlines() if '"key"' in line][0].partition('"key": "')[2][
            :16
        ]
        FineTunes(database).add(FineTune(id=name, tenant=tenant, created_ns=time.time_ns(), base_model="tiny"))
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    with _client(server, KEYS[1]) as other, pytest.raises(openai.NotFoundError) as unknown:
        other.models.delete(name)
    assert unknown.value.code == "model_not_found"
    gone = client.models.delete(name)
    assert (gone.id, gone.deleted, gone.object) == (name, True, "model")
    with pytest.raises(openai.NotFoundError):
        client.models.delete(name)


@pytest.mark.parametrize("name", ["tiny", "gpt-4o-mini"])
def test_a_base_model_cannot_be_deleted(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        client.models.delete(name)
    assert name in str(refused.value)
    client.models.retrieve(name)


def test_no_file_before_the_first_stored_answer(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "data/smelt/store.db"
    with running(tiny_folder, tmp_path, store=str(path)) as server, _client(server) as client:
        client.chat.completions.create(**ASKED)
        assert client.chat.completions.list().data == []
        for request in (client.chat.completions.retrieve, client.chat.completions.delete, client.models.delete):
            with pytest.raises(openai.NotFoundError):
                request("chatcmpl-1")
        assert not path.parent.exists()
        assert b"sqlalchemy" not in Path(f"/proc/{server.process.pid}/maps").read_bytes()
        client.chat.completions.create(**ASKED, store=True)
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_store(tiny_folder: Path, tmp_path: Path) -> None:
    """`store: true` cannot be honoured and is refused; what is stored is nothing."""
    with running(tiny_folder, tmp_path, store="none") as server, _client(server) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**ASKED, store=True)
        assert (refused.value.param, refused.value.code) == ("store", "unsupported_value")
        client.chat.completions.create(**ASKED, store=False)
        assert client.chat.completions.list().data == []
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.retrieve("chatcmpl-1")


def test_an_answer_outlives_a_store_that_fails(tiny_folder: Path, tmp_path: Path) -> None:
    """A full store: the answers come, whole and streamed; the failures are logged and counted; room heals it."""
    with running(tiny_folder, tmp_path, store_max_mib="1") as server, _client(server) as client:
        long: Any = ASKED | {"messages": [{"role": "user", "content": "a" * 600}]}
        tools: Any = [{"type": "function", "function": {"name": "f", "description": " " * 250_000}}]
        made = [
            client.chat.completions.create(**long, tools=tools, tool_choice="none", store=True).id for _ in range(6)
        ]
        chunks = list(client.chat.completions.create(**long, tools=tools, store=True, stream=True))
        assert chunks[-1].choices[0].finish_reason
        stored = [c.id for c in client.chat.completions.list()]
        assert stored == made[: len(stored)] and 0 < len(stored) < 6
        counted = server.metrics()
        assert counted['smelt_stored_answers_total{outcome="stored"}'] == len(stored)
        assert counted['smelt_stored_answers_total{outcome="full"}'] == 7 - len(stored)
        assert "database or disk is full" in server.log.read_text()
        client.chat.completions.delete(stored[0])
        made.append(client.chat.completions.create(**long, tools=tools, tool_choice="none", store=True).id)
        assert client.chat.completions.retrieve(made[-1]).id == made[-1]


def test_a_store_that_cannot_be_opened(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with running(tiny_folder, tmp_path, store=str(tmp_path / "file/store.db")) as server, _client(server) as client:
        assert client.chat.completions.create(**ASKED, store=True).choices
        assert server.metrics()['smelt_stored_answers_total{outcome="readonly"}'] == 1
    (tmp_path / "store.db").write_text("this is no database, " * 100)
    with running(tiny_folder, tmp_path) as server, _client(server) as client:
        assert client.chat.completions.create(**ASKED, store=True).choices
        assert server.metrics()['smelt_stored_answers_total{outcome="failed"}'] == 1
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.list()
        assert (failed.value.status_code, failed.value.code) == (503, "store_unavailable")
        assert client.chat.completions.create(**ASKED).choices


def test_what_was_answered_survives_a_kill(tiny_folder: Path, tmp_path: Path) -> None:
    """SIGKILL while answers are being stored: each one the client has is there, whole, when a server is back."""
    told: list[str] = []
    with running(tiny_folder, tmp_path) as server:

        def write() -> None:
            with _client(server) as client:
                while True:
                    try:
                        told.append(client.chat.completions.create(**ASKED, store=True, metadata={"k": "v"}).id)
                    except openai.APIConnectionError:
                        return

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(told) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(30)
    assert len(told) >= 20
    with running(tiny_folder, tmp_path) as server, _client(server) as client:
        found = {c.id: c for c in client.chat.completions.list(limit=100)}
        assert set(told) <= set(found)
        for completion_id, stored in found.items():
            assert stored.metadata == {"k": "v"} and stored.choices[0].finish_reason
            assert len(client.chat.completions.messages.list(completion_id).data) == 1
