"""Questions that can only be answered from the context, and what is counted as an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from smelt.compress.linear.recall import asked, chance, distances_for, recall
from smelt.model.decoder import Decoder
from tests.tiny import tiny_config


@pytest.mark.parametrize(("distance", "begin"), [(4, None), (9, 0), (40, 0)])
def test_the_key_stands_so_far_before_the_question(distance: int, begin: int | None) -> None:
    config = tiny_config(bos_id=begin)
    found = asked(config, distance, rows=20, seed=3)
    ids, values = found.batch.inputs, found.values
    front = 0 if begin is None else 1
    assert ids.shape[1] == front + distance + 1
    assert (ids[:, -1] == ids[:, -1 - distance]).all() and (ids[:, -distance] == values[:, 0]).all()
    for row, shown in zip(ids, values, strict=True):
        pairs = row[front : front + 2 * len(shown)]
        assert len(set(pairs)) == len(pairs) and (pairs[1::2] == shown).all()
        assert (row == row[-1]).sum() == 2, "the key is nowhere else"
        assert not {1, begin} & set(row[front:])
    assert found.batch.num_learned == 20 and (found.batch.targets[:, -1] == values[:, 0]).all()
    again = asked(config, distance, rows=20, seed=3)
    assert (again.batch.inputs == ids).all()


class LooksUp(Decoder):
    """Answers with the token behind the last occurrence of the key, `reach` tokens back at most."""

    reach = 0

    def hidden(self, ids_BT: torch.Tensor, **_: Any) -> torch.Tensor:  # noqa: N803 - the decoder's own name
        out = torch.zeros(*ids_BT.shape, self.config.vocab_size)
        for row, ids in enumerate(ids_BT.tolist()):
            places = [t for t in range(len(ids) - 1) if ids[t] == ids[-1] and len(ids) - 1 - t <= self.reach]
            out[row, -1, ids[places[-1] + 1] if places else 1] = 1.0
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_who_looks_it_up_recalls_as_far_as_he_looks() -> None:
    config = tiny_config()
    distances = distances_for(config, 8)
    assert distances == (4, 16, 64) and distances_for(config, 32) == (16, 64)
    model = LooksUp(config)
    for reach, sought in ((100, [1, 1, 1]), (20, [1, 1, 0]), (0, [0, 0, 0])):
        model.reach = reach
        assert recall(model, distances, rows=50) == sought
    fresh = Decoder(config)
    fresh.init_weights(0)
    np.testing.assert_allclose(recall(fresh, distances, rows=200), chance(config, distances), atol=0.15)
