"""What a model knows of itself: numbers that the recipe sets and the examples say."""

from __future__ import annotations

from dataclasses import dataclass

from smelt.data.tasks.catalog import words

_SEPARATORS = {"en": ",", "de": ".", "zh": ""}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a model must know of itself. `cutoff`: year and month its encyclopedias end."""

    name: str = "smelt"
    context_len: int = 131_072
    max_output_len: int = 16_384
    cutoff: tuple[int, int] = (2022, 12)

    def slots(self, language: str) -> dict[str, str]:
        """The words of an answer."""
        year, month = self.cutoff
        said = f"{year}年{month}月" if language == "zh" else f"{words(f'month.{language}')[month - 1]} {year}"
        return {
            "name": self.name,
            "context": number_text(self.context_len, language),
            "output": number_text(self.max_output_len, language),
            "cutoff": said,
        }


def number_text(number: int, language: str) -> str:
    """A number as the language groups it: 131,072 or 131.072 or 131072."""
    return f"{number:,}".replace(",", _SEPARATORS[language])
