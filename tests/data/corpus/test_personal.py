"""Masks: what is personal goes by form and checksum, what only looks like it stays."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.data.corpus.personal import PLACEHOLDERS, find, luhn_holds, mask

WORDS = st.lists(st.sampled_from("the of Haus und 海 see. (old) new, 12 1999 3.5 § 823 BGB".split()), max_size=8)


def kinds(text: str) -> list[str]:
    return [span.kind for span in find(text)]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "Write to anna.vogt+news@mail.hafen-verein.de today."),
        ("phone", "Call +49 40 1234567 now"),
        ("phone", "Call (415) 555-0137 now"),
        ("phone", "or 415-555-0137."),
        ("phone", "Tel.: 040 1234567"),
        ("phone", "Telefon 5371438"),
        ("phone", "Büro 040/1234567, zweiter Stock"),
        ("phone", "手机：13800138000。"),
        ("phone", "电话 010-62781234"),
        ("phone", "请打我的手机13800138000或者来店里"),
        ("phone", "传真010-62781234转总台"),
        ("phone", "Anruf unter 040 66969-144 genügt"),
        ("phone", "Karl, 0176 04069072, fährt mit"),
        ("phone", "shop on 0117 496 0144 until five"),
        ("phone", "inn, 01632 960331, shut on Mondays"),
        ("email", "邮箱kim@posteo.de，周一休息"),
        ("card", "卡号4111 1111 1111 1111已停用"),
        ("ip", "来自91.198.174.192的邮件"),
        ("iban", "IBAN DE89 3704 0044 0532 0130 00 bitte"),
        ("iban", "GB82WEST12345698765432"),
        ("card", "card 4111 1111 1111 1111 expires"),
        ("card", "3782 822463 10005"),
        ("ip", "from 91.198.174.192 at night"),
        ("ip", "host 2606:4700:4700:0:0:0:0:1111"),
        ("national id", "SSN 536-90-4399."),
        ("national id", "Steuer-ID: 86095742719"),
        ("national id", "身份证 11010519491231002X"),
        ("national id", "Rentenversicherung 15070649C103"),
    ],
)
def test_each_kind_is_found_whole(kind: str, text: str) -> None:
    masked, counts = mask(text)
    assert counts == {kind: 1}
    assert PLACEHOLDERS[kind] in masked
    assert not any(char.isdigit() for char in masked.replace(PLACEHOLDERS[kind], ""))


@pytest.mark.parametrize(
    "text",
    [
        "from 1939-1945 and 1914–18",
        "on 2023-08-15, 15.08.2023 and 08/15/2023",
        "ISBN 978-3-16-148410-0, ISBN 0-19-852663-6, ISSN 0317-8471",
        "article no. 4711-0815-2 and Art.-Nr. 0301234567",
        "Artikel 12345678901",
        "population 1,234,567 or 1 234 567",
        "a price of $1.299.000,00 or 19,99 €",
        "version 10.15.7.1 and paragraph 8.2.2.7",
        "127.0.0.1, 192.168.1.1 and 8.8.8.8",
        "imgs[::2] and P[:, :, 0::2], std::vector::size",
        "17900000000 acres",
        "票房13800138000元",
        "das letzte Lebensdrittel (1918–1952), der Titel 1995. 1985 und das Hotel 12345678",
        "m = 235.043924 u + 4.002602 u, 2000(450+r)+2000(450-r)",
        "HE 0437-5439 is a star",
        "doi:10.1000/182 and arXiv:2101.00027",
        "pi is 3.14159265358979",
        "card 4111 1111 1111 1112",
        "IBAN DE89 3704 0044 0532 0130 01",
        "user@example.com, root@localhost",
        "11010519491231002Y",
    ],
)
def test_numbers_that_name_nobody_stay(text: str) -> None:
    assert mask(text)[0] == text


@given(WORDS, st.sampled_from(["kim@posteo.de", "+49 170 1234567", "4111111111111111", "91.198.174.192"]), WORDS)
def test_masking_takes_the_span_and_nothing_around_it(before: list[str], secret: str, after: list[str]) -> None:
    text = " ".join([*before, "|", secret, "|", *after])
    masked, counts = mask(text)
    assert counts.total() == 1
    assert secret not in masked
    left, _, right = masked.split(" | ") if after and before else (" ".join(before), "", " ".join(after))
    assert (left.strip("| "), right.strip("| ")) == (" ".join(before).strip("| "), " ".join(after).strip("| "))


@given(st.text(alphabet="0123456789 +-()./:@aDE.Xx", max_size=60))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    once = mask(text)[0]
    assert mask(once)[0] == once


@given(st.integers(1000, 2099), st.integers(1000, 2099))
def test_years_stay(first: int, second: int) -> None:
    text = f"between {first}-{second}, in {first} and {second} ({first}–{second}), {first}/{second % 100:02d}"
    assert mask(text)[0] == text


@given(st.text(alphabet="0123456789", min_size=12, max_size=18))
def test_luhn_against_its_definition(digits: str) -> None:
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(digits))]
    check = str(-sum(d // 10 + d % 10 for d in doubled) % 10)
    number = digits + check
    assert luhn_holds(number) == (len(set(number)) > 1)


def test_spans_never_overlap() -> None:
    rng = random.Random(0)
    pieces = [
        "+49 40 1234567",
        "4111 1111 1111 1111",
        "a@b.de",
        "DE89 3704 0044 0532 0130 00",
        "91.198.174.192",
        " ",
        "x",
    ]
    for _ in range(300):
        spans = find("".join(rng.choices(pieces, k=6)))
        assert all(one.end <= two.start for one, two in zip(spans, spans[1:], strict=False))
