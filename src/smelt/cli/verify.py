"""`smelt verify`: whether a folder still is what its lineage says."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def verify_command(folder: Path, *, as_json: bool) -> None:
    """Print what was hashed again, what broke where and what cannot be told; exit status 1 where something broke."""
    from smelt.compress.chain.verify import verify

    found = verify(folder)
    if as_json:
        told = {"checked": found.checked, "problems": found.problems, "unknown": found.unknown}
        print(json.dumps({"sound": found.sound, **told}, ensure_ascii=False))
    else:
        for mark, lines in (("ok", found.checked), ("BROKEN", found.problems), ("unknown", found.unknown)):
            for line in lines:
                print(f"{mark:<8} {line}")
        print("sound" if found.sound else "not sound")
    if not found.sound:
        sys.exit(1)
