"""A long prompt with the official client: one fact in a long mail thread, asked for again from the prefix cache.

Start a server with `make serve`, then: python examples/long_context.py [number of filler mails]
"""

import os
import sys
import time

from openai import BadRequestError, OpenAI
from pydantic import BaseModel

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)

FILLER = "Thank you for the update. The team met on Monday, looked at the plan and agreed to go on as before.\n"
FACT = "The order number is T-90417 and the parcel left on Friday.\n"


class Answer(BaseModel):
    """What to find."""

    order_number: str


def ask(text: str) -> None:
    """Ask for the fact, print the answer, its tokens and its time."""
    start = time.perf_counter()
    reply = client.chat.completions.parse(
        model="gpt-4o-mini",
        messages=[
            {"role": "system", "content": "Extract the fields from the text."},
            {"role": "user", "content": text},
        ],
        response_format=Answer,
        temperature=0,
    )
    usage = reply.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens
    seconds = time.perf_counter() - start
    print(f"  {usage.prompt_tokens} prompt tokens, {cached} from the cache, {seconds:.2f} s:", end=" ")
    print(reply.choices[0].message.parsed)


def main() -> None:
    num_mails = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    text = FILLER * (num_mails // 2) + FACT + FILLER * (num_mails - num_mails // 2)
    for attempt in ("first time", "again"):
        print(attempt)
        ask(text)
    print("beyond the context window: a clear error, never a silent cut")
    try:
        ask(FILLER * 20_000)
    except BadRequestError as error:
        print(" ", error.code, "-", error.message[:160])


if __name__ == "__main__":
    main()
