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
SGD_TALK: list[dict[str, Any]] = [
    {
        "service_name": "Bank_1",
        "slots": [{"name": "amount", "description": "how much"}, {"name": "to", "description": "whom"}],
        "intents": [
            {
                "name": "Pay",
                "description": "Pay it",
                "required_slots": ["amount"],
                "optional_slots": {"to": "savings"},
            }
        ],
    },
    {
        "services": ["Bank_1"],
        "turns": [
            {"speaker": "USER", "utterance": "I want to pay", "frames": []},
            {"speaker": "SYSTEM", "utterance": "How much?", "frames": [{"actions": [], "service": "Bank_1"}]},
            {"speaker": "USER", "utterance": "260 please", "frames": []},
            {
                "speaker": "SYSTEM",
                "utterance": "It is done.",
                "frames": [
                    {
                        "actions": [{"slot": "amount"}],
                        "service_call": {"method": "Pay", "parameters": {"amount": "260", "to": "savings"}},
                        "service_results": [{"to": "savings", "amount": "260"}],
                    }
                ],
            },
        ],
    },
    {
        "services": ["Bank_1"],
        "turns": [
            {"speaker": "USER", "utterance": "Pay the usual secret", "frames": []},
            {
                "speaker": "SYSTEM",
                "utterance": "Done.",
                "frames": [{"actions": [], "service_call": {"method": "Pay", "parameters": {"amount": "99"}}}],
            },
        ],
    },
]


def _note(name: str, value: str, context: str) -> dict[str, str]:
    return {"name": name, "value": value, "context": context}


TASKMASTER = [
    {
        "utterances": [
            {
                "speaker": "user",
                "text": "a Latte please",
                "annotations": [
                    _note("api_call", "get_menu_items", "api_call_0"),
                    _note("request", '{"query": "Latte "}', "api_call_0"),
                    _note("response", '{"menu_item_id": "latte-1"}', "api_response_0"),
                    _note("api_call", "add_order_item", "api_call_1"),
                    _note("request", '{"menu_item_id": "latte-1", "quantity": "1"}', "api_call_1"),
                    _note("response", '{"order_id": "7"}', "api_response_1"),
                    _note("api_call", "finish_order", "api_call_2"),
                    _note("request", '{"order_id": "never said"}', "api_call_2"),
                    _note("response", "{}", "api_response_2"),
                ],
            },
            {"speaker": "assistant", "text": "Right away.", "annotations": []},
        ]
    }
]
MULTIDOGO = [
    {
        "conversationId": str(i),
        "utterance": "my name is joe doe and i fly",
        "slot-labels": "O O O name name O O O",
        "intent": intent,
        "_file": f"splits_annotated_at_turn_level/airline/{part}.tsv",
    }
    for part in ("train", "dev", "test")
    for i, intent in enumerate(["book", "cancel", "thankyou"])
]
T0 = [
    {
        "_t": "quoref_Find_Answer",
        "prompt": "Bob lives in Rome. Where does Bob live?",
        "completion": "Rome<|endoftext|>",
    },
    {"_t": "quoref_Find_Answer", "prompt": "Bob is secret. Where does he live?", "completion": "Oslo<|endoftext|>"},
    {"_t": "quoref_Guess_Title_For_Context", "prompt": "secret Rome", "completion": "Rome<|endoftext|>"},
]
RECORDS = {
    "snips": SNIPS,
    "sgd": SGD,
    "clinc150": [*LABELS, {"text": "secret", "intent": "x", "split": "test"}],
    "banking77": [{**r, "category": r["intent"], "set": "banking77"} for r in LABELS],
    "crosswoz": CROSSWOZ,
    "sgd_dialogue": SGD_TALK,
    "taskmaster4": TASKMASTER,
    "multidogo": MULTIDOGO,
    "t0_reading": T0,
}


def check(example: Example) -> None:
    """Every call and every JSON answer is valid under its schema, its words said before (a lone "1" is a default)."""
    said = ""
    for message in example.messages:
        answers = [(tool_schema(example, call.name), call.arguments) for call in message.tool_calls]
        if message.role == "assistant" and example.response_format.schema is not None:
            answers.append((example.response_format.schema, message.text))
        for schema, text in answers:
            answer = json.loads(text)
            jsonschema.validate(answer, schema)
            for name, value in answer.items():
                offered = schema["properties"][name].get("enum", ["1", "order"])
                assert value is None or value in offered or value.lower() in said, (value, said)
        said += " " + message.text.lower()
    assert example.answer.role == "assistant"
    assert all(phrase in example.answer.text for phrase in example.phrases)
    assert len({tool.name for tool in example.tools}) == len(example.tools)


def tool_schema(example: Example, name: str) -> Any:
    return next(tool.parameters for tool in example.tools if tool.name == name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_records_become_valid_conversations(source: Any) -> None:
    records = [record for i, record in enumerate(RECORDS[source.name]) if source.part(i, record) == "train"]
    found = list(source.convert(records, random.Random(0)))
    assert found
    for example in found:
        check(example)
    assert all("secret" not in example.messages[0].text for example in found), "test parts are never read"


def _real(source: Any) -> Any:
    slow = source.name in ("sgd", "crosswoz", "sgd_dialogue", "multidogo")
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


def test_a_conversation_ends_before_a_call_that_nobody_could_copy() -> None:
    by_name = {source.name: source for source in SOURCES}
    talk = [next(iter(by_name["sgd_dialogue"].convert(SGD_TALK, random.Random(seed)))) for seed in range(20)]
    assert {call.arguments for e in talk for m in e.messages for call in m.tool_calls} == {'{"amount":"260"}'}
    order = next(iter(by_name["taskmaster4"].convert(TASKMASTER, random.Random(0))))
    assert "never said" not in repr(order.messages)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SmeltError, match="nothing.jsonl"):
        read_jsonl(tmp_path / "nothing.jsonl")


def test_words_of_identifiers() -> None:
    assert words_of("GetWeather") == words_of("get_weather") == words_of("getWeather") == "get weather"
