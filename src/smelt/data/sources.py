"""Public dialogue sets as conversations of ours: tool calls, extraction, labels. The files stay outside.

Every source is a value: its file, its licence, and how a record becomes an example. Only train parts are read.
A value is used only where it stands word for word in the text, so that copying is always right.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from smelt.core.errors import SmeltError
from smelt.core.messages import Message, ResponseFormat, Tool
from smelt.data.example import Example, call_message, compact_json

Record = dict[str, Any]
Part = Literal["train", "test", "other"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of JSON lines (zstd) and how to learn from it.

    `part` says whether record number i is for training or for testing; `test_file` holds the test where it is apart.
    """

    name: str
    file: str
    origin: str
    licence: str
    convert: Callable[[list[Record], random.Random], Iterator[Example]]
    part: Callable[[int, Record], Part]
    test_file: str | None = None

    def available(self, folder: Path) -> bool:
        """Whether the file is there."""
        return (folder / self.file).is_file()

    def examples(self, folder: Path, seed: int, part: Part = "train") -> list[Example]:
        """All examples of a part, in an order decided by the file and `seed`. Never train on "test"."""
        file = self.test_file if part == "test" and self.test_file else self.file
        records = [
            record
            for i, record in enumerate(read_jsonl(folder / file))
            if self.part(i, record) == part or file == self.test_file
        ]
        return list(self.convert(records, random.Random(f"{self.name}/{seed}")))

    def sha256(self, folder: Path) -> str:
        """Of the file as it lies there."""
        return hashlib.sha256((folder / self.file).read_bytes()).hexdigest()


def read_jsonl(path: Path) -> list[Record]:
    """Records of a zstd-compressed file of JSON lines."""
    import zstandard

    if not path.is_file():
        raise SmeltError(f"no data file {path.name}")
    with path.open("rb") as raw:
        text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(raw), encoding="utf-8")
        return [json.loads(line) for line in text if line.strip()]


def words_of(identifier: str) -> str:
    """`GetWeather`, `book_flight`, `cityOfEvent` as lower-case words."""
    spaced = "".join(" " + char.lower() if char.isupper() else char for char in identifier)
    return " ".join(spaced.replace("_", " ").replace("-", " ").split())


def _call(text: str, tools: list[Tool], name: str, arguments: Record, skill: str, language: str = "en") -> Example:
    messages = (Message.of("user", text), call_message(name, compact_json(arguments)))
    return Example(skill=skill, language=language, messages=messages, tools=tuple(tools))


def _shuffled(rng: random.Random, items: list[Any]) -> list[Any]:
    found = list(items)
    rng.shuffle(found)
    return found


def _object(rng: random.Random, needed: list[str], more: list[str]) -> dict[str, Any]:
    """An object schema of string properties; `more` are optional ones the text says nothing of."""
    extra = rng.sample(more, k=min(len(more), rng.choice([0, 0, 1, 2])))
    names = _shuffled(rng, [*needed, *extra])
    return {"type": "object", "properties": {n: {"type": "string"} for n in names}, "required": list(needed)}


def _ordered(schema: Record, values: Record) -> Record:
    return {name: values[name] for name in schema["properties"] if name in values}


def _snips(records: list[Record], rng: random.Random) -> Iterator[Example]:
    slots: dict[str, set[str]] = {}
    rows = []
    for record in records:
        text = "".join(piece["text"] for piece in record["data"]).strip()
        values: Record = {}
        for piece in record["data"]:
            if "entity" in piece:
                values.setdefault(piece["entity"], piece["text"].strip())
        slots.setdefault(record["intent"], set()).update(values)
        rows.append((record["intent"], text, values))
    for intent, text, values in rows:
        if not values or len(text) > 200:
            continue
        more = sorted(slots[intent] - set(values))
        schema = _object(rng, sorted(values), more)
        ordered = _ordered(schema, values)
        if rng.random() < 0.5:
            wanted = ResponseFormat(kind="json_schema", name=words_of(intent).replace(" ", "_"), schema=schema)
            messages = (Message.of("user", text), Message.of("assistant", compact_json(ordered)))
            schema["required"] = list(schema["properties"])
            for name in set(schema["properties"]) - set(values):
                schema["properties"][name] = {"type": ["string", "null"]}
            full = {name: values.get(name) for name in schema["properties"]}
            messages = (Message.of("user", text), Message.of("assistant", compact_json(full)))
            yield Example(skill="snips", language="en", messages=messages, response_format=wanted)
        else:
            names = [intent, *rng.sample(sorted(set(slots) - {intent}), k=rng.randint(0, 2))]
            tools = [
                Tool(
                    name=name,
                    description=words_of(name).capitalize() if rng.random() < 0.6 else "",
                    parameters=schema if name == intent else _object(rng, rng.sample(sorted(slots[name]), k=2), []),
                )
                for name in _shuffled(rng, names)
            ]
            yield _call(text, tools, intent, ordered, "snips")


def _sgd_tools(records: list[Record]) -> dict[str, dict[str, Record]]:
    """service -> intent -> {description, slots: {name: description}}."""
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        if "service_name" not in record:
            continue
        about = {slot["name"]: slot["description"] for slot in record["slots"]}
        found[record["service_name"]] = {
            intent["name"]: {
                "description": intent["description"],
                "slots": {n: about[n] for n in [*intent["required_slots"], *intent["optional_slots"]] if n in about},
            }
            for intent in record["intents"]
        }
    return found


def _sgd_tool(rng: random.Random, name: str, intent: Record, needed: list[str]) -> Tool:
    others = [slot for slot in intent["slots"] if slot not in needed]
    names = _shuffled(rng, [*needed, *rng.sample(others, k=min(len(others), rng.choice([0, 0, 1, 2])))])
    described = rng.random() < 0.4
    properties = {
        slot: {"type": "string", "description": intent["slots"][slot]} if described else {"type": "string"}
        for slot in names
    }
    schema = {"type": "object", "properties": properties, "required": needed}
    return Tool(name=name, description=intent["description"] if rng.random() < 0.8 else "", parameters=schema)


def _sgd(records: list[Record], rng: random.Random) -> Iterator[Example]:
    services = _sgd_tools(records)
    for record in records:
        for turn in record.get("turns", ()):
            frames = turn["frames"]
            if turn["speaker"] != "USER" or len(frames) != 1 or not frames[0]["slots"]:
                continue
            frame, text = frames[0], turn["utterance"]
            service, active = frame["service"], frame["state"]["active_intent"]
            intent = services.get(service, {}).get(active)
            values = {s["slot"]: text[s["start"] : s["exclusive_end"]] for s in frame["slots"]}
            if intent is None or not values or not set(values) <= set(intent["slots"]) or len(text) > 200:
                continue
            tool = _sgd_tool(rng, active, intent, list(values))
            tools = [tool]
            for _ in range(rng.choice([0, 1, 1, 2, 3])):
                other = rng.choice(sorted(services))
                name = rng.choice(sorted(services[other]))
                if name not in {t.name for t in tools} and other.split("_")[0] != service.split("_")[0]:
                    needed = list(services[other][name]["slots"])[:2]
                    tools.append(_sgd_tool(rng, name, services[other][name], needed))
            yield _call(text, _shuffled(rng, tools), active, _ordered(dict(tool.parameters), values), "sgd")


def _labels(text_key: str, label_key: str) -> Any:
    def convert(records: list[Record], rng: random.Random) -> Iterator[Example]:
        labels = sorted({r[label_key] for r in records})
        for row in records:
            text, label = row[text_key].strip(), row[label_key]
            if len(text) > 160:
                continue
            names = _shuffled(rng, [label, *rng.sample([n for n in labels if n != label], k=rng.randint(1, 4))])
            if rng.random() < 0.5:
                key = rng.choice(["intent", "category", "label", "topic"])
                schema = {"type": "object", "properties": {key: {"type": "string", "enum": names}}, "required": [key]}
                wanted = ResponseFormat(kind="json_schema", name="answer", schema=schema)
                messages = (Message.of("user", text), Message.of("assistant", compact_json({key: label})))
                yield Example(skill="labels", language="en", messages=messages, response_format=wanted)
            else:
                empty = {"type": "object", "properties": {}}
                tools = [Tool(name=n.replace("?", ""), parameters=empty) for n in names]
                yield _call(text, tools, label.replace("?", ""), {}, "labels")

    return convert


def _crosswoz(records: list[Record], rng: random.Random) -> Iterator[Example]:
    tools = {
        "餐馆": "find_restaurant",
        "酒店": "find_hotel",
        "景点": "find_attraction",
        "地铁": "find_metro",
        "出租": "find_taxi",
    }
    for record in records:
        for turn in record["messages"]:
            told = [act for act in turn["dialog_act"] if act[0] == "Inform" and act[3] and act[3] in turn["content"]]
            if turn["role"] != "usr" or not told or len({act[1] for act in told}) != 1 or told[0][1] not in tools:
                continue
            values = {act[2].replace("-", "_"): act[3] for act in told}
            schema = {
                "type": "object",
                "properties": {name: {"type": "string"} for name in values},
                "required": list(values),
            }
            domain = told[0][1]
            names = [domain, *rng.sample(sorted(set(tools) - {domain}), k=rng.randint(0, 2))]
            offered = [
                Tool(name=tools[n], description=f"查找{n}", parameters=schema if n == domain else {"type": "object"})
                for n in _shuffled(rng, names)
            ]
            yield _call(turn["content"], offered, tools[domain], values, "crosswoz", "zh")


def _split(_: int, record: Record) -> Part:
    """By the record's own word; SNIPS calls its test "validate"."""
    said = {"validate": "test"}.get(record["split"], record["split"])
    return cast(Part, said) if said in ("train", "test") else "other"


def _banking(i: int, record: Record) -> Part:
    return _split(i, record) if record.get("set") == "banking77" else "other"


SOURCES: tuple[Source, ...] = (
    Source(
        name="snips",
        file="dialogue/snips.jsonl.zst",
        origin="sonos/nlu-benchmark",
        licence="CC0 1.0",
        convert=_snips,
        part=_split,
    ),
    Source(
        name="sgd",
        file="dialogue/sgd_train.jsonl.zst",
        origin="google-research-datasets/dstc8-schema-guided-dialogue",
        licence="CC BY-SA 4.0",
        convert=_sgd,
        part=lambda i, record: "train",
        test_file="dialogue/sgd_dev.jsonl.zst",
    ),
    Source(
        name="clinc150",
        file="dialogue/clinc150.jsonl.zst",
        origin="clinc/oos-eval",
        licence="CC BY 3.0",
        convert=_labels("text", "intent"),
        part=_split,
    ),
    Source(
        name="banking77",
        file="dialogue/banking77_restaurant8k.jsonl.zst",
        origin="PolyAI-LDN/task-specific-datasets",
        licence="CC BY 4.0",
        convert=_labels("text", "category"),
        part=_banking,
    ),
    Source(
        name="crosswoz",
        file="dialogue/crosswoz_val_test.jsonl.zst",
        origin="thu-coai/CrossWOZ",
        licence="Apache-2.0",
        convert=_crosswoz,
        part=lambda i, record: "train" if i < 800 else "test",
    ),
)
