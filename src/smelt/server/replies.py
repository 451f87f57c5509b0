"""Parts of a reply that chat and completions share."""

from __future__ import annotations

import math
from secrets import token_hex
from typing import Any

from smelt.core.sampling import Usage
from smelt.generate.events import TokenReport, TokenText

LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON does not have


def new_id(prefix: str) -> str:
    """A fresh object id."""
    return f"{prefix}-{token_hex(14)}"


def usage_body(usage: Usage) -> dict[str, Any]:
    """`usage`, with the details OpenAI gives."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


def _token(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.bytes)}


def logprob_entries(reports: tuple[TokenReport, ...] | list[TokenReport]) -> list[dict[str, Any]]:
    """`logprobs.content`: one entry per token shown."""
    return [{**_token(report.token), "top_logprobs": [_token(token) for token in report.top]} for report in reports]
