"""The generators: deterministic, right by their own graders, valid under their own schemas, apart from their test."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator

import jsonschema
import pytest

from smelt.cli.suites import GRADERS, as_case, grader_of
from smelt.core.messages import Message, TextPart
from smelt.data.example import Example
from smelt.data.tasks import catalog, values
from smelt.data.tasks.mixture import GENERATORS, Mixture
from smelt.data.tasks.requests import fill, slots
from smelt.data.tasks.suites import SUITES, held_out, held_out_long
from smelt.data.tasks.values import Value, Values
from smelt.evals.graders import grade

LANGUAGES = catalog.LANGUAGES


def examples(name: str, count: int = 40) -> Iterator[Example]:
    for i in range(count):
        yield GENERATORS[name](Values(random.Random(f"{name}{i}"), LANGUAGES[i % 3]))


@pytest.mark.parametrize("name", GENERATORS)
def test_same_seed_same_example(name: str) -> None:
    assert list(examples(name, 9)) == list(examples(name, 9))


def test_every_process_makes_the_same_examples() -> None:
    """Service turns once drew values in the order of a set of strings, which Python shuffles per process."""
    script = (
        "from smelt.data.tasks.mixture import GENERATORS, Mixture\n"
        "mixture = Mixture(weights=dict.fromkeys(GENERATORS, 1.0))\n"
        "print([mixture.example(7, i) for i in range(250)])"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize("name", GENERATORS)
def test_every_call_and_every_json_answer_is_valid_under_its_schema(name: str) -> None:
    for example in examples(name):
        tools = {tool.name: tool for tool in example.tools}
        assert len(tools) == len(example.tools)
        for message in example.messages:
            for call in message.tool_calls:
                jsonschema.validate(json.loads(call.arguments), tools[call.name].parameters)
                known = list(tools[call.name].parameters.get("properties", {}))
                keys = list(json.loads(call.arguments))
                assert keys == [key for key in known if key in keys], (
                    "keys stand in schema order, as the grammar has it"
                )
            if message.role == "assistant" and example.response_format.kind != "text":
                schema = example.response_format.schema
                assert schema is not None
                jsonschema.validate(json.loads(message.text), schema)
                assert list(json.loads(message.text)) == list(schema["properties"])


@pytest.mark.parametrize("name", GENERATORS)
def test_a_conversation_ends_with_an_answer(name: str) -> None:
    for example in examples(name):
        assert example.answer.role == "assistant"
        assert example.answer.tool_calls or example.answer.text
        assert all(phrase in example.answer.text for phrase in example.phrases)


@pytest.mark.parametrize("name", ["call", "extract", "free", "basket", "long"])
def test_copied_values_stand_in_the_text(name: str) -> None:
    """Text values are copied and never made up: what the answer says, the user said (enumerations are chosen)."""
    for example in examples(name, 60):
        said = "\n".join(message.text for message in example.prompt)
        answers = [call.arguments for call in example.answer.tool_calls] or [example.answer.text]
        offered = json.dumps([dict(tool.parameters) for tool in example.tools], ensure_ascii=False)
        offered += json.dumps(example.response_format.schema, ensure_ascii=False)
        for answer in answers:
            if answer.startswith("{"):
                for leaf in _leaves(json.loads(answer)):
                    assert leaf in said or f'"{leaf}"' in offered, (leaf, said)


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("suite", SUITES)
def test_the_reference_answer_scores_one_and_a_wrong_one_nothing(suite: str) -> None:
    for language in LANGUAGES:
        for example in held_out(suite, language, 6):
            case = as_case(example, GRADERS.get(suite) or grader_of(example), suite)
            assert grade(case, example.answer).exact
            wrong = Message(role="assistant", content=(TextPart(""),))
            assert not grade(case, wrong).exact


def _asked(example: Example) -> str:
    return [message.text for message in example.prompt if message.role == "user"][-1]


@functools.cache
def learned_questions() -> set[str]:
    mixture = Mixture(weights={name: 1.0 for name in GENERATORS if name != "longer"})
    return {_asked(mixture.example(0, i)) for i in range(3000)}


@pytest.mark.parametrize("suite", SUITES)
def test_training_never_asks_a_held_out_question(suite: str) -> None:
    train = learned_questions()
    asked = {_asked(example) for language in LANGUAGES for example in held_out(suite, language, 20)}
    assert not asked & train


def test_words_phrasings_and_tools_of_the_test_are_not_trained_on() -> None:
    for name in ("city.en", "last.de", "thing.zh", "sentence.en"):
        drawn = {}
        for split in ("train", "test"):
            v = Values(random.Random(0), name.split(".")[1], split)  # type: ignore[arg-type]
            drawn[split] = {v.word(name.split(".")[0]) for _ in range(2000)}
        assert drawn["test"]
        assert not drawn["train"] & drawn["test"]
    train, test = ({n for b in catalog.blocks(f"tools_{s}.txt") for n in b.names} for s in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("name", ["tools_train.txt", "tools_test.txt", "extract_train.txt", "extract_test.txt"])
def test_catalogue_names_known_roles_in_every_language(name: str) -> None:
    for block in catalog.blocks(name):
        roles = {role.rstrip("~") for role in block.roles}
        assert roles <= set(catalog.roles()), block.names
        for language in LANGUAGES:
            texts = block.said[language]
            assert len(texts) >= 2
            for text in texts:
                assert set(slots(text)) <= roles, (block.names, text)
                needed = {role for role in block.roles if not role.endswith("~")}
                if name.startswith("tools"):
                    assert needed <= set(slots(text)), (block.names, text)


def test_service_replies_know_what_the_customer_said() -> None:
    for block in catalog.blocks("service.txt"):
        for language in LANGUAGES:
            assert block.keys[language] in block.replies[language], (block.names, language)
            assert len(block.said[language]) >= 3


def test_every_kind_of_value_reads_as_its_json_says() -> None:
    kinds = {spec.kind for spec in catalog.roles().values()}
    for language in LANGUAGES:
        v = Values(random.Random(language), language)
        for kind in sorted(kinds):
            for _ in range(30):
                value = v.draw(kind)
                read = json.loads(value.json)
                assert value.text
                if kind in values.INTEGER_KINDS:
                    assert isinstance(read, int)
                elif kind in values.NUMBER_KINDS:
                    assert isinstance(read, int | float)
                elif kind != "items":
                    assert read == value.text


def test_numbers_side_by_side_do_not_run_together() -> None:
    """Chinese templates set slots side by side; `2029-10-24` and `9点半` once read `2029-10-249点半`."""
    said = {"date": Value("2029-10-24", ""), "time": Value("9点半", "")}
    assert fill("{date}{time}和", said) == "2029-10-24 9点半和"


def test_long_texts_hold_their_fact_once_and_have_their_length() -> None:
    for example in held_out_long("en", 3000, 8):
        assert 2500 < sum(len(message.text) for message in example.prompt) < 4000
