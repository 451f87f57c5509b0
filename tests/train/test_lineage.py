"""A lineage cannot be changed in the middle without showing it."""

from __future__ import annotations

from smelt.train.lineage import broken_at, chained


def test_a_changed_entry_breaks_the_chain() -> None:
    chain = chained([{"step": "data", "sha256": "a"}, {"step": "train", "tokens": 5}, {"step": "weights"}])
    assert broken_at(chain) is None
    changed = [dict(entry) for entry in chain]
    changed[1]["tokens"] = 6
    assert broken_at(changed) == 1
    assert broken_at(chain[1:]) == 0
