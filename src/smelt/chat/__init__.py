"""Messages to token ids, privileges and loss mask, and back; one renderer per chat format."""

from smelt.chat.formats import renderer_for, renderer_of_folder
from smelt.chat.house import HOUSE_CONTROLS, HouseRenderer
from smelt.chat.renderer import CallSyntax, Control, Rendered, Renderer, ReplyReader

__all__ = [
    "HOUSE_CONTROLS",
    "CallSyntax",
    "Control",
    "HouseRenderer",
    "Rendered",
    "Renderer",
    "ReplyReader",
    "renderer_for",
    "renderer_of_folder",
]
