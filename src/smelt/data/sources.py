"""Public dialogue sets as conversations of ours: tool calls, extraction, labels. The files stay outside.

Every source is a value: its file, its licence, and how a record becomes an example. Only train parts are read.
A value is used only where it stands word for word in the text, so that copying is always right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, cast

from smelt.core.messages import Message, ResponseFormat, Tool
from smelt.data.dialogues import sgd_dialogues, t0_reading, taskmaster
from smelt.data.example import Example, compact_json
from smelt.data.source import Part, Record, Source, call_of, object_of, ordered, read_jsonl, shuffled, words_of

__all__ = ["SOURCES", "Source", "read_jsonl", "words_of"]


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
        schema = object_of(rng, sorted(values), more)
        in_order = ordered(schema, values)
        if rng.random() < 0.5:
            wanted = ResponseFormat(kind="json_schema", name=words_of(intent).replace(" ", "_"), schema=schema)
            messages = (Message.of("user", text), Message.of("assistant", compact_json(in_order)))
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
                    parameters=schema if name == intent else object_of(rng, rng.sample(sorted(slots[name]), k=2), []),
                )
                for name in shuffled(rng, names)
            ]
            yield call_of(text, tools, intent, in_order, "snips")


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
    names = shuffled(rng, [*needed, *rng.sample(others, k=min(len(others), rng.choice([0, 0, 1, 2])))])
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
            yield call_of(text, shuffled(rng, tools), active, ordered(dict(tool.parameters), values), "sgd")


def _labels(text_key: str, label_key: str) -> Any:
    def convert(records: list[Record], rng: random.Random) -> Iterator[Example]:
        labels = sorted({r[label_key] for r in records})
        for row in records:
            text, label = row[text_key].strip(), row[label_key]
            if len(text) > 160:
                continue
            names = shuffled(rng, [label, *rng.sample([n for n in labels if n != label], k=rng.randint(1, 4))])
            if rng.random() < 0.5:
                key = rng.choice(["intent", "category", "label", "topic"])
                schema = {"type": "object", "properties": {key: {"type": "string", "enum": names}}, "required": [key]}
                wanted = ResponseFormat(kind="json_schema", name="answer", schema=schema)
                messages = (Message.of("user", text), Message.of("assistant", compact_json({key: label})))
                yield Example(skill="labels", language="en", messages=messages, response_format=wanted)
            else:
                empty = {"type": "object", "properties": {}}
                tools = [Tool(name=n.replace("?", ""), parameters=empty) for n in names]
                yield call_of(text, tools, label.replace("?", ""), {}, "labels")

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
                for n in shuffled(rng, names)
            ]
            yield call_of(turn["content"], offered, tools[domain], values, "crosswoz", "zh")


def _multidogo(records: list[Record], rng: random.Random) -> Iterator[Example]:
    """Customers' turns, one or a whole conversation's: their slots as fields, absent ones null; or their intent."""
    talks: dict[str, list[Record]] = {}
    slots: dict[str, set[str]] = {}
    intents: dict[str, set[str]] = {}
    for record in records:
        talks.setdefault(record["conversationId"], []).append(record)
        domain = record["_file"].split("/")[1]
        slots.setdefault(domain, set()).update(set(record["slot-labels"].split()) - {"O"})
        intents.setdefault(domain, set()).update(set(_plain_intents(record)))
    for turns in talks.values():
        domain = turns[0]["_file"].split("/")[1]
        for turn in rng.sample(turns, k=min(2, len(turns))):
            if named := _plain_intents(turn):
                yield _choice(rng, turn["utterance"], named[0], sorted(intents[domain]))
        told = [turn for turn in turns if turn["slot-labels"].strip("O ")]
        chosen = told if rng.random() < 0.4 else told[:1]
        text = "\n".join(turn["utterance"] for turn in chosen)
        values = {name: value for turn in chosen for name, value in _slot_values(turn).items()}
        if values and len(text) <= 500:
            more = rng.sample(
                sorted(slots[domain] - set(values)), k=min(rng.choice([0, 0, 1, 2]), len(slots[domain] - set(values)))
            )
            yield _filled(rng, text, values, more)


def _plain_intents(record: Record) -> list[str]:
    """The intents that say what is wanted; greetings, thanks and the like do not."""
    said = record["intent"].replace("<div>", " ").split()
    return said if len(said) == 1 and said[0] not in _MANNERS else []


_MANNERS = {"contentonly", "confirmation", "rejection", "thankyou", "openinggreeting", "closinggreeting", "outofdomain"}


def _slot_values(record: Record) -> Record:
    """Runs of words with the same label, as they stand in the text; the last of a name counts."""
    words, labels = record["utterance"].split(), record["slot-labels"].split()
    values: Record = {}
    if len(words) != len(labels):
        return values
    start = 0
    for i in range(1, len(words) + 1):
        if i == len(words) or labels[i] != labels[start]:
            if labels[start] != "O" and (value := " ".join(words[start:i])) in record["utterance"]:
                values[labels[start]] = value
            start = i
    return values


def _filled(rng: random.Random, text: str, values: Record, absent: list[str]) -> Example:
    names = shuffled(rng, [*values, *absent])
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {n: {"type": "string"} if n in values else {"type": ["string", "null"]} for n in names},
        "required": names,
    }
    answer = compact_json({name: values.get(name) for name in names})
    wanted = ResponseFormat(kind="json_schema", name="answer", schema=schema)
    messages = (Message.of("user", text), Message.of("assistant", answer))
    return Example(skill="multidogo", language="en", messages=messages, response_format=wanted)


def _choice(rng: random.Random, text: str, label: str, labels: list[str]) -> Example:
    others = [name for name in labels if name != label]
    names = shuffled(rng, [label, *rng.sample(others, k=min(len(others), rng.randint(1, 4)))])
    schema = {"type": "object", "properties": {"intent": {"type": "string", "enum": names}}, "required": ["intent"]}
    wanted = ResponseFormat(kind="json_schema", name="answer", schema=schema)
    messages = (Message.of("user", text), Message.of("assistant", compact_json({"intent": label})))
    return Example(skill="multidogo", language="en", messages=messages, response_format=wanted)


def _split(_: int, record: Record) -> Part:
    """By the record's own word; SNIPS calls its test "validate"."""
    said = {"validate": "test"}.get(record["split"], record["split"])
    return cast(Part, said) if said in ("train", "test") else "other"


def _banking(i: int, record: Record) -> Part:
    return _split(i, record) if record.get("set") == "banking77" else "other"


def _dogo_part(_: int, record: Record) -> Part:
    """By the file: one of the two annotations of the same conversations is enough."""
    level, _domain, name = record["_file"].split("/")
    if level != "splits_annotated_at_turn_level":
        return "other"
    return cast(Part, {"train.tsv": "train", "test.tsv": "test"}.get(name, "other"))


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
    Source(
        name="sgd_dialogue",
        file="dialogue/sgd_train.jsonl.zst",
        origin="google-research-datasets/dstc8-schema-guided-dialogue",
        licence="CC BY-SA 4.0",
        convert=sgd_dialogues,
        part=lambda i, record: "train",
        has_test=False,
    ),
    Source(
        name="taskmaster4",
        file="dialogue/taskmaster4.jsonl.zst",
        origin="google-research-datasets/Taskmaster",
        licence="CC BY 4.0",
        convert=taskmaster,
        part=lambda i, record: "train",
        has_test=False,
    ),
    Source(
        name="multidogo",
        file="dialogue/multidogo.jsonl.zst",
        origin="awslabs/multi-domain-goal-oriented-dialogues-dataset",
        licence="CDLA-Permissive-1.0",
        convert=_multidogo,
        part=_dogo_part,
    ),
    Source(
        name="t0_reading",
        file="dialogue/t0_open_subset.jsonl.zst",
        origin="yizhongw/self-instruct (P3/T0: AdversarialQA, Quoref, DuoRC, ROPES, QuaRTz)",
        licence="Apache-2.0 and CC BY 4.0, CC BY-SA 3.0 and 4.0, MIT of the sets",
        convert=t0_reading,
        part=lambda i, record: "train",
        has_test=False,
    ),
)
