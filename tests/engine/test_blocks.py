"""The block pool: states, references, eviction, and hashes that nothing can confuse."""

from __future__ import annotations

from array import array
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.core.errors import EngineError
from smelt.engine.blocks import BlockPool, block_hash, root_hash


def name(i: int) -> bytes:
    return b"contents %d" % i


def test_blocks_go_from_free_to_used_to_cached_and_back():
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.publish(blocks[0], name(0))
    assert (pool.num_used, pool.num_cached, pool.num_available) == (2, 0, 1)
    pool.release(blocks)
    assert (pool.num_used, pool.num_cached, pool.num_available) == (0, 1, 3)
    assert pool.find([name(0), name(1)]) == [blocks[0]]
    pool.share([blocks[0]])
    pool.check_integrity([[blocks[0]]])
    assert (pool.num_used, pool.num_cached) == (1, 0)


def test_free_blocks_go_first_then_the_least_recently_used_prefix_tail():
    """Of a chain a-b-c the end is evicted first: b without c is worth something, c without b is not."""
    pool = BlockPool(4)
    chain = pool.allocate(3)
    for i, block in enumerate(chain):
        pool.publish(block, name(i))
    pool.release(chain)
    pool.allocate(1)  # the free one
    assert len(pool.find([name(0), name(1), name(2)])) == 3
    pool.allocate(1)
    assert pool.find([name(0), name(1), name(2)]) == chain[:2]
    pool.allocate(1)
    assert pool.find([name(0), name(1), name(2)]) == chain[:1]


def test_use_makes_a_block_recent():
    pool = BlockPool(2)
    old, new = pool.allocate(2)
    pool.publish(old, name(0))
    pool.publish(new, name(1))
    pool.release([old])
    pool.release([new])
    pool.share([old])
    pool.release([old])
    assert pool.allocate(1) == [new]


def test_find_stops_at_the_first_unknown_block():
    pool = BlockPool(3)
    for i, block in enumerate(pool.allocate(3)):
        if i != 1:
            pool.publish(block, name(i))
    assert len(pool.find([name(0), name(1), name(2)])) == 1


def test_the_second_of_two_equal_blocks_stays_private():
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, name(0))
    pool.publish(second, name(0))
    assert pool.find([name(0)]) == [first]
    pool.release([second])
    assert pool.num_cached == 0
    pool.check_integrity([[first]])


def test_forget_all_keeps_references_and_drops_contents():
    pool = BlockPool(2)
    held, cached = pool.allocate(2)
    pool.publish(held, name(0))
    pool.publish(cached, name(1))
    pool.release([cached])
    pool.forget_all()
    assert pool.find([name(0)]) == [] and pool.find([name(1)]) == []
    pool.check_integrity([[held]])
    pool.release([held])
    assert (pool.num_available, pool.num_cached) == (2, 0)


def test_misuse_is_an_error_and_not_a_corruption():
    pool = BlockPool(1)
    with pytest.raises(EngineError, match="sought 2 key/value blocks, found 1"):
        pool.allocate(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(EngineError, match="released more often"):
        pool.release(blocks)


@pytest.mark.parametrize("damage", ["leak", "double", "stale hash", "wrong owner"])
def test_check_integrity_sees_damage(damage):
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.publish(blocks[0], name(0))
    owners = [blocks]
    pool.check_integrity(owners)
    if damage == "leak":
        pool._free.pop()
    elif damage == "double":
        pool._free.append(blocks[0])
    elif damage == "stale hash":
        pool._hashes[blocks[0]] = None
    else:
        owners = [blocks[:1]]
    with pytest.raises(EngineError):
        pool.check_integrity(owners)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8), st.data())
def test_random_use_keeps_the_books_right(num_blocks, data):
    """Against a model that only counts: who holds which block, and which blocks have contents."""
    pool = BlockPool(num_blocks)
    owners: list[list[int]] = []
    published = 0
    for _ in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["allocate", "publish", "release", "share", "forget"]))
        if action == "allocate" and pool.num_available:
            owners.append(pool.allocate(data.draw(st.integers(1, pool.num_available))))
        elif action == "publish" and owners:
            pool.publish(data.draw(st.sampled_from(data.draw(st.sampled_from(owners)))), name(published))
            published += 1
        elif action == "release" and owners:
            pool.release(owners.pop(data.draw(st.integers(0, len(owners) - 1))))
        elif action == "share" and published:
            found = pool.find([name(data.draw(st.integers(0, published - 1)))])
            pool.share(found)
            owners += [found] if found else []
        elif action == "forget":
            pool.forget_all()
        pool.check_integrity(owners)
        held = Counter(block for blocks in owners for block in blocks)
        assert pool.num_used == len(held)


def test_a_hash_covers_parent_tokens_and_privileges():
    root = root_hash(tenant="", adapter="")
    hashes = {
        block_hash(root, array("i", [1, 2]), b"\0\0"),
        block_hash(root, array("i", [2, 1]), b"\0\0"),
        block_hash(root, array("i", [1, 2]), b"\0\2"),
        block_hash(block_hash(root, array("i", [1, 2]), b"\0\0"), array("i", [1, 2]), b"\0\0"),
    }
    assert len(hashes) == 4
    assert block_hash(root, array("i", [1, 2]), bytearray(2)) in hashes


def test_a_root_covers_tenant_adapter_and_media_without_running_together():
    roots = [
        root_hash(tenant="", adapter=""),
        root_hash(tenant="ab", adapter=""),
        root_hash(tenant="a", adapter="b"),
        root_hash(tenant="", adapter="ab"),
        root_hash(tenant="", adapter="", media=[b"ab"]),
        root_hash(tenant="", adapter="", media=[b"a", b"b"]),
        root_hash(tenant="", adapter="", media=[b""]),
    ]
    assert len(set(roots)) == len(roots)
