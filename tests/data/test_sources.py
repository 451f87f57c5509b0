"""Public sets as conversations: small stand-ins of every format, and the real files where they are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from smelt.cli.suites import public_cases
from smelt.core.errors import SmeltError
from smelt.data.example import Example
from smelt.data.sources import SOURCES, read_jsonl, words_of

SNIPS = [
    {"intent": intent, "split": split, "data": [{"text": "Play "}, {"text": "Yesterday", "entity": "track"}]}
    for intent in ("PlayMusic", "AddToPlaylist")
    for split in ("train", "validate")
] + [
    {"intent": i, "split": "train", "data": [{"text": "x", "entity": "a"}, {"text": "y", "entity": "b"}]}
    for i in ("PlayMusic", "AddToPlaylist", "RateBook")
]
SGD: list[dict[str, Any]] = [
    {
        "service_name": "Music_1",
        "slots": [{"name": "song", "description": "title of the song"}],
        "intents": [{"name": "PlaySong", "description": "Play it", "required_slots": ["song"], "optional_slots": {}}],
    },
    {
        "service_name": "Bank_1",
        "slots": [{"name": "amount", "description": "how much"}],
        "intents": [{"name": "Pay", "description": "Pay it", "required_slots": ["amount"], "optional_slots": {}}],
    },
    {
        "turns": [
            {
                "speaker": "USER",
                "utterance": "Play Yesterday now",
                "frames": [
                    {
                        "service": "Music_1",
                        "slots": [{"slot": "song", "start": 5, "exclusive_end": 14}],
                        "state": {"active_intent": "PlaySong"},
                    }
                ],
            }
        ]
    },
]
LABELS = [{"text": f"text {i}", "intent": f"intent_{i % 7}", "split": "train"} for i in range(30)]
CROSSWOZ = [
    {
        "messages": [
            {"role": "usr", "content": "找4.5分以上的餐馆", "dialog_act": [["Inform", "餐馆", "评分", "4.5分以上"]]},
            {"role": "sys", "content": "好的", "dialog_act": [["Inform", "餐馆", "名称", "好"]]},
        ]
    }
]
RECORDS = {
    "snips": SNIPS,
    "sgd": SGD,
    "clinc150": [*LABELS, {"text": "secret", "intent": "x", "split": "test"}],
    "banking77": [{**r, "category": r["intent"], "set": "banking77"} for r in LABELS],
    "crosswoz": CROSSWOZ,
}


def check(example: Example) -> None:
    said = example.messages[0].text
    schema = example.response_format.schema
    for call in example.answer.tool_calls:
        schema = next(tool.parameters for tool in example.tools if tool.name == call.name)
    answer = json.loads(example.answer.tool_calls[0].arguments if example.answer.tool_calls else example.answer.text)
    assert schema is not None
    jsonschema.validate(answer, schema)
    for name, value in answer.items():
        offered = schema["properties"][name].get("enum", [])
        assert value is None or value in offered or value in said
    assert len({tool.name for tool in example.tools}) == len(example.tools)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_records_become_valid_conversations(source: Any) -> None:
    records = [record for i, record in enumerate(RECORDS[source.name]) if source.part(i, record) == "train"]
    found = list(source.convert(records, random.Random(0)))
    assert found
    for example in found:
        check(example)
    assert all("secret" not in example.messages[0].text for example in found), "test parts are never read"


def _real(source: Any) -> Any:
    slow = source.name in ("sgd", "crosswoz")
    return pytest.param(source, id=source.name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("source", [_real(source) for source in SOURCES])
def test_real_files_become_valid_conversations(source: Any, shared_data: Path) -> None:
    found = source.examples(shared_data, 0)
    assert len(found) > 1000
    for example in found[::97]:
        check(example)


def test_no_public_question_was_learned(shared_data: Path) -> None:
    """banking77's own test part repeats some texts of its train part."""
    source = next(source for source in SOURCES if source.name == "banking77")
    asked = {case.request.messages[0].text for case in public_cases(source, shared_data)}
    learned = {example.messages[0].text for example in source.examples(shared_data, 0)}
    assert len(asked) > 1000
    assert not asked & learned


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SmeltError, match="nothing.jsonl"):
        read_jsonl(tmp_path / "nothing.jsonl")


def test_words_of_identifiers() -> None:
    assert words_of("GetWeather") == words_of("get_weather") == words_of("getWeather") == "get weather"
