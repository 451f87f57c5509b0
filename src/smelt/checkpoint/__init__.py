"""A folder that describes itself: load, save, import from a hub. Safetensors only."""

from smelt.checkpoint.folder import Checkpoint, open_checkpoint, save_checkpoint
from smelt.checkpoint.hub import DEFAULT_MODEL, hub_name, resolve_model, shipped_models

__all__ = [
    "DEFAULT_MODEL",
    "Checkpoint",
    "hub_name",
    "open_checkpoint",
    "resolve_model",
    "save_checkpoint",
    "shipped_models",
]
