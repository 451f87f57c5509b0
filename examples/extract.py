"""Structured output with the official client: fields out of a short text, valid under a schema by construction.

Start a server with `make serve`, then: python examples/extract.py
"""

import os
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)


class Invoice(BaseModel):
    """What we want to know of an invoice."""

    vendor: str
    invoice_number: str
    date: str
    total: float
    currency: Literal["EUR", "USD", "GBP", "CNY"]


TEXTS = (
    "Invoice INV-20931 from Northwind Traders, dated 2024-03-18. Total due: 249.90 EUR.",
    "Rechnung RE-5512 der Bergmann GmbH vom 2023-11-02. Gesamtbetrag: 1280.50 EUR.",
)


def main() -> None:
    for text in TEXTS:
        reply = client.chat.completions.parse(
            model="gpt-4o-mini",
            messages=[
                {"role": "system", "content": "Extract the fields from the text."},
                {"role": "user", "content": text},
            ],
            response_format=Invoice,
            temperature=0,
        )
        print(text, "\n ", reply.choices[0].message.parsed)
        assert reply.choices[0].message.parsed is not None


if __name__ == "__main__":
    main()
