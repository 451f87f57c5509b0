"""FastAPI: one file per resource, OpenAI's shapes and errors."""
