"""`smelt tokens`: count before sending, with the model's own tokenizer or one of OpenAI's vocabularies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smelt.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from smelt.tokenizer import Tokenizer


def tokens_command(source: str, *, model: str, request: bool, encoding: str, ranks: Path | None, as_json: bool) -> None:
    """Print one number, or one JSON object with its parts."""
    text = _read(source)
    if encoding or ranks:
        result = _by_encoding(text, encoding, ranks, request=request)
    else:
        result = _by_model(text, model, request=request)
    if as_json:
        print(json.dumps(result))
        return
    parts = f" ({result['messages']} in the messages, {result['tools']} in the tools)" if request else ""
    print(f"{result['tokens']} tokens{parts}")


def _read(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    if not source.startswith("@"):
        return source
    try:
        return Path(source[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{source[1:]}: not a readable UTF-8 file ({error})") from error


def _by_model(text: str, model: str, *, request: bool) -> dict[str, Any]:
    """The prompt as the served model would see it, control tokens and signatures included."""
    from smelt.checkpoint import resolve_model
    from smelt.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(resolve_model(model))
    if not request:
        return _of_text(tokenizer, text, model)
    from smelt.chat import renderer_for
    from smelt.generate.constrain import check_schemas
    from smelt.generate.prepare import count_tokens, render
    from smelt.server.chat_request import ChatBody
    from smelt.server.matrix import CHAT
    from smelt.server.validation import validate

    renderer = renderer_for(tokenizer)
    question = validate(ChatBody, _object(text), CHAT).question()
    check_schemas(question)  # what the server refuses has no length
    count = count_tokens(renderer, question, render(renderer, question))
    return {"tokens": count.total, "messages": count.messages, "tools": count.tools, "tokenizer": model, "exact": True}


def _by_encoding(text: str, encoding: str, ranks: Path | None, *, request: bool) -> dict[str, Any]:
    """As OpenAI bills it: tiktoken's ids and, for a request, the published formula."""
    from smelt.tokenizer import Tokenizer
    from smelt.tokenizer.counting import count_chat

    if ranks is None:
        raise InvalidRequestError(f"--encoding {encoding} needs its rank file: add --ranks {encoding}.tiktoken")
    tokenizer = Tokenizer.from_tiktoken(ranks, encoding or ranks.stem)
    if not request:
        return _of_text(tokenizer, text, encoding or ranks.stem)
    body = _object(text)
    count = count_chat(tokenizer, body.get("messages", []), body.get("tools", []))
    sizes = {"tokens": count.total, "messages": count.messages, "tools": count.tools}
    return sizes | {"tokenizer": encoding or ranks.stem, "exact": count.exact}


def _of_text(tokenizer: Tokenizer, text: str, name: str) -> dict[str, Any]:
    count = len(tokenizer.encode(text))
    return {"tokens": count, "bytes": len(text.encode()), "tokenizer": name, "exact": True}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"--request: the input is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidRequestError("--request: sought a JSON object, a chat request's body")
    return value
