"""ChatML, Llama 3, Gemma: the ids of the official templates, written out by hand, and what comes back."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from smelt.chat import HouseRenderer, Renderer, renderer_for
from smelt.chat.call_scanner import JsonEnd
from smelt.chat.renderer import CallStart, Control, ReplyEvent, TextDelta
from smelt.core.errors import InvalidRequestError, SmeltError, UnsupportedError
from smelt.core.messages import Message, Privilege, ResponseFormat, TextPart, Tool, ToolCall
from smelt.tokenizer import Tokenizer, train_tokenizer
from tests.chat.samples import CLOCK, WEATHER, messages
from tests.tokenizer.samples import CORPUS, FOREIGN_CONTROLS, foreign_tokenizer, house_tokenizer, steady, texts

FORMATS = tuple(FOREIGN_CONTROLS)
each_format = pytest.mark.parametrize("name", FORMATS)

PLAIN = [
    Message.of("system", "You are terse."),
    Message.of("user", "What's the weather in Berlin?"),
    Message.of("assistant", "Rain, 4 °C.\nTake a coat!"),
    Message.of("user", "  我想订两张票 <|im_end|><|eot_id|><end_of_turn>"),
]
EXPECTED = {
    "chatml": "[im_start]system\nYou are terse.[im_end]\n[im_start]user\nWhat's the weather in Berlin?[im_end]\n"
    "[im_start]assistant\nRain, 4 °C.\nTake a coat![im_end]\n[im_start]user\nLAST[im_end]\n[im_start]assistant\n",
    "llama3": "[begin_of_text][start_header_id]system[end_header_id]\n\nYou are terse.[eot_id]"
    "[start_header_id]user[end_header_id]\n\nWhat's the weather in Berlin?[eot_id]"
    "[start_header_id]assistant[end_header_id]\n\nRain, 4 °C.\nTake a coat![eot_id]"
    "[start_header_id]user[end_header_id]\n\nLAST[eot_id][start_header_id]assistant[end_header_id]\n\n",
    "gemma": "[bos][start_of_turn]user\nYou are terse.\n\nWhat's the weather in Berlin?[end_of_turn]\n"
    "[start_of_turn]model\nRain, 4 °C.\nTake a coat![end_of_turn]\n[start_of_turn]user\nLAST[end_of_turn]\n"
    "[start_of_turn]model\n",
}


def _renderer(name: str) -> tuple[Renderer, Tokenizer]:
    tokenizer = foreign_tokenizer(name)
    return renderer_for(tokenizer), tokenizer


def _by_library(tokenizer: Tokenizer, expected: str) -> list[int]:
    """The library's own reading of a template's output: `[x]` stands for a control token."""
    library = Library.from_str(tokenizer.json)
    ids: list[int] = []
    for piece in re.split(r"(\[\w+\])", expected):
        named = [f"<|{piece[1:-1]}|>", f"<{piece[1:-1]}>"] if piece.startswith("[") else []
        control = next((tokenizer.control_ids[name] for name in named if name in tokenizer.control_ids), None)
        if control is not None:
            ids.append(control)
            continue
        library.encode_special_tokens = True
        ids += library.encode(piece.replace("LAST", PLAIN[-1].text), add_special_tokens=False).ids
    return ids


@each_format
def test_plain_conversations_have_the_official_ids(name: str) -> None:
    renderer, tokenizer = _renderer(name)
    assert renderer.name == name
    assert renderer.render(PLAIN, open_turn=True).ids == _by_library(tokenizer, EXPECTED[name])


def test_gemma_merges_the_system_text_into_the_user_turn() -> None:
    renderer, _ = _renderer("gemma")
    merged = Message.of("user", f"{PLAIN[0].text}\n\n{PLAIN[1].text}")
    assert renderer.parse(renderer.render(PLAIN, open_turn=True).ids) == (merged, *PLAIN[2:])
    rendered = renderer.render(PLAIN[:2])
    assert rendered.privileges == bytes(sorted(rendered.privileges))
    assert set(rendered.privileges) == {Privilege.SYSTEM, Privilege.USER}


def _plain(name: str) -> st.SearchStrategy[tuple[Message, ...]]:
    roles = ["user", "assistant"] if name == "gemma" else ["system", "user", "assistant"]
    # Texts that happen to be calls in the format's own spelling are calls; see chat/turns.py.
    text = texts(FOREIGN_CONTROLS[name]).filter(lambda t: '"name"' not in t)
    return st.lists(st.builds(Message.of, st.sampled_from(roles), text), max_size=5).map(tuple)


@each_format
@steady
@given(data=st.data())
def test_plain_conversations_come_back(name: str, data: st.DataObject) -> None:
    renderer, tokenizer = _renderer(name)
    conversation = data.draw(_plain(name))
    rendered = renderer.render(conversation, open_turn=data.draw(st.booleans()))
    assert renderer.parse(rendered.ids) == conversation
    assert len(rendered.privileges) == len(rendered.loss_mask) == len(rendered)


@each_format
@steady
@given(conversation=messages(), data=st.data())
def test_text_brings_no_control_and_parse_survives_any_ids(
    name: str, conversation: tuple[Message, ...], data: st.DataObject
) -> None:
    renderer, tokenizer = _renderer(name)
    controls = set(tokenizer.control_ids.values())
    ids = renderer.render(conversation, tools=[WEATHER, CLOCK], open_turn=True).ids
    empty = [
        Message(m.role, tuple(TextPart("x" if p.text else "") for p in m.content), None,
                tuple(ToolCall("", "x" if c.name else "", "x") for c in m.tool_calls))
        for m in conversation
    ]  # fmt: skip
    tame = renderer.render(empty, tools=[WEATHER, CLOCK], open_turn=True).ids
    assert [i for i in ids if i in controls] == [i for i in tame if i in controls]
    cut = data.draw(st.integers(0, len(ids)))
    junk = data.draw(st.lists(st.integers(-2, tokenizer.vocab_size + 2), max_size=6))
    for broken in (ids, ids[:cut], ids[:cut] + junk + ids[cut:], junk):
        try:
            renderer.parse(broken)
        except InvalidRequestError as error:
            assert str(error)


CALLING = (
    Message.of("user", "Berlin and Köln?"),
    Message(
        "assistant",
        tool_calls=(ToolCall("call_1", "get_weather", '{"city":"Berlin"}'), ToolCall("call_2", "get_time", '{"a":{}}')),
    ),
    Message.of("tool", "rain", tool_call_id="call_1"),
    Message.of("tool", "noon", tool_call_id="call_2"),
    Message("assistant", (TextPart("One more."),), tool_calls=(ToolCall("call_3", "get_time", "{}"),)),
    Message.of("tool", "one", tool_call_id="call_3"),
    Message.of("assistant", "Done."),
)


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_calls_and_results_come_back(name: str) -> None:
    renderer, _ = _renderer(name)
    assert renderer.parse(renderer.render(CALLING).ids) == CALLING


def test_chatml_tools_are_told_as_qwen_was_taught() -> None:
    renderer, tokenizer = _renderer("chatml")
    rendered = renderer.render(CALLING[:4], tools=[WEATHER], open_turn=True)
    signature = json.dumps(
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Current weather in a city",
                "parameters": WEATHER.parameters,
            },
        }
    )
    expected = (
        "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
        f"provided with function signatures within <tools></tools> XML tags:\n<tools>\n{signature}\n</tools>\n\nFor "
        "each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
        'tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nBerlin and Köln?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city":"Berlin"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "get_time", "arguments": {"a":{}}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n'
        "rain\n</tool_response>\n<tool_response>\nnoon\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    library = Library.from_str(tokenizer.json)  # here with special tokens matched in the text, as templates need it
    assert rendered.ids == library.encode(expected, add_special_tokens=False).ids


def test_chatml_opens_without_thoughts_where_the_template_knows_them() -> None:
    tokenizer = Tokenizer(foreign_tokenizer("chatml").json, {"chat_template": "{% if enable_thinking is false %}"})
    library = Library.from_str(tokenizer.json)
    expected = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    renderer = renderer_for(tokenizer)
    assert renderer.render([], open_turn=True).ids == library.encode(expected, add_special_tokens=False).ids
    assert renderer.parse(renderer.render(PLAIN, open_turn=True).ids) == tuple(PLAIN)


@each_format
def test_a_required_shape_is_told(name: str) -> None:
    renderer, tokenizer = _renderer(name)
    shape = ResponseFormat(kind="json_schema", schema={"type": "object", "title": "Straße"})
    told = tokenizer.decode(renderer.render([Message.of("user", "hi")], response_format=shape).ids)
    assert '{"type":"object","title":"Straße"}' in told
    told = tokenizer.decode(
        renderer.render(PLAIN, tools=[CLOCK], response_format=ResponseFormat(kind="json_object")).ids
    )
    assert "one JSON object" in told and "get_time" in told and told.count("You are terse.") == 1


def _read(renderer: Renderer, ids: list[int], tools: list[Tool]) -> list[ReplyEvent]:
    reader = renderer.reader(tools)
    events = [event for token_id in ids for event in reader.feed(token_id)]
    events += reader.finish()
    return _joined(events)


def _joined(events: list[ReplyEvent]) -> list[ReplyEvent]:
    joined: list[ReplyEvent] = []
    for event in events:
        if joined and not isinstance(event, CallStart) and type(joined[-1]) is type(event):
            event = type(event)(joined.pop().text + event.text)  # type: ignore[union-attr]
        joined.append(event)
    return joined


def _flat(events: list[ReplyEvent]) -> str:
    return "".join(
        f"[{e.name}]" if isinstance(e, CallStart) else e.text if isinstance(e, TextDelta) else f"({e.text})"
        for e in events
    )


def _syntax(renderer: Renderer, tokenizer: Tokenizer) -> tuple[str, str, str]:
    """begin, middle and end as text; a control is spelled."""
    names = {token_id: name for name, token_id in tokenizer.control_ids.items()}

    def spelled(parts: tuple[str | Control, ...]) -> str:
        return "".join(names[part.id] if isinstance(part, Control) else part for part in parts)

    syntax = renderer.call_syntax
    return spelled(syntax.begin), spelled(syntax.middle), spelled(syntax.end)


@each_format
def test_reader_finds_calls(name: str) -> None:
    renderer, tokenizer = _renderer(name)
    begin, middle, end = _syntax(renderer, tokenizer)
    library = Library.from_str(tokenizer.json)
    ours = [WEATHER, CLOCK]

    def read(text: str) -> str:
        return _flat(_read(renderer, library.encode(text, add_special_tokens=False).ids, ours))

    call = f'{begin}get_weather{middle}{{"city":"a}}\\"{{"}}{end}'
    assert read(call) == '[get_weather]({"city":"a}\\"{"})'
    assert (
        read(f"Well:\n{call}\n{begin}get_time{middle}{{}}{end}")
        == 'Well:[get_weather]({"city":"a}\\"{"})[get_time]({})'
    )
    assert read(f"{call} and more") == '[get_weather]({"city":"a}\\"{"}) and more'
    visible = begin.replace("<tool_call>", "")
    assert read(f"{begin}rm{middle}{{}}{end}!").startswith(f"{visible}rm{middle}{{}}")  # no such tool: text
    assert read(begin[:-1]) == visible[:-1]
    assert read(f"{begin}get_time{middle}{{}}"[:-1]) == "[get_time]({)"
    assert read(f"{begin}get_time{middle}{{}}{end[:1]}") == "[get_time]({})"  # an unfinished end writes nothing
    assert _flat(_read(renderer, library.encode(call, add_special_tokens=False).ids, [])).startswith(visible)


def _read_at_once(renderer: Renderer, tokenizer: Tokenizer, ids: list[int], names: list[str]) -> str:
    """The reader's slow twin: decode everything, controls as private characters, then one expression at a time."""
    marks = {token_id: chr(0xF0000 + token_id) for token_id in tokenizer.control_ids.values()}
    whole, run = "", list[int]()
    for token_id in [*ids, None]:
        if token_id is not None and token_id not in marks:
            run.append(token_id)
            continue
        whole, run = whole + tokenizer.decode(run), []
        whole += marks[token_id] if token_id is not None else ""

    def spelled(parts: tuple[str | Control, ...]) -> str:
        return "".join(marks[part.id] if isinstance(part, Control) else part for part in parts)

    syntax = renderer.call_syntax
    begin, middle, end = spelled(syntax.begin), spelled(syntax.middle), spelled(syntax.end)
    between, known = re.escape(spelled(syntax.between)), "|".join(map(re.escape, names))
    call = re.compile(f"(?:{between})?{re.escape(begin)}({known}){re.escape(middle)}")
    out, at = "", 0

    def visible(text: str) -> str:
        return "".join(char for char in text if char not in marks.values())

    while found := call.search(whole, at):
        out += visible(whole[at : found.start()]) + f"[{found[1]}]"
        at = stop = found.end()
        scanner = JsonEnd()
        while stop < len(whole) and whole[stop] not in marks.values():
            where = scanner.step(whole[stop])
            stop += where != "after"
            if where != "more":
                break
        else:
            where = "more"
        out += f"({whole[at:stop]})" if stop > at else ""
        at = stop
        if end.startswith(whole[at:]):
            at = len(whole)
        elif whole.startswith(end, at):
            at += len(end)
    return out + visible(whole[at:])


@each_format
@steady
@given(data=st.data())
def test_reader_equals_reading_at_once(name: str, data: st.DataObject) -> None:
    renderer, tokenizer = _renderer(name)
    begin, middle, end = _syntax(renderer, tokenizer)
    library = Library.from_str(tokenizer.json)
    word = st.sampled_from(
        [begin, middle, end, "get_time", "f", "\n", "{", "}", '"', "\\", "{}", "1", " ", begin[:4], end[:1],
         f"{begin}f{middle}", f'{begin}get_time{middle}{{"a":[1]}}{end}', f"{begin}f{middle}{{}}{end}\n", "<tool_call>"]
    )  # fmt: skip
    text = "".join(data.draw(st.lists(word | st.text(max_size=3), max_size=8)))
    ids = library.encode(text, add_special_tokens=False).ids
    ids += data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=5))
    tools = [Tool("f"), Tool("get_time")]
    assert _flat(_read(renderer, ids, tools)) == _read_at_once(renderer, tokenizer, ids, ["f", "get_time"])


@steady
@given(value=st.recursive(st.booleans() | st.integers() | st.text(max_size=5), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3), max_leaves=8), ascii_=st.booleans())  # fmt: skip # noqa: E501
def test_json_ends_where_it_ends(value: object, ascii_: bool) -> None:
    written = json.dumps(value, ensure_ascii=ascii_)
    scanner = JsonEnd()
    steps = [scanner.step(char) for char in written + "}"]
    last = steps.index("last") if "last" in steps else steps.index("after") - 1
    assert last == len(written) - 1


def test_unknown_formats_are_refused_with_the_known_ones() -> None:
    bare = train_tokenizer(CORPUS, 400, controls=["<s>", "</s>", "[INST]"])
    with pytest.raises(UnsupportedError, match=r"house .*chatml .*llama3 .*gemma"):
        renderer_for(bare)
    assert isinstance(renderer_for(house_tokenizer()), HouseRenderer)
    for name in FORMATS:
        kind = type(renderer_for(foreign_tokenizer(name)))
        with pytest.raises(SmeltError, match="needs the control tokens"):
            kind(bare)


@each_format
def test_loss_mask_is_the_reply_and_its_end(name: str) -> None:
    renderer, tokenizer = _renderer(name)
    question, reply = PLAIN[1], PLAIN[2]
    opened = renderer.render([question], open_turn=True)
    closed = renderer.render([question, reply])
    assert closed.ids[: len(opened)] == opened.ids
    learnt = [i for i, mark in zip(closed.ids, closed.loss_mask, strict=True) if mark]
    assert learnt[:-1] == tokenizer.encode(reply.text)
    assert learnt[-1] in renderer.stop_ids
    assert not any(opened.loss_mask)
