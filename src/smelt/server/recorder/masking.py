"""Secrets in recorded text, replaced by what they were before anything is written.

Patterns know the shapes that issuers document; a secret without a shape (a password in a sentence) is not found, which
is why recording asks for consent. Masking keeps JSON text valid: no pattern takes a quote or a brace with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

_KEY_SHAPES = (
    r"sk-(?:proj-|svcacct-|admin-|ant-|or-)?[A-Za-z0-9_-]{16,}",  # model providers
    r"(?:gsk|hf|r8|nvapi|xai|pplx|fw|glpat|npm|shpat|rk_live|sk_live|sk_test|rk_test)[_-][A-Za-z0-9_-]{16,}",
    r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}",
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    r"AIza[A-Za-z0-9_-]{30,}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",  # a signed token (JWT)
)
_API_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(_KEY_SHAPES)})")
_BEARER = re.compile(r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{12,}")
_ASSIGNED = re.compile(
    r"(?i)(\b(?:api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token|client[_-]?secret|password|passwd)"
    r"[\\\"']*\s*[:=]\s*[\\\"']*)[^\s\\\"',;{}]{8,}"
)
_URL_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@\"']+:)[^\s:/@\"']+(?=@)")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}")
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")

Rule = tuple[str, re.Pattern[str], Callable[[re.Match[str]], str]]


def _kept(name: str) -> Callable[[re.Match[str]], str]:
    """The words in front stay, the secret goes."""
    return lambda found: f"{found.group(1)}[{name}]"


def _whole(name: str) -> Callable[[re.Match[str]], str]:
    return lambda _: f"[{name}]"


def _card(found: re.Match[str]) -> str:
    return "[CARD]" if passes_luhn(found.group()) else found.group()


_ALWAYS: tuple[Rule, ...] = (
    ("private_key", _PRIVATE_KEY, _whole("PRIVATE_KEY")),
    ("api_key", _API_KEY, _whole("API_KEY")),
    ("bearer", _BEARER, _kept("TOKEN")),
    ("password", _URL_LOGIN, _kept("PASSWORD")),
    ("password", _ASSIGNED, _kept("SECRET")),
)
_OPTIONAL: dict[str, Rule] = {
    "emails": ("email", _EMAIL, _whole("EMAIL")),
    "cards": ("card", _CARD, _card),
}
OPTIONS = tuple(_OPTIONAL)


class Masker:
    """Masks keys, tokens and passwords always, and what `options` (of OPTIONS) names besides.

    `masked` counts what was replaced, by kind.
    """

    def __init__(self, options: Iterable[str] = ()) -> None:
        self.rules = (*_ALWAYS, *(_OPTIONAL[name] for name in options))

    def mask(self, value: Any, counts: Counter[str], known: tuple[str, ...] = ()) -> Any:
        """A JSON value with every string in it masked, names included; `known` secrets go wherever they stand."""
        if isinstance(value, str):
            return self._text(value, counts, known)
        if isinstance(value, list):
            return [self.mask(item, counts, known) for item in value]
        if isinstance(value, dict):
            return {self._text(name, counts, known): self.mask(item, counts, known) for name, item in value.items()}
        return value

    def _text(self, text: str, counts: Counter[str], known: tuple[str, ...]) -> str:
        for secret in known:
            if secret in text:
                counts["api_key"] += text.count(secret)
                text = text.replace(secret, "[API_KEY]")
        for name, pattern, replace in self.rules:
            masked = pattern.sub(replace, text)
            if masked != text:
                counts[name] += 1
                text = masked
        return text


def passes_luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1): tells a card from most other long numbers."""
    numbers = [int(digit) for digit in digits if digit.isdigit()]
    doubled = (sum(divmod(2 * number, 10)) if i % 2 else number for i, number in enumerate(reversed(numbers)))
    return len(set(numbers)) > 1 and sum(doubled) % 10 == 0
