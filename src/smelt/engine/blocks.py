"""Who owns which key/value block, and which blocks hold what: reference counts, prefix cache, eviction.

A block is in exactly one state: *free* (nothing of worth in it), *used* (one reference per sequence that reads it),
or *cached* (no reference, contents known by a hash, first to be evicted when free blocks run out, least recently
used first). A used block may have a hash too; then others may share it. Only full blocks have a hash.

The hash of a block is chained: it covers its parent's hash, its own tokens and their privileges, and through the root
the tenant, the adapter and the media, so equal hashes mean equal keys and values. BLAKE2b with 256 bits: nobody can
construct a collision, so no answer can read another tenant's block.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from smelt.core.errors import EngineError

BlockHash = bytes
_DIGEST_BYTES = 32


def root_hash(*, tenant: str, adapter: str, media: Sequence[bytes] = ()) -> BlockHash:
    """The parent of a sequence's first block.

    media: content hashes of the prompt's media. They stand at the root, so prompts that differ in any image share
    nothing, whatever text comes before it.
    """
    root = blake2b(digest_size=_DIGEST_BYTES, person=b"smelt-kv-root")
    for field in (tenant.encode("utf-8", "surrogatepass"), adapter.encode("utf-8", "surrogatepass"), *media):
        root.update(len(field).to_bytes(8, "little"))
        root.update(field)
    return root.digest()


def block_hash(parent: BlockHash, token_ids: array[int], privileges: bytes | bytearray) -> BlockHash:
    """The hash of one full block. All three parts have a fixed size, so no two inputs run together."""
    digest = blake2b(parent, digest_size=_DIGEST_BYTES, person=b"smelt-kv-block")
    digest.update(token_ids)
    digest.update(privileges)
    return digest.digest()


class BlockPool:
    """`num_blocks` key/value blocks. Integers only: what a block holds is the runner's business."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._refs = [0] * num_blocks
        self._hashes: list[BlockHash | None] = [None] * num_blocks
        self._by_hash: dict[BlockHash, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack; low ids first, which keeps the pool's pages warm
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_available(self) -> int:
        """Blocks `allocate` can hand out: free ones and cached ones nobody reads."""
        return len(self._free) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks with at least one reference."""
        return self.num_blocks - self.num_available

    @property
    def num_cached(self) -> int:
        """Blocks without a reference whose contents can still be found."""
        return len(self._cached)

    def find(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The longest run of known blocks from the start of `hashes`; takes no reference."""
        found: list[int] = []
        for one in hashes:
            if (block := self._by_hash.get(one)) is None:
                break
            found.append(block)
        return found

    def num_unreferenced(self, blocks: Iterable[int]) -> int:
        """How many of these blocks `share` would take out of `num_available`."""
        return sum(self._refs[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Take a reference to blocks that `find` gave."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._cached[block]
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each and no hash. Ask `num_available` first."""
        if count > self.num_available:
            raise EngineError(f"sought {count} key/value blocks, found {self.num_available} available")
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _none = self._cached.popitem(last=False)
                self._forget(block)
            self._refs[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each, the last block first, so that a prefix outlives its continuation."""
        for block in reversed(blocks):
            if self._refs[block] < 1:
                raise EngineError(f"key/value block {block} released more often than taken")
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def publish(self, block: int, contents: BlockHash) -> None:
        """A used block is full and computed: let others find it. A second block of equal contents stays private."""
        if contents not in self._by_hash and self._hashes[block] is None:
            self._by_hash[contents] = block
            self._hashes[block] = contents

    def forget_all(self) -> None:
        """Drop every hash: nothing computed so far will be found again. References stay."""
        self._by_hash.clear()
        self._hashes = [None] * self.num_blocks
        self._free.extend(self._cached)
        self._cached.clear()

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise EngineError unless every block is in one state and referenced once per owner that lists it."""
        expected = [0] * self.num_blocks
        for blocks in owners:
            for block in blocks:
                expected[block] += 1
        if expected != self._refs:
            wrong = [b for b in range(self.num_blocks) if expected[b] != self._refs[b]]
            raise EngineError(f"reference counts of blocks {wrong} differ from what their owners hold")
        used = [block for block, refs in enumerate(self._refs) if refs > 0]
        if sorted([*self._free, *self._cached, *used]) != list(range(self.num_blocks)):
            raise EngineError("a block is in no state or in two: free, cached and used do not partition the pool")
        hashed = {contents: block for block, contents in enumerate(self._hashes) if contents is not None}
        if hashed != self._by_hash:
            raise EngineError("the prefix cache and the blocks disagree about contents")
        if any(self._hashes[block] is not None for block in self._free):
            raise EngineError("a free block is still in the prefix cache")
        if any(self._hashes[block] is None for block in self._cached):
            raise EngineError("a cached block has no hash")

    def _forget(self, block: int) -> None:
        contents = self._hashes[block]
        if contents is not None:
            del self._by_hash[contents]
            self._hashes[block] = None
