"""Grammars: what they allow, that forcing equals masking, that bad ones are refused and the cache is bounded."""

from __future__ import annotations

import json
from functools import cache

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.chat.call_scanner import TextReplyReader
from smelt.chat.house import HouseRenderer
from smelt.chat.renderer import ArgumentsDelta, CallStart, CallSyntax, Control, ReplyReader
from smelt.core.errors import EngineError
from smelt.generate.grammar import Grammar, GrammarCompiler, GrammarError
from smelt.generate.lark import CallRule, calls_grammar, json_grammar, json_rule
from smelt.tokenizer import Tokenizer
from tests.generate.fakes import tiny_tokenizer

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 3}},
    "required": ["city"],
    "additionalProperties": False,
}
YES_NO = {
    "type": "object",
    "properties": {"answer": {"type": "boolean"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@cache
def shared() -> tuple[Tokenizer, GrammarCompiler]:
    tokenizer = tiny_tokenizer()
    stop_ids = frozenset({tokenizer.control_ids["<|end|>"]})
    return tokenizer, GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size + 37, stop_ids=stop_ids)


def compile_(lark: str) -> Grammar:
    return shared()[1].compile(lark)


def allowed(grammar_or_matcher: object, vocab_size: int = 0) -> set[int]:
    matcher = grammar_or_matcher.matcher() if isinstance(grammar_or_matcher, Grammar) else grammar_or_matcher
    row = np.zeros(-(-(vocab_size or shared()[0].vocab_size + 37) // 32), np.uint32)
    matcher.fill_mask(row)  # type: ignore[attr-defined]
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def accepts(grammar: Grammar, *pieces: str | Control) -> bool:
    """Whether the whole answer is allowed, its text tokenized piece by piece, and may end there."""
    tokenizer, _ = shared()
    matcher = grammar.matcher()
    for piece in pieces:
        for token_id in [piece.id] if isinstance(piece, Control) else tokenizer.encode(piece):
            if token_id not in allowed_unforced(matcher):
                return False
            matcher.advance(token_id)
    return bool(matcher._matcher.is_accepting())


def allowed_unforced(matcher: object) -> set[int]:
    """The grammar's own mask, without the narrowing to the tokenizer's spelling."""
    row = np.zeros(-(-(shared()[0].vocab_size + 37) // 32), np.uint32)
    matcher._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)  # type: ignore[attr-defined]
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def syntaxes() -> dict[str, CallSyntax]:
    """The house format's, and those of foreign formats with literals and control tokens in every place."""
    control = shared()[0].control_ids
    house = HouseRenderer(shared()[0]).call_syntax
    opening, closing = Control(control["<|call|>"]), Control(control["<|args|>"])
    name, arguments, parameters = '\n{"name": "', '", "arguments": ', '", "parameters": '
    return {
        "house": house,
        "chatml": CallSyntax(begin=(opening, name), middle=(arguments,), end=("}\n", closing), between=("\n",)),
        "chatml in text": CallSyntax(
            begin=("<tool_call>", name), middle=(arguments,), end=("}\n", "</tool_call>"), between=("\n",)
        ),
        "llama3": CallSyntax(begin=('{"name": "',), middle=(parameters,), end=("}",), between=("\n",)),
    }


def calls_of(syntax: CallSyntax, *, parallel: bool, otherwise: str | None) -> Grammar:
    rules = [(CallRule(name, CITY), json_rule(CITY)) for name in ("get", "get_weather")]
    return compile_(calls_grammar(syntax, rules, parallel=parallel, otherwise=otherwise))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("otherwise", [None, "text", "json"])
@pytest.mark.parametrize("name", ["house", "chatml", "chatml in text", "llama3"])
def test_what_an_answer_with_tools_may_be(name: str, otherwise: str | None, parallel: bool) -> None:
    """Every format's syntax, each kind of tool choice: exactly the answers that the API promises."""
    syntax = syntaxes()[name]
    grammar = calls_of(syntax, parallel=parallel, otherwise=json_rule(YES_NO) if otherwise == "json" else otherwise)

    def call(function: str, arguments: str = '{"city":"B"}') -> list[str | Control]:
        return [*syntax.begin, function, *syntax.middle, arguments, *syntax.end]

    assert accepts(grammar, *call("get"))
    assert accepts(grammar, *call("get_weather"))
    assert accepts(grammar, *call("get"), *syntax.between, *call("get_weather")) == parallel
    assert accepts(grammar, 'hello <tool {"nam ') == (otherwise == "text")
    assert accepts(grammar, 'Hello \n{"na', *call("get")) == (otherwise == "text")
    assert accepts(grammar, '{"answer":true}') == (otherwise is not None)
    assert not accepts(grammar, *call("get_weath"))
    assert not accepts(grammar, *call("get", '{"town":"B"}'))
    assert not accepts(grammar, *call("get", '{"city":"Bern"}'))
    assert accepts(grammar) == (otherwise == "text")  # silence is a text


@pytest.mark.parametrize("schema", [YES_NO, {"type": "object"}, CITY | {"properties": {"name": {}}, "required": []}])
def test_a_json_answer_may_begin_like_a_literal_call(schema: dict[str, object]) -> None:
    """Lexemes are greedy: Llama 3's call begins with `{"name": "`, and once shut out every JSON answer."""
    grammar = calls_of(syntaxes()["llama3"], parallel=True, otherwise=json_rule(schema))
    assert accepts(grammar, '{"name": "get", "parameters": {"city":"B"}}')
    assert accepts(grammar, '{"name":"x"}') == (schema is not YES_NO)


def sample(grammar: Grammar, seed: int, *, forced: bool, limit: int = 400) -> list[int]:
    """A random answer, with forced tokens taken as the engine takes them, or drawn under masks only."""
    tokenizer, _ = shared()
    end = tokenizer.control_ids["<|end|>"]
    matcher, ids = grammar.matcher(), list[int]()
    while len(ids) < limit:
        known = matcher.forced_tokens() if forced else []
        for token_id in known:
            matcher.advance(token_id)
            ids.append(token_id)
        options = sorted(allowed(matcher))
        rng = np.random.default_rng((seed, len(ids)))
        closing = [i for i in options if tokenizer.token_bytes(i)[:1] in (b'"', b"}", b"]", b"")]
        pick = options if not closing or rng.random() < 0.6 else closing
        token_id = pick[int(rng.integers(len(pick)))]
        if token_id == end:
            return ids
        matcher.advance(token_id)
        ids.append(token_id)
    return ids


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["house", "chatml", "chatml in text", "llama3"]))
def test_random_answers_are_calls_that_the_reader_reads_and_the_schema_accepts(seed: int, name: str) -> None:
    syntax = syntaxes()[name]
    tokenizer, _ = shared()
    ids = sample(calls_of(syntax, parallel=True, otherwise=None), seed, forced=True)
    names = ["get", "get_weather"]
    house = HouseRenderer(tokenizer)
    reader: ReplyReader = house.reader() if name == "house" else TextReplyReader(tokenizer, syntax, names)
    events = [event for token_id in ids for event in reader.feed(token_id)] + list(reader.finish())
    arguments: list[str] = []
    for event in events:
        if isinstance(event, CallStart):
            assert event.name in names
            arguments.append("")
        elif isinstance(event, ArgumentsDelta):
            arguments[-1] += event.text
    assert arguments
    for text in arguments:
        jsonschema.validate(json.loads(text), CITY)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_forced_tokens_are_what_masks_would_have_left(seed: int) -> None:
    """The engine forces tokens, or draws them under masks where log-probabilities are asked: one answer."""
    grammar = calls_of(syntaxes()["house"], parallel=True, otherwise="text")
    assert sample(grammar, seed, forced=True) == sample(grammar, seed, forced=False)


def test_forced_text_is_spelled_as_the_tokenizer_spells_it() -> None:
    tokenizer, _ = shared()
    grammar = compile_(json_grammar({"const": "What is the weather like in Paris?"}))
    text = '"What is the weather like in Paris?"'
    assert grammar.matcher().forced_tokens() == tokenizer.encode(text)


def test_a_finished_grammar_allows_the_end_and_nothing_else() -> None:
    tokenizer, _ = shared()
    matcher = compile_(json_grammar({"const": 1})).matcher()
    assert not matcher.complete
    for token_id in matcher.forced_tokens():
        matcher.advance(token_id)
    assert matcher.complete
    assert matcher.forced_tokens() == []
    assert allowed(matcher) == {tokenizer.control_ids["<|end|>"]}


def test_a_token_that_is_not_allowed_is_an_engine_error() -> None:
    matcher = compile_(json_grammar({"type": "boolean"})).matcher()
    with pytest.raises(EngineError):
        matcher.advance(shared()[0].encode("x")[0])


def test_free_text_allows_every_token_with_bytes_and_the_end() -> None:
    tokenizer, compiler = shared()
    free = compiler.free_text()
    text = {i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)}
    assert allowed(free) == text | {tokenizer.control_ids["<|end|>"]}
    assert free.matcher().forced_tokens() == []
    assert not free.matcher().complete


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"if": {}, "then": {}}, "if"),
        ({"type": "string", "format": "regex"}, "Unknown format"),
        ({"type": "string", "pattern": "[z-a]"}, "regex parse error"),
        ({"properties": {"a": False}, "required": ["a"], "type": "object"}, "Unsatisfiable"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, ""),
        ({"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(9)]} for i in range(9)]}, "too large"),
    ],
)
def test_what_llguidance_cannot_honour_is_refused_in_one_line(schema: dict[str, object], words: str) -> None:
    with pytest.raises(GrammarError) as caught:
        compile_(json_grammar(schema))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "start:" not in str(caught.value)


def test_the_cache_keeps_the_grammars_used_last() -> None:
    tokenizer, _ = shared()
    end = frozenset({tokenizer.control_ids["<|end|>"]})
    compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, stop_ids=end, cache_size=8)
    first = compiler.compile(json_grammar({"const": "first"}))
    for number in range(200):
        compiler.compile(json_grammar({"const": number}))
        assert compiler.compile(json_grammar({"const": "first"})) is first
    assert compiler.num_cached == 8
    assert compiler.compile(json_grammar({"const": 199})) is compiler.compile(json_grammar({"const": 199}))


def test_two_answers_under_one_grammar_do_not_meet() -> None:
    grammar = compile_(json_grammar({"enum": ["aa", "bb"]}))
    one, two = grammar.matcher(), grammar.matcher()
    tokenizer, _ = shared()
    for token_id in tokenizer.encode('"a'):
        one.advance(token_id)
    assert two.forced_tokens() == tokenizer.encode('"')
    assert one.forced_tokens() != two.forced_tokens()
