"""The engine's tests. `tests.engine.fakes` has the deterministic model and the oracle they compare with."""
