"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from smelt.server.sampling import SamplingBody
from smelt.server.settings import Settings
from smelt.server.validation import EXPECTED, STRING, too_many

DEFAULT_MAX_TOKENS = 16
MAX_TOKEN_ID = 2**31 - 1
MAX_PROMPT_LEN = 2**20  # tokens; longer than any context served, refused before each id is looked at

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_LEN)]


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "string"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    if isinstance(first, str):
        return "strings"
    return "id lists" if isinstance(first, list) else "ids"


Prompt = Annotated[
    Annotated[str, STRING]
    | Annotated[Annotated[list[str], Field(min_length=1)], Tag("strings")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[Annotated[list[TokenIds], Field(min_length=1)], Tag("id lists")],
    Discriminator(
        _prompt_kind,
        custom_error_type=EXPECTED,
        custom_error_message="a string, an array of strings, an array of token ids or an array of token id arrays",
    ),
]


class CompletionBody(SamplingBody):
    """Every field that is not refused. Refused ones never get here (see `matrix`)."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None

    def check(self, settings: Settings) -> None:
        """What one field's type cannot say. Raises InvalidRequestError."""
        super().check(settings)
        if len(self.prompts) > settings.max_prompts:
            raise too_many("prompt", settings.max_prompts, len(self.prompts))

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt."""
        prompt: Any = self.prompt  # the union's members are told apart by their first item, as above
        return [prompt] if _prompt_kind(prompt) in ("string", "ids") else prompt
