r"""The pre-tokenizer expressions smelt runs, by name. A tokenizer.json with any other one is refused.

The `tokenizers` library matches them by backtracking, so a hostile expression could hold a core for ever;
each one here is timed on long runs of one character, and stays linear (tests/tokenizer/test_controls.py).
"""

from __future__ import annotations

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASELESS = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"

# A small model copies names, numbers and identifiers out of a request into JSON strings, where no space
# stands before them. So a capitalised word, a digit and a Han character each are the same ids in both places:
# only lower-case words carry their space. Single digits and Han characters cost tokens on long
# numbers and Chinese prose, and save a vocabulary of a few thousand entries from being spent on them.
_HOUSE = "|".join(
    [
        r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})",
        r"\p{Han}",
        r"\p{N}",
        rf" ?{_CASELESS}+",
        rf"[\p{{Lu}}\p{{Lt}}]+{_CASELESS}*",
        r" ?[^\s\p{L}\p{N}\p{M}]+[\r\n]*",
        _SPACES,
    ]
)

# Further along the same way: every word stands alone but the short lower-case ones (to, in, the, der, zu), which are
# seldom copied; Han characters run together, which copies as well in short texts and costs fewer tokens.
# docs/tokenizer.md has the measurement.
_COPYING = "|".join(
    [
        r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})",
        r"\p{Han}+",
        r"\p{N}",
        rf" ?{_CASELESS}{{1,3}}(?![\p{{L}}\p{{M}}])",
        rf"[\p{{Lu}}\p{{Lt}}]*{_CASELESS}+",
        r"[\p{Lu}\p{Lt}]+",
        r" ?[^\s\p{L}\p{N}\p{M}]+[\r\n]*",
        _SPACES,
    ]
)

PATTERNS: dict[str, str] = {
    "house": _HOUSE,
    "copying": _COPYING,
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Llama 3 took this expression over, so its folders are known by it too.
    "cl100k_base": rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}",
    "o200k_base": "|".join(
        [
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            _SPACES,
        ]
    ),
    "qwen2": rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}",
    "tekken": "|".join(
        [
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
            r"\p{N}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            _SPACES,
        ]
    ),
    "single digits": r"\p{N}",
    "digits by three": r"\p{N}{1,3}",
    "line ends": r"[\r\n]",
}

NAMES: dict[str, str] = {expression: name for name, expression in PATTERNS.items()}
