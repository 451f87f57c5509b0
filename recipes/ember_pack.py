"""ember's data as pieces that travel to a machine with an accelerator, and a folder again there.

    python -m recipes.ember_pack pack build/ember-pack --corpus build/corpus --data ../shared/data \\
        --tokenizer build/ember/tokenizer
    python -m recipes.ember_pack unpack build/ember-pack build/material

A pack is `manifest.json` and folders `piece-00`, `piece-01`, ... of .xz files, each folder within the limit of what
can be sent at once. A file is named by a hash of what it holds: a packing that was killed goes on where it stood, and
the same data give the same pack (with the same version of liblzma).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import lzma
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from recipes.ember import EmberConfig
from recipes.ember_data import Material, make_tokenizer
from recipes.ember_material import files_of, stored
from recipes.folder import data_rows, origin
from smelt.core.errors import DataError, SmeltError
from smelt.data.corpus.shards import manifest_of, write_whole

MIB = 1 << 20
# 64 MiB is what travels at once, the repository (10 MiB) with it.
LIMIT_BYTES = 52 * MIB
_PRESET = 9
_AT_ONCE = 2
_MADE = ".made"  # where files wait for their piece
_SPARE_BYTES = 4096  # headers, and what xz adds to content that cannot be packed


@dataclass(frozen=True, kw_only=True)
class Part:
    """One .xz file. `name` is the file it is the `number`-th part of; `content_sha256` of what it holds, unpacked."""

    file: str
    name: str
    number: int
    sha256: str
    num_bytes: int
    content_sha256: str
    content_bytes: int


def pack(
    folder: Path,
    files: Iterable[tuple[str, bytes]],
    told: dict[str, Any],
    *,
    limit_bytes: int = LIMIT_BYTES,
    about_bytes: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> list[Part]:
    """Write the pack, or go on with it; `told` goes into its manifest. Two files are packed at a time.

    about_bytes: what the files hold, as far as known, for the time left that `say` is told.
    Raises DataError for a limit too small for anything.
    """
    if limit_bytes <= 2 * _SPARE_BYTES:
        raise DataError(f"pieces: sought a limit above {2 * _SPARE_BYTES} bytes, found {limit_bytes}")
    began = time.monotonic()
    cuts, parts = _cut(files, limit_bytes - _SPARE_BYTES), list[Part]()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(islice(cuts, _AT_ONCE)):  # no more than these in memory
            parts += pool.map(lambda cut: _packed(folder, *cut), some)
            done = sum(part.content_bytes for part in parts)
            rate = done / (time.monotonic() - began)
            left = max(0, about_bytes - done) / rate
            say(f"{done / 1e6:.0f} of about {about_bytes / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s, about {left:.0f} s left")
    placed = _placed(folder, parts, limit_bytes)
    content = json.dumps({"format": 1, **told, "parts": [asdict(part) for part in placed]}, indent=1) + "\n"
    write_whole(folder / "manifest.json", content.encode())
    kept = {folder / part.file for part in placed}
    for path in sorted(folder.glob("*/*.xz*")):
        if path not in kept:
            path.unlink()
    for path in [folder / _MADE, *folder.glob("piece-*")]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return placed


def _cut(files: Iterable[tuple[str, bytes]], most: int) -> Iterator[tuple[str, int, bytes]]:
    for name, content in files:
        for number, start in enumerate(range(0, max(1, len(content)), most)):
            yield name, number, content[start : start + most]


def _packed(folder: Path, name: str, number: int, content: bytes) -> Part:
    """The part, from wherever an earlier call left it; its `file` is where it lies now."""
    digest = hashlib.sha256(content).hexdigest()
    file = hashlib.sha256(f"{name}/{number}/{digest}".encode()).hexdigest()[:24] + ".xz"
    path = next(folder.glob(f"*/{file}"), folder / _MADE / file)
    if not path.is_file():
        write_whole(path, lzma.compress(content, preset=_PRESET))
    packed = path.read_bytes()
    return Part(
        file=str(path.relative_to(folder)),
        name=name,
        number=number,
        sha256=hashlib.sha256(packed).hexdigest(),
        num_bytes=len(packed),
        content_sha256=digest,
        content_bytes=len(content),
    )


def _placed(folder: Path, parts: Sequence[Part], limit_bytes: int) -> list[Part]:
    """Every part in its piece: in order, the next piece beginning where one is full."""
    placed: list[Part] = []
    piece, held = 0, 0
    for part in parts:
        if held and held + part.num_bytes > limit_bytes:
            piece, held = piece + 1, 0
        held += part.num_bytes
        target = folder / f"piece-{piece:02d}" / Path(part.file).name
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / part.file).replace(target)
        placed.append(dataclasses.replace(part, file=str(target.relative_to(folder))))
    return placed


def read_manifest(folder: Path) -> dict[str, Any]:
    """The pack's manifest. Raises DataError where there is none."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(f"{folder.name}: sought a finished pack, found no manifest.json")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def unpack(folder: Path, target: Path) -> None:
    """Write the pack's files to `target`, each checked by hash and whole or not there; those there are left.

    Raises DataError where pieces have not come, or came damaged.
    """
    parts = [Part(**one) for one in read_manifest(folder)["parts"]]
    if missing := sorted({part.file.split("/")[0] for part in parts if not (folder / part.file).is_file()}):
        raise DataError(f"{folder.name}: sought every file of its pieces, not all of {', '.join(missing)} have come")
    by_name: dict[str, list[Part]] = {}
    for part in parts:
        by_name.setdefault(part.name, []).append(part)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: _unpacked(folder, target, name, by_name[name]), by_name))


def _unpacked(folder: Path, target: Path, name: str, parts: Sequence[Part]) -> None:
    if (target / stored(name, b"")[0]).is_file():
        return
    content = b"".join(_content(folder, part) for part in sorted(parts, key=lambda part: part.number))
    held, content = stored(name, content)
    write_whole(target / held, content)


def _content(folder: Path, part: Part) -> bytes:
    packed = (folder / part.file).read_bytes()
    if (found := hashlib.sha256(packed).hexdigest()) != part.sha256:
        raise DataError(f"{part.file}: sought sha256 {part.sha256[:16]}..., found {found[:16]}...; send it again")
    content = lzma.decompress(packed)
    if hashlib.sha256(content).hexdigest() != part.content_sha256:
        raise DataError(f"{part.file}: it holds something else than part {part.number} of {part.name}; pack again")
    return content


def pack_ember(
    folder: Path,
    *,
    data: Path | None,
    corpus: Path | None,
    tokenizer: Path | None = None,
    config: EmberConfig | None = None,
    limit_bytes: int = LIMIT_BYTES,
    say: Callable[[str], None] = lambda line: None,
) -> list[Part]:
    """Everything ember learns from that no code makes, and its tokenizer, which is trained where none is given."""
    config = config or EmberConfig()
    material = Material.load(data, corpus, config.seed)
    if tokenizer is None:
        tokenizer = folder / "tokenizer"
        if not (tokenizer / "tokenizer.json").is_file():
            sizes = (config.vocab_size, config.tokenizer_examples, config.tokenizer_documents)
            make_tokenizer(material, *sizes, config.seed).save(tokenizer)
    told = {"licences": data_rows(data, corpus), "origin": origin(data, corpus)}
    shards = [] if corpus is None else manifest_of(corpus)["shards"]
    about = sum(shard["num_bytes"] for shard in shards if shard["split"] == "train")
    files = files_of(material, tokenizer)
    return pack(folder, files, told, limit_bytes=limit_bytes, about_bytes=about, say=say)


def main(arguments: Sequence[str] | None = None) -> None:
    """`pack` or `unpack`."""
    parser = argparse.ArgumentParser(prog="ember_pack", description="ember's data as pieces that travel")
    commands = parser.add_subparsers(dest="command", required=True)
    packs = commands.add_parser("pack")
    packs.add_argument("folder", type=Path)
    for name in ("corpus", "data", "tokenizer"):
        packs.add_argument(f"--{name}", type=Path)
    packs.add_argument("--limit-mib", type=float, default=LIMIT_BYTES / MIB)
    unpacks = commands.add_parser("unpack")
    unpacks.add_argument("folder", type=Path)
    unpacks.add_argument("target", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "unpack":
            unpack(given.folder, given.target)
            return
        parts = pack_ember(
            given.folder,
            data=given.data,
            corpus=given.corpus,
            tokenizer=given.tokenizer,
            limit_bytes=round(given.limit_mib * MIB),
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except SmeltError as error:
        sys.exit(f"ember_pack: {error}")
    sizes: dict[str, int] = {}
    for part in parts:
        piece = part.file.split("/")[0]
        sizes[piece] = sizes.get(piece, 0) + part.num_bytes
    for piece, size in sizes.items():
        print(f"{piece}: {size / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
