"""Texts and conversations that a reader of an export must turn into the same ids as we do."""

from __future__ import annotations

from typing import Any

from smelt.core.messages import Message, ToolCall

TEXTS: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog, and it's 12:45 already; don't wait for O'Neill!",
    'Dear Ms. Lindqvist,\n\nyour order #40-2291 (2 x "Nordlys" lamp) left our house on 3 May 2026.\r\n\r\n  Regards',
    "Summarise the report in three sentences, then list every city it names: Oslo, Zürich, São Paulo, 東京.",
    "Wie ist das Wetter heute in München? Größere Änderungen erwarte ich für übermorgen nicht, oder doch?",
    "Die Rechnung über 1.234,56 € ist bis zum 30.06. fällig; bitte prüfen Sie, ob der Betrag »stimmt«.",
    "今天北京的天气怎么样？请告诉我，谢谢。订单号是 A-2291，总计 ¥1,234.50。",
    "他说：“我们明天下午三点在地铁站见面吧！”然后就走了。",
    'def add(a: int, b: int = 0) -> int:\n\t"""Sum."""\n    return a+b  # 0x1F\n\n\nprint(f"{add(1, 2):>4}")\n',
    '{"name": "Ada", "items": [1, 2.5, null], "nested": {"ok": true, "path": "C:\\\\tmp", "url": "https://a.b/c?d=e"}}',
    "SELECT id, name FROM users WHERE age >= 21 AND mail LIKE '%@example.org' -- all adults",
    "<html><body class='x'>&amp; ... </body></html>   three spaces,\ttab,\n\n\nlines",
    "🙂 café naïve ½ ² № ٣ हिन्दी 한국어 👩‍👩‍👧",
)

CONVERSATION: tuple[Message, ...] = (
    Message.of("system", "You help with orders. Answer briefly."),
    Message.of("user", "Where is my order 40-2291?"),
    Message.of("assistant", "It left our house on 3 May."),
    Message.of("user", "Danke! Und wann kommt es in Zürich an?"),
)

CALLS: tuple[Message, ...] = (
    Message.of("user", "Where is order 40-2291?"),
    Message("assistant", tool_calls=(ToolCall("call_1", "find_order", '{"number":"40-2291"}'),)),
    Message.of("tool", '{"status":"sent"}', tool_call_id="call_1"),
)


def as_openai(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The messages as a chat template takes them."""
    made = []
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.tool_calls:
            entry["content"] = None
            entry["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            entry["tool_call_id"] = message.tool_call_id
        made.append(entry)
    return made
