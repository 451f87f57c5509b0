"""Messages to token ids, privileges and loss mask, and back; one renderer per chat format."""
