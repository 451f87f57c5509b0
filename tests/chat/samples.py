"""Conversations for the chat formats' tests."""

from __future__ import annotations

from hypothesis import strategies as st

from smelt.core.messages import Message, TextPart, Tool, ToolCall
from tests.tokenizer.samples import texts

WEATHER = Tool(
    "get_weather",
    "Current weather in a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
CLOCK = Tool("get_time", "", {})


def messages(text: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[tuple[Message, ...]]:
    """Every Message its docstring allows: no part, empty parts, several parts and calls, names, ids."""
    text = texts() if text is None else text
    content = st.lists(text.map(TextPart), max_size=3).map(tuple)
    name = st.none() | text
    plain = st.builds(Message, role=st.sampled_from(["system", "developer", "user"]), content=content, name=name)
    calls = st.lists(st.builds(ToolCall, id=text, name=text, arguments=text), max_size=3).map(tuple)
    assistant = st.builds(Message, role=st.just("assistant"), content=content, name=name, tool_calls=calls)
    tool = st.builds(Message, role=st.just("tool"), content=content, name=name, tool_call_id=name)
    return st.lists(plain | assistant | tool, max_size=5).map(tuple)
