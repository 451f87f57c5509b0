"""Streamed chat with the official client: two turns of a customer-service conversation, then one in German.

Start a server with `make serve`, then: python examples/chat.py
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)


def answer(messages: list[dict[str, str]]) -> str:
    """Print the answer as it comes and return it."""
    text = ""
    stream = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    print("assistant:", end=" ")
    for chunk in stream:
        if chunk.choices:
            piece = chunk.choices[0].delta.content or ""
            text += piece
            print(piece, end="", flush=True)
        elif chunk.usage:
            print(f"\n  [{chunk.usage.prompt_tokens} prompt + {chunk.usage.completion_tokens} answer tokens]")
    return text


def main() -> None:
    system = {"role": "system", "content": "You are a customer service assistant for an online shop."}
    messages = [system]
    for question in ("Hi, where is my order A-48213?", "Please cancel it."):
        print("user:", question)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer(messages)})
    question = "Hallo, ich möchte meine Bestellung K-7350 zurückgeben."
    print("user:", question)
    assert answer([system, {"role": "user", "content": question}])


if __name__ == "__main__":
    main()
