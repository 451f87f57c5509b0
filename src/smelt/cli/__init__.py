"""Thin verbs over the rooms; heavy imports inside functions, so that `smelt --help` answers at once."""

from __future__ import annotations

# Of the extra `train` in pyproject.toml.
TRAINING_MODULES = frozenset({"torch", "safetensors", "zstandard", "opencc", "gguf"})


def main() -> None:
    """Entry point of the `smelt` command. Exit status: 0 done, 1 failed with a message, 2 wrong usage."""
    import sys

    from smelt.cli.app import app
    from smelt.core.errors import SmeltError

    try:
        app()
    except SmeltError as error:
        print(f"smelt: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in TRAINING_MODULES:
            raise
        print(f"smelt: no module {error.name}: this needs the extra `train` (make setup-train)", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
