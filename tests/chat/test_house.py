"""The house format: exact there and back, nothing from text is ever structure, every token marked rightly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smelt.chat import HOUSE_CONTROLS, HouseRenderer, Rendered
from smelt.chat.renderer import ArgumentsDelta, CallStart, ReplyEvent, TextDelta
from smelt.core.errors import InvalidRequestError, UnsupportedError
from smelt.core.messages import Message, Privilege, ResponseFormat, TextPart, ToolCall
from tests.chat.samples import CLOCK, WEATHER, messages
from tests.tokenizer.samples import foreign_tokenizer, house_tokenizer, steady, texts

TOKENIZER = house_tokenizer()
RENDERER = HouseRenderer(TOKENIZER)
NAMES = {token_id: name for name, token_id in TOKENIZER.control_ids.items()}
JSON_FORMAT = ResponseFormat(kind="json_object")


def _shown(rendered: Rendered) -> str:
    return "".join(NAMES.get(i) or TOKENIZER.token_bytes(i).decode("latin-1") for i in rendered.ids)


def _skeleton(conversation: tuple[Message, ...], *, tools: bool, schema: bool, open_turn: bool) -> list[str]:
    """The control tokens a conversation must have, told a second time from the format's grammar."""
    found = ["bos", *["tools", "end"] * tools, *["schema", "end"] * schema]
    for message in conversation:
        headers = ["name"] * (message.name is not None) + ["id"] * (message.tool_call_id is not None)
        bare = len(message.content) == 1 and message.content[0].text != ""
        found += [message.role, *headers, *["body"] * bool(headers), *["part"] * (not bare) * len(message.content)]
        found += [*["call", "args"] * len(message.tool_calls), "end", *["id"] * len(message.tool_calls)]
    return [f"<|{name}|>" for name in found + ["assistant"] * open_turn]


@steady
@given(conversation=messages(), tools=st.booleans(), schema=st.booleans(), open_turn=st.booleans())
def test_parse_inverts_render_and_text_brings_no_control(
    conversation: tuple[Message, ...], tools: bool, schema: bool, open_turn: bool
) -> None:
    rendered = RENDERER.render(
        conversation,
        tools=[WEATHER, CLOCK] if tools else [],
        response_format=JSON_FORMAT if schema else ResponseFormat(),
        open_turn=open_turn,
    )
    assert RENDERER.parse(rendered.ids) == conversation
    controls = [NAMES[i] for i in rendered.ids if i in NAMES]
    assert controls == _skeleton(conversation, tools=tools, schema=schema, open_turn=open_turn)
    assert len(rendered.privileges) == len(rendered.loss_mask) == len(rendered)


def test_layout() -> None:
    rendered = RENDERER.render(
        [
            Message.of("system", "Be brief."),
            Message.of("user", "Weather?", name="Ann"),
            Message(
                "assistant", tool_calls=(ToolCall("c1", "get_weather", '{"city":"Köln"}'), ToolCall("c2", "t", "{}"))
            ),
            Message.of("tool", "rain", tool_call_id="c1"),
            Message("tool", (TextPart("a"), TextPart("")), tool_call_id="c2"),
        ],
        tools=[WEATHER, CLOCK],
        response_format=JSON_FORMAT,
        open_turn=True,
    )
    assert _shown(rendered).encode("latin-1").decode() == (
        "<|bos|><|tools|>get_weather(city: string) //Current weather in a city\nget_time()<|end|>"
        "<|schema|>object<|end|><|system|>Be brief.<|end|><|user|><|name|>Ann<|body|>Weather?<|end|>"
        '<|assistant|><|call|>get_weather<|args|>{"city":"Köln"}<|call|>t<|args|>{}<|end|><|id|>c1<|id|>c2'
        "<|tool|><|id|>c1<|body|>rain<|end|><|tool|><|id|>c2<|body|><|part|>a<|part|><|end|><|assistant|>"
    )


def _marked(rendered: Rendered, values: bytes) -> list[tuple[str, int]]:
    """Runs of tokens with the same mark: their text and the mark."""
    runs: list[tuple[str, int]] = []
    for token_id, value in zip(rendered.ids, values, strict=True):
        shown = NAMES.get(token_id) or TOKENIZER.token_bytes(token_id).decode()
        before = runs.pop() if runs and runs[-1][1] == value else ("", value)
        runs.append((before[0] + shown, value))
    return runs


def test_loss_mask_is_what_the_assistant_writes() -> None:
    """Text, calls and the end, exactly what is generated after the header; never an id, a header or a part mark."""
    rendered = RENDERER.render(
        [
            Message.of("user", "Hi"),
            Message("assistant", (TextPart("Sure"),), tool_calls=(ToolCall("c1", "f", "{}"), ToolCall("c2", "g", "1"))),
            Message.of("tool", "ok", tool_call_id="c1"),
            Message("assistant", (TextPart("a"), TextPart("b")), name="x"),
        ]
    )
    learnt = [text for text, mark in _marked(rendered, rendered.loss_mask) if mark]
    assert learnt == ["Sure<|call|>f<|args|>{}<|call|>g<|args|>1<|end|>", "a", "b<|end|>"]


def test_privileges_follow_the_speaker() -> None:
    conversation = [Message.of(role, role) for role in ("system", "developer", "user", "assistant")]
    conversation.append(Message.of("tool", "out", tool_call_id="i"))
    rendered = RENDERER.render(conversation, tools=[CLOCK], response_format=JSON_FORMAT, open_turn=True)
    assert _marked(rendered, rendered.privileges) == [
        ("<|bos|>", Privilege.SYSTEM),
        ("<|tools|>get_time()<|end|><|schema|>object<|end|>", Privilege.DEVELOPER),
        ("<|system|>system<|end|>", Privilege.SYSTEM),
        ("<|developer|>developer<|end|>", Privilege.DEVELOPER),
        ("<|user|>user<|end|>", Privilege.USER),
        ("<|assistant|>assistant<|end|>", Privilege.ASSISTANT),
        ("<|tool|><|id|>i<|body|>out<|end|>", Privilege.TOOL),
        ("<|assistant|>", Privilege.ASSISTANT),
    ]


@steady
@given(text=texts(), calls=st.lists(st.tuples(texts(), texts()), max_size=3))
def test_a_reply_is_a_prefix_of_how_history_shows_it(text: str, calls: list[tuple[str, str]]) -> None:
    """So the next request finds the whole reply in the prefix cache, and the model reads what it wrote."""
    question = Message.of("user", "?")
    content = (TextPart(text),) if text else ()
    reply = Message("assistant", content, tool_calls=tuple(ToolCall(f"c{i}", n, a) for i, (n, a) in enumerate(calls)))
    opened = RENDERER.render([question], open_turn=True).ids
    closed = RENDERER.render([question, reply]).ids
    assert closed[: len(opened)] == opened
    reader, events = RENDERER.reader(), list[ReplyEvent]()
    written = closed[len(opened) : closed.index(RENDERER.end_id, len(opened))]
    for token_id in written:
        events += reader.feed(token_id)
    assert _read([*events, *reader.finish()]) == (text, calls)
    assert not RENDERER.stop_ids & set(written)


def _read(events: list[ReplyEvent]) -> tuple[str, list[tuple[str, str]]]:
    text, calls = "", list[tuple[str, str]]()
    for event in events:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, CallStart):
            calls.append((event.name, ""))
        elif isinstance(event, ArgumentsDelta):
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return text, calls


def test_a_call_cut_inside_its_name_is_not_reported() -> None:
    """With a tiny `max_tokens` clients got a call of the function "", which the server refuses as history."""
    call = Message("assistant", tool_calls=(ToolCall("c", "get_time", "{}"),))
    ids = RENDERER.render([call]).ids
    begin = ids.index(TOKENIZER.control_ids["<|call|>"])
    end = ids.index(TOKENIZER.control_ids["<|args|>"])
    for cut in range(begin + 1, end + 1):
        reader = RENDERER.reader()
        events = [event for token_id in ids[begin:cut] for event in reader.feed(token_id)]
        assert [*events, *reader.finish()] == []
    assert list(reader.feed(ids[end])) == []  # it was finished


def _read_at_once(ids: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """The reader's slow twin: cut the whole reply at its control tokens, then decode each stretch."""
    call_id, args_id = TOKENIZER.control_ids["<|call|>"], TOKENIZER.control_ids["<|args|>"]
    text, *stretches = _cut(ids, call_id)
    calls = []
    for stretch in stretches:
        name, begun, arguments = _partition(stretch, args_id)
        if begun:
            calls.append((TOKENIZER.decode(name), TOKENIZER.decode(arguments)))
    return TOKENIZER.decode(text), calls


def _cut(ids: list[int], at: int) -> list[list[int]]:
    pieces: list[list[int]] = [[]]
    for token_id in ids:
        if token_id == at:
            pieces.append([])
        else:
            pieces[-1].append(token_id)
    return pieces


def _partition(ids: list[int], at: int) -> tuple[list[int], list[int], list[int]]:
    where = ids.index(at) if at in ids else len(ids)
    return ids[:where], ids[where : where + 1], ids[where + 1 :]


IDS = st.one_of(
    st.integers(0, TOKENIZER.vocab_size - 1),
    st.sampled_from([TOKENIZER.control_ids["<|call|>"], TOKENIZER.control_ids["<|args|>"]]),
)


@steady
@given(ids=st.lists(IDS, max_size=40))
def test_reader_equals_reading_at_once(ids: list[int]) -> None:
    reader, events = RENDERER.reader(), list[ReplyEvent]()
    for token_id in ids:
        events += reader.feed(token_id)
    assert _read([*events, *reader.finish()]) == _read_at_once(ids)


@steady
@given(conversation=messages(), data=st.data())
def test_parse_survives_any_ids(conversation: tuple[Message, ...], data: st.DataObject) -> None:
    """Cut, spliced and foreign ids give messages or one clear error, never a crash."""
    ids = RENDERER.render(conversation, tools=[CLOCK]).ids
    cut = data.draw(st.integers(0, len(ids)))
    junk = data.draw(st.lists(st.integers(-2, TOKENIZER.vocab_size + 2), max_size=6))
    for broken in (ids[:cut], ids[:cut] + junk + ids[cut:], junk):
        try:
            parsed = RENDERER.parse(broken)
        except InvalidRequestError as error:
            assert "sought" in str(error) or "outside the vocabulary" in str(error)
        else:
            assert RENDERER.parse(RENDERER.render(parsed).ids) == parsed


@pytest.mark.parametrize(
    "message",
    [
        Message("user", tool_calls=(ToolCall("i", "f", "{}"),)),
        Message("assistant", tool_call_id="i"),
        Message("narrator"),  # type: ignore[arg-type]
    ],
)
def test_impossible_messages_are_refused(message: Message) -> None:
    with pytest.raises(InvalidRequestError, match="message|role"):
        RENDERER.render([message])


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        RENDERER.render([Message.of("user", "\ud83d")])


def test_a_tokenizer_without_house_controls_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"<\|bos\|>"):
        HouseRenderer(foreign_tokenizer("gemma"))
    assert len(set(HOUSE_CONTROLS)) == len(HOUSE_CONTROLS)
