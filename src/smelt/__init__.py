"""smelt: the GPT-4o mini you own. A small language model, the factory that makes it, the service that runs it.

Rooms, bottom to top (a room imports only what stands below it; `make check` holds it to that):
core, store, tokenizer, chat, native, model, checkpoint, engine, generate, evals, data, train, server, cli.
"""

__version__ = "0.1.0"
