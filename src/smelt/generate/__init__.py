"""The text-level model: chat and engine together; stop strings, incremental text, usage."""
