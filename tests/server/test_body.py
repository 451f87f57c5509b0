"""The strict JSON reader: refuses what RFC 7493 forbids, and agrees with Python's reader on the rest."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.core.errors import InvalidRequestError
from smelt.server.body import MAX_DEPTH, parse_object

REFUSED = {
    "not an object": b"[1]",
    "empty": b"",
    "trailing comma": b'{"a":1,}',
    "two values": b"{}{}",
    "single quotes": b"{'a':1}",
    "duplicate key": b'{"a":1,"a":1}',
    "duplicate key spelled with an escape": b'{"a":1,"\\u0061":2}',
    "duplicate key inside": b'{"x":[{"a":1,"a":1}]}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "too large for a double": b'{"a":1e400}',
    "too large for a double, negative": b'{"a":-1e400}',
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate in a key": b'{"\\udc00":1}',
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "invalid UTF-8": b'{"a":"\xff"}',
    "surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "control character in a string": b'{"a":"\x01"}',
    "long number": b'{"a":' + b"1" * 500 + b"}",
    "long fraction": b'{"a":0.' + b"1" * 500 + b"}",
    "unclosed string": b'{"a":"',
    "unclosed array": b'{"a":[1',
    "too deep": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_object(REFUSED[name])
    assert caught.value.code == "invalid_json"


def test_depth_is_allowed_up_to_the_limit() -> None:
    arrays = MAX_DEPTH - 1
    assert parse_object(b'{"a":' + b"[" * arrays + b"]" * arrays + b"}")
    assert parse_object(b'{"a":"' + b"[" * 10_000 + b'"}') == {"a": "[" * 10_000}


HOSTILE = {
    "deep": b'{"a":' + b"[" * 100_000,
    "wide": b'{"a":[' + b"[]," * 3_000_000 + b"1]}",
    "long number": b'{"a":' + b"7" * 10_000_000 + b"}",
    "escaped quotes, never closed": b'{"a":"' + b'\\"' * 3_000_000,
    "many keys": b"{" + b",".join(b'"%d":1' % i for i in range(300_000)) + b',"1":2}',
    "long string": b'{"a":"' + b"x" * 10_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_cost_less_than_a_second(name: str) -> None:
    """The string pattern once rescanned an unclosed string from each of its quotes: quadratic."""
    start = time.process_time()
    with pytest.raises(InvalidRequestError):
        parse_object(HOSTILE[name])
    assert time.process_time() - start < 1


_text = st.text(st.characters(exclude_categories=["Cs"]))
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(_text, _values, max_size=4), st.booleans(), st.sampled_from([None, 2]))
def test_agrees_with_pythons_reader(value: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert parse_object(text.encode()) == json.loads(text)


@given(st.binary(max_size=64))
def test_any_bytes_parse_or_are_refused(body: bytes) -> None:
    try:
        value = parse_object(body)
    except InvalidRequestError as error:
        assert error.message.isprintable()
    else:
        assert value == json.loads(body)
