"""A folder that describes itself: load, save, import from a hub. Safetensors only."""

from smelt.checkpoint.folder import Checkpoint, open_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "open_checkpoint", "save_checkpoint"]
