"""Secrets do not reach the file, and what is none does not change."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.server.recorder.masking import Masker, passes_luhn

SECRETS = [
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
    "sk-ant-" + "api03-0123456789abcdefABCDEF",
    "sk-0123456789abcdefABCDEF",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "github_pat_11ABCDEFG0123456789_abcdefghijkl",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA-1234567890abcdefghijklmnopqrstu",
    "xoxb-123456789012-abcdefABCDEF",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEF",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----",
]
TEXT = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("secret", SECRETS, ids=lambda s: s[:12])
def test_keys_are_masked_wherever_they_stand(secret: str) -> None:
    value = {"a": [f"my key is {secret}, keep it", {"b": secret}], "n": 3, "arguments": json.dumps({"key": secret})}
    counts: Counter[str] = Counter()
    masked = Masker().mask(value, counts)
    assert secret.partition("\n")[0] not in json.dumps(masked) and "MIIEow" not in json.dumps(masked)
    assert sum(counts.values()) == 3
    assert masked["a"][0].startswith("my key is [") and masked["n"] == 3
    assert isinstance(json.loads(masked["arguments"]), dict)  # still JSON


@pytest.mark.parametrize(
    ("text", "sought"),
    [
        ("Authorization: Bearer abcdef123456789", "Authorization: Bearer [TOKEN]"),
        ("postgres://app:hunter2hunter2@db/x", "postgres://app:[PASSWORD]@db/x"),
        ('{"api_key": "abcdefgh12345"}', '{"api_key": "[SECRET]"}'),
        ("password=correcthorsebattery;user=me", "password=[SECRET];user=me"),
    ],
)
def test_what_says_it_is_a_secret_is_masked(text: str, sought: str) -> None:
    assert Masker().mask(text, Counter()) == sought


@pytest.mark.parametrize(
    "text",
    [
        "The bearer of good news asked for a token of thanks.",
        "desk-lamp-with-a-very-long-product-name",
        "Please reset my password: it does not work",
        "order 4111 1111 1111 1112",
        "mail me at ada@example.org, card 4111 1111 1111 1111",
    ],
)
def test_plain_text_stays_as_it_is(text: str) -> None:
    counts: Counter[str] = Counter()
    assert Masker().mask(text, counts) == text and not counts


def test_mail_addresses_and_cards_by_option() -> None:
    masker = Masker(["emails", "cards"])
    assert (
        masker.mask("ada.l+x@mail.example.org pays with 4111-1111-1111-1111.", Counter()) == "[EMAIL] pays with [CARD]."
    )
    assert (
        masker.mask("invoice 4111 1111 1111 1112, 12:30-13:45", Counter()) == "invoice 4111 1111 1111 1112, 12:30-13:45"
    )
    assert passes_luhn("79927398713") and not passes_luhn("79927398710") and not passes_luhn("0000000000000")


def test_the_clients_own_key_goes_whatever_its_shape() -> None:
    counts: Counter[str] = Counter()
    assert Masker().mask({"m": "use tops3cret please"}, counts, ("tops3cret",)) == {"m": "use [API_KEY] please"}
    assert counts == {"api_key": 1}


@given(before=TEXT, after=TEXT, secret=st.sampled_from(SECRETS[:-1]))
def test_no_text_around_a_key_hides_it(before: str, after: str, secret: str) -> None:
    """Letters, digits, - and _ may be part of a longer word; anything else ends it."""
    masked = Masker().mask(f"{before} {secret} {after}", Counter())
    assert secret not in masked
