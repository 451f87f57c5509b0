"""A folder that describes itself: load, save, import from a hub. Safetensors only."""
