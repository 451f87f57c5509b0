"""The tests, room by room as in src/smelt. `tests.tiny` builds the small models they share."""
