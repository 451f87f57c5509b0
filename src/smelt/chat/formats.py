"""Which chat format a tokenizer speaks, told by its control tokens. No template text is ever executed."""

from __future__ import annotations

from smelt.chat.chatml import ChatMLRenderer
from smelt.chat.gemma import GemmaRenderer
from smelt.chat.house import HouseRenderer
from smelt.chat.llama3 import Llama3Renderer
from smelt.chat.renderer import Renderer
from smelt.core.errors import UnsupportedError
from smelt.tokenizer import Tokenizer

_FORMATS = (HouseRenderer, ChatMLRenderer, Llama3Renderer, GemmaRenderer)


def renderer_for(tokenizer: Tokenizer) -> Renderer:
    """The renderer of the tokenizer's chat format. Raises UnsupportedError naming the formats smelt knows."""
    for renderer in _FORMATS:
        if all(marker in tokenizer.control_ids for marker in renderer.markers):
            return renderer(tokenizer)
    known = "; ".join(f"{renderer.name} ({' '.join(renderer.markers)})" for renderer in _FORMATS)
    raise UnsupportedError(f"no known chat format: smelt looks for the control tokens of {known}")


def renderer_of_folder(tokenizer: Tokenizer) -> Renderer | None:
    """As `renderer_for`; None for a base model, whose folder has no chat template at all.

    Raises UnsupportedError for a folder with a template of a format smelt does not know.
    """
    try:
        return renderer_for(tokenizer)
    except UnsupportedError as error:
        if tokenizer.config.get("chat_template"):
            raise UnsupportedError(f"{error}. Without its chat template the folder would serve completions") from None
        return None
