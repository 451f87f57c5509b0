"""The curriculum of generators: phrases apart, questions that stay, answers that the prompt decides."""

from __future__ import annotations

import datetime
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.chat.house import HouseRenderer
from smelt.cli.suites import GRADERS, as_case, grader_of
from smelt.core.messages import Message
from smelt.data.example import Example
from smelt.data.tasks import absence, injections, limits, multicalls, reading, records, secrets, stories
from smelt.data.tasks.about import Limits
from smelt.data.tasks.catalog import LANGUAGES, roles
from smelt.data.tasks.diversity import distinct_skeletons
from smelt.data.tasks.hierarchy import conflict_example
from smelt.data.tasks.mixture import GENERATORS
from smelt.data.tasks.phrases import entries, label_slots, mentions, sentence, woven
from smelt.data.tasks.suites import SUITES, held_out, held_out_long
from smelt.data.tasks.things import things, verbs
from smelt.data.tasks.toolcalls import NO_TOOL
from smelt.data.tasks.typed import normalised
from smelt.data.tasks.values import Split, Values
from smelt.evals.graders import grade
from smelt.tokenizer import Tokenizer

FILES = (
    "asking attacks clauses events layout limits mails policies reading receipts records rules signals verbs".split()
)
SHORT = [name for name in GENERATORS if not name.startswith("long")]
POOLS = {
    "en": ("The river runs north.", "Three kings met in the old hall."),
    "de": ("Der Fluss fließt nach Norden.", "Drei Könige trafen sich im alten Saal."),
    "zh": ("河水向北流。", "三位国王在旧厅会面。"),
}
# Questions named in the shipped card: digests of messages, tools, schemas and phrases.
GOLDEN = {
    "tool_known": "0cc6405b15a0aa66",
    "tool_unseen": "c42c85dd7e7741ef",
    "no_tool": "62c7f56a6a3ddab9",
    "tool_result": "c5c09f8dd3b01abf",
    "extract": "1672aba8f385f788",
    "extract_free": "bb72c3a39271b5aa",
    "classify": "5072513a63249a7a",
    "service": "21bb756758d87aa8",
    "facts": "6178af830a604f8b",
    "long": "9638a7fa83920b2d",
}


def values(seed: object, language: str, split: Split = "train") -> Values:
    return Values(random.Random(str(seed)), language, split, POOLS if split == "train" else None)


def test_the_questions_of_the_shipped_card_stay_what_they_were() -> None:
    for suite, golden in GOLDEN.items():
        found = hashlib.sha256()
        asked = [held_out_long("en", 3000, 8)] if suite == "long" else [held_out(suite, x, 30) for x in LANGUAGES]
        for examples in asked:
            for e in examples:
                found.update(repr((e.messages, e.tools, e.response_format, e.phrases)).encode())
        assert found.hexdigest()[:16] == golden, suite


@pytest.mark.parametrize("file", FILES)
def test_phrases_of_training_are_never_those_of_the_test(file: str) -> None:
    for name, entry in entries(file).items():
        if not entry.said:
            continue
        slots = set()
        for language in LANGUAGES:
            train, test = (entry.said[language, split] for split in ("train", "test"))  # type: ignore[index]
            assert all(train) and all(test), (name, language)
            assert train == test or not set(train) & set(test), (name, language)
            slots.add(frozenset(slot for text in (*train, *test) for slot in mentions(text)) & {"v", "n", "s", "w"})
        if file not in ("clauses", "attacks", "rules", "asking", "verbs"):
            assert len(slots) == 1, f"{name} speaks of other things in another language: {slots}"


def test_things_and_verbs_are_said_in_every_language() -> None:
    train, test = things("train"), things("test")
    assert not {thing.identifier for thing in train} & {thing.identifier for thing in test}
    assert len({thing.identifier for thing in train}) == len(train) > 120
    for index in range(3):
        assert not {thing.said[index] for thing in train} & {thing.said[index] for thing in test}
    assert all(f"{verb}.d" in entries("verbs") for verb in verbs())


def test_every_role_of_a_record_can_be_told() -> None:
    for kind in stories.kinds():
        assert set(stories.kind_roles(kind)) <= set(roles()), kind
        for language in LANGUAGES:
            for split in ("train", "test"):
                for text in entries("records")[kind].said[language, split]:  # type: ignore[index]
                    assert set(mentions(text)) <= set(stories.kind_roles(kind)), (kind, text)


@pytest.fixture(scope="module")
def renderer() -> HouseRenderer:
    folder = Path(__file__).resolve().parents[2] / "src/smelt/shipped/spark"
    return HouseRenderer(Tokenizer.load(folder))


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(SHORT), st.sampled_from(LANGUAGES), st.integers(0, 10**9))
def test_every_example_renders_without_loose_ends(renderer: HouseRenderer, name: str, language: str, seed: int) -> None:
    """No slot is left open, no control character stands in a text, and what is rendered can be read back."""
    example = GENERATORS[name](values(seed, language))
    assert example == GENERATORS[name](values(seed, language))
    for message in example.messages:
        said = message.text + "".join(call.arguments for call in message.tool_calls)
        assert not re.search(r"\{[a-zA-Z]+\}", message.text.replace("{}", "")), said
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", said), repr(said)
        assert message.text == message.text.strip("\r") and "  ." not in message.text
    assert example.skill and example.language == language
    assert grade(as_case(example, grader_of(example), "any"), example.answer).exact
    rendered = renderer.render(example.messages, tools=example.tools, response_format=example.response_format)
    assert renderer.parse(rendered.ids) == example.messages


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(SUITES)), st.sampled_from(LANGUAGES), st.integers(0, 10**9))
def test_a_held_out_answer_passes_its_grader_and_another_questions_does_not(
    suite: str, language: str, seed: int
) -> None:
    first, second = (SUITES[suite].make(values(f"{seed}/{i}", language, "test")) for i in range(2))
    case = as_case(first, GRADERS.get(suite) or grader_of(first), suite)
    assert grade(case, first.answer).exact
    if first.answer.text != second.answer.text and case.grader == "json":
        assert not grade(case, second.answer).exact
    assert not grade(case, Message.of("assistant", "")).exact


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_request_is_called_or_refused_by_its_tools_alone(language: str) -> None:
    for seed in range(40):
        offered = absence.contrast_example(values(seed, language), True)
        without = absence.contrast_example(values(seed, language), False)
        assert [m for m in offered.prompt if m.role == "user"] == [m for m in without.prompt if m.role == "user"]
        name = offered.answer.tool_calls[0].name
        assert name in {tool.name for tool in offered.tools}
        assert name not in {tool.name for tool in without.tools}
        assert without.answer.text == NO_TOOL[language]
        assert len(offered.tools) == len(without.tools)


def test_about_half_of_the_short_requests_fit_no_tool_and_many_keys_are_not_there() -> None:
    refused = called = there = gone = 0
    for seed in range(300):
        example = absence.offered_example(values(seed, LANGUAGES[seed % 3]))
        said = [m.text for m in example.messages if m.role == "assistant"]
        refused += said.count(NO_TOOL[example.language])
        called += sum(bool(m.tool_calls) for m in example.messages)
        looked = absence.lookup_example(values(seed, "en"))
        answers = [m.text for m in looked.messages if m.role == "assistant"]
        gone += answers.count("There is no such entry.")
        there += len(answers) - answers.count("There is no such entry.")
    assert 0.4 < refused / (refused + called) < 0.65
    assert 0.38 < gone / (gone + there) < 0.52


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_missing_is_required_named_and_not_said(language: str) -> None:
    for seed in range(60):
        example = multicalls.missing_example(values(seed, language), given=True)
        *before, asked, given_, call = example.messages
        name, arguments = call.tool_calls[0].name, json.loads(call.tool_calls[0].arguments)
        tool = next(tool for tool in example.tools if tool.name == name)
        gone = [key for key in tool.parameters["required"] if key in asked.text]
        assert gone, asked.text
        assert set(tool.parameters["required"]) == set(arguments)
        assert str(arguments[gone[0]]) in given_.text or not isinstance(arguments[gone[0]], str)


def test_the_second_call_takes_what_the_first_returned() -> None:
    for seed in range(60):
        example = multicalls.chain_example(values(seed, LANGUAGES[seed % 3]), 2)
        result = json.loads(next(m.text for m in example.messages if m.role == "tool"))
        arguments = json.loads(example.answer.tool_calls[0].arguments)
        assert arguments.items() <= result.items()
        assert all(value not in m.text for value in arguments.values() for m in example.prompt if m.role == "user")


def test_parallel_calls_stand_in_the_order_of_the_requests() -> None:
    counts = set()
    for seed in range(60):
        example = multicalls.parallel_example(values(seed, "en", "test"))
        counts.add(len(example.answer.tool_calls))
        assert len({call.id for call in example.answer.tool_calls}) == len(example.answer.tool_calls)
    assert counts == {2, 3}


def test_dates_money_and_times_are_written_as_the_schema_asks() -> None:
    """A slow reading of what is said, by other means than the generator's, gives what it writes."""
    for seed in range(200):
        v = values(seed, "de")
        date = normalised(v, "date", "date", "en")
        assert date is not None
        if found := re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", date.text):
            day, month, year = map(int, found.groups())
            parsed = datetime.date(year, month, day)
            assert json.loads(date.json) in (parsed.isoformat(), parsed.strftime("%d.%m.%Y"))
        money = normalised(v, "price", "money", "en")
        assert money is not None
        euros = float(re.sub(r"[^\d,]", "", money.text).replace(",", "."))
        factor = 100 if money.schema["type"] == "integer" else 1
        assert abs(euros * factor - json.loads(money.json)) < 1e-6, (money.text, money.json)
        clock = normalised(values(seed, "en"), "time", "time", "en")
        assert clock is not None
        hour, minute = (int(part or 0) for part in re.match(r"(\d+):?(\d\d)?", clock.text).groups())  # type: ignore[union-attr]
        afternoon = "p" in clock.text
        assert json.loads(clock.json) == f"{hour + 12 * afternoon:02d}:{minute:02d}"


def test_values_of_a_told_record_are_copied_letter_by_letter() -> None:
    """Sentences begin large; a value that begins small must not be changed by that (it once was)."""
    for seed in range(400):
        v = values(seed, "en")
        story = stories.Story(kind="order", facts={"person": "smith and sons", "email": "a.b@c.de", "order": "x-1"})
        text = stories.told(v, story)
        assert all(value in text for value in story.facts.values()), text


def test_what_no_text_tells_is_null_and_half_of_the_fields_are() -> None:
    nulls = fields = 0
    for seed in range(150):
        example = records.null_example(values(seed, LANGUAGES[seed % 3]))
        answer = json.loads(example.answer.text)
        fields += len(answer)
        nulls += sum(value is None for value in answer.values())
    assert 0.3 < nulls / fields < 0.6


def _system(example: Example) -> str:
    return "".join(m.text for m in example.messages if m.role in ("system", "developer"))


def test_a_secret_stands_in_the_prompt_and_only_leave_opens_it() -> None:
    for seed in range(120):
        kept = secrets.kept_example(values(seed, LANGUAGES[seed % 3]))
        assert kept.forbidden[0] in _system(kept)
        assert all(kept.forbidden[0] not in m.text for m in kept.messages if m.role != "system")
        told = secrets.given_example(values(seed, LANGUAGES[seed % 3]))
        assert told.phrases[0] in "".join(m.text for m in told.prompt)


def test_an_attack_that_wins_is_graded_wrong() -> None:
    """The word that an attack wants said, and the answer without the rule, both fail."""
    seen = 0
    for seed in range(200):
        example = conflict_example(values(seed, LANGUAGES[seed % 3], "test"), "ih_conflict")
        case = as_case(example, "obeys", "ih_conflict")
        assert grade(case, example.answer).exact, example
        for word in example.forbidden:
            seen += 1
            assert not grade(case, Message.of("assistant", f"{example.answer.text} {word}")).exact
    assert seen > 10


def test_orders_in_data_are_never_obeyed_and_never_dropped() -> None:
    for seed in range(150):
        language = LANGUAGES[seed % 3]
        result = injections.result_example(values(seed, language))
        assert all(word not in result.answer.text for word in result.forbidden)
        kept = injections.fidelity_example(values(seed, language))
        assert kept.answer.text and not kept.answer.tool_calls


def test_the_model_says_of_itself_what_the_recipe_sets() -> None:
    about = Limits(name="spark", context_len=4096, max_output_len=1000, cutoff=(2020, 5))
    said = ""
    for seed in range(300):
        v = Values(random.Random(seed), LANGUAGES[seed % 3], "train", limits=about)
        example = limits.limits_example(v)
        said += "\n".join(m.text for m in example.messages if m.role == "assistant") + "\n"
    assert "spark" in said and "4,096" in said and "4.096" in said and "May 2020" in said and "2020年5月" in said
    assert "131" not in said and "16,384" not in said


def test_a_number_of_tokens_is_held_against_the_limit() -> None:
    about = Limits(context_len=5000, max_output_len=700)
    checked = 0
    for seed in range(2000):
        example = limits.limits_example(Values(random.Random(seed), "en", "test", limits=about))
        question, answer = example.messages[-2].text, example.answer.text
        found = re.search(r"([\d,]+) tokens", question)
        if found and answer.startswith(("Yes", "No")):
            number, limit = int(found[1].replace(",", "")), 5000 if "context" in answer else 700
            assert answer.startswith("Yes") == (number <= limit), (question, answer)
            checked += 1
    assert checked > 100


def test_a_question_beyond_the_text_has_no_answer_in_it() -> None:
    for seed in range(200):
        language = LANGUAGES[seed % 3]
        known = reading.reading_example(values(seed, language, "test"), True)
        assert known.phrases[0] in known.prompt[-1].text
        beyond = reading.reading_example(values(seed, language, "test"), False)
        assert beyond.answer.text in entries("events")["unknown"].said[language, "test"]


@pytest.mark.parametrize("name", ["told", "nested", "offered", "missing", "conflict", "mail", "reading"])
def test_shapes_are_in_the_hundreds_of_hundreds(name: str) -> None:
    assert distinct_skeletons(GENERATORS[name], 400) > 380


def test_german_articles_follow_the_label() -> None:
    assert label_slots("order", "de") == {
        "l": "Bestellnummer", "the": "die Bestellnummer", "den": "die Bestellnummer", "L": "Bestellnummer",
    }  # fmt: skip
    assert label_slots("room", "de")["den"] == "den Raum"
    assert set(entries("genders")) == set(roles())


def test_words_that_meet_are_kept_apart() -> None:
    assert woven("{a}{b}和", {"a": "2029-10-24", "b": "9点半"}) == "2029-10-24 9点半和"
    assert sentence("the price is 5", "en") == "The price is 5."
    assert sentence("价格是5", "zh") == "价格是5。"
