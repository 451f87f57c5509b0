"""A published folder is what its lineage says, or verify names what broke."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from smelt.checkpoint import Checkpoint, open_checkpoint
from smelt.checkpoint.hub import SHIPPED
from smelt.compress.chain.publish import publish, write_report
from smelt.compress.chain.report import report_of
from smelt.compress.chain.run import run_chain
from smelt.compress.chain.verify import verify
from smelt.core.errors import CheckpointError
from smelt.model.decoder import Decoder
from smelt.train.finetune.folder import save_tuned
from smelt.train.lineage import bare, chained, read_chain
from tests.compress.chain.fakes import Scaled, chain, quiet, small_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def published(source: Path, folder: Path) -> Path:
    plan = chain(source, Scaled(factor=0.5), Scaled(factor=2.0))
    outcome = run_chain(plan, source, folder, quiet())
    report = report_of(plan, outcome, name="small")
    write_report(report, folder)
    data = [{"name": "random rows", "licence": "none", "use": "all"}]
    return publish(outcome, report, open_checkpoint(source), data, folder / "model", name="smaller")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verify")
    published(small_source(made / "source"), made / "out")
    return made / "out"


def test_a_fresh_folder_is_sound(folder: Path) -> None:
    found = verify(folder)
    assert found.sound
    assert not found.unknown
    assert len(found.checked) == 4, "lineage, files, two stages"
    assert verify(folder / "model").sound


def test_a_flipped_byte_in_any_file_is_found(folder: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (folder / "model").iterdir())
    assert {"model.safetensors", "card.json", "report.json", "report.html", "lineage.json", "config.json"} <= {*names}
    for name in names:
        copy = tmp_path / name
        copytree(folder / "model", copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        found = verify(copy)
        assert not found.sound, name
        assert any(name in problem for problem in found.problems)


def test_a_file_that_went_or_came_is_found(folder: Path, tmp_path: Path) -> None:
    copytree(folder / "model", tmp_path / "went")
    (tmp_path / "went" / "tokenizer_config.json").unlink()
    assert verify(tmp_path / "went").problems == ["tokenizer_config.json is missing"]
    copytree(folder / "model", tmp_path / "came")
    (tmp_path / "came" / "generation_config.json").write_text("{}")
    assert verify(tmp_path / "came").problems == ["not in the lineage: generation_config.json"]


def lineage_with(folder: Path, copy: Path, index: int, change: dict[str, Any], *, anew: bool) -> Path:
    """A copy whose entry `index` was changed; with `anew` the forger made the hashes of the chain anew."""
    copytree(folder / "model", copy)
    chain = read_chain(copy)
    chain[index] = chain[index] | change
    (copy / "lineage.json").write_text(json.dumps({"chain": chained(bare(chain)) if anew else chain}))
    return copy


def test_an_edited_entry_is_found_whichever_it_is(folder: Path, tmp_path: Path) -> None:
    for i, entry in enumerate(read_chain(folder / "model")):
        copy = lineage_with(folder, tmp_path / str(i), i, {"wall_s": -1.0}, anew=False)
        assert any(f"entry {i} ({entry['step']})" in problem for problem in verify(copy).problems)


def test_hashes_made_anew_do_not_hide_another_parent_or_other_files(folder: Path, tmp_path: Path) -> None:
    chain = read_chain(folder / "model")
    (first, second) = [i for i, entry in enumerate(chain) if entry["step"] == "scaled"]
    other = lineage_with(folder, tmp_path / "a", second, {"input": "0" * 64}, anew=True)
    assert verify(other).problems == [f"lineage.json: entry {second} (scaled) began with another artifact"]
    files = {**chain[first]["files"], "model.safetensors": "0" * 64}
    other = lineage_with(folder, tmp_path / "b", first, {"files": files}, anew=True)
    assert verify(other).problems == [f"lineage.json: entry {first} (scaled): its files do not make its hash"]
    last = lineage_with(folder, tmp_path / "c", -1, {"files": {}}, anew=True)
    assert "not in the lineage" in verify(last).problems[0]


def test_a_changed_stage_is_named(folder: Path, tmp_path: Path) -> None:
    copytree(folder, tmp_path / "copy")
    stage = sorted((tmp_path / "copy" / "stages").iterdir())[0]
    (stage / "out" / "smelt.json").write_text("{}")
    assert any(stage.name in problem for problem in verify(tmp_path / "copy").problems)
    document = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(document | {"output": "0" * 64}))
    assert any("stage.json was changed" in problem for problem in verify(tmp_path / "copy").problems)


def test_the_lineage_tells_all_it_should(folder: Path) -> None:
    chain = read_chain(folder / "model")
    assert [entry["step"] for entry in chain] == ["source", "material", "scaled", "scaled", "published"]
    source, material, first, second, last = chain
    assert first["input"] == source["artifact"]
    assert second["input"] == first["output"]
    assert material["data"] == [{"name": "random rows", "licence": "none", "use": "all"}]
    assert second["settings"] == {"factor": 2.0, "pause_s": 0.0}
    assert {"libraries", "hardware"} == set(second["made_with"])
    assert second["made_with"]["libraries"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert second["measured"]["bits_per_byte"]["n"] > 0
    assert second["wall_s"] > 0
    assert set(last["files"]) == {path.name for path in (folder / "model").iterdir()} - {"lineage.json"}


def test_the_card_goes_on_and_is_completed(folder: Path) -> None:
    card = open_checkpoint(folder / "model").card
    assert card is not None
    report = json.loads((folder / "report.json").read_text())
    assert card["name"] == "smaller"
    assert card["stages"] == ["scaled", "scaled"]
    assert card["change"] == report["change"]
    assert card["measured"]["bits_per_byte"] == report["rows"][-1]["measured"]["bits_per_byte"]
    assert card["teacher"]["bits_per_byte"] == report["rows"][0]["measured"]["bits_per_byte"]


def tuned(source: Path, folder: Path, dtype: Any) -> Checkpoint:
    """A folder with a lineage from before the chain."""
    base = open_checkpoint(source)
    model = Decoder.from_tensors(base.config, base.tensors)
    save_tuned(folder, base, model, {"name": "tuned", "licence": "Apache-2.0"}, [{"step": "tune"}], dtype=dtype)
    return open_checkpoint(folder)


def test_a_lineage_goes_on_where_the_source_has_one(tmp_path: Path) -> None:
    tuned(small_source(tmp_path / "source"), tmp_path / "tuned", "F32")
    made = published(tmp_path / "tuned", tmp_path / "out")
    steps = [entry["step"] for entry in read_chain(made)]
    assert steps == ["base", "tune", "weights", "source", "material", "scaled", "scaled", "published"]
    assert verify(made).sound
    card = open_checkpoint(made).card
    assert card is not None
    assert card["licence"] == "Apache-2.0"
    broken = json.loads((tmp_path / "tuned" / "lineage.json").read_text())
    broken["chain"][1]["step"] = "other"
    (tmp_path / "tuned" / "lineage.json").write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match="was changed: entry 1"):
        published(tmp_path / "tuned", tmp_path / "again")


def test_an_old_lineage_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    tuned(small_source(tmp_path / "source"), tmp_path / "exact", "F32")
    found = verify(tmp_path / "exact")
    assert found.sound
    assert "weights: as the lineage names them" in found.checked
    weights = tmp_path / "exact" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert verify(tmp_path / "exact").problems == ["weights: not those the lineage names"]
    tuned(tmp_path / "source", tmp_path / "rounded", "BF16")
    found = verify(tmp_path / "rounded")
    assert found.sound
    assert any("before they were stored as BF16" in line for line in found.unknown)


def test_shipped_models_verify() -> None:
    for folder in sorted(path.parent for path in SHIPPED.glob("*/lineage.json")):
        found = verify(folder)
        assert found.sound, found.problems


def test_a_folder_without_a_lineage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="sought a lineage"):
        verify(small_source(tmp_path / "source"))
    (tmp_path / "source" / "lineage.json").write_text("[]")
    assert not verify(tmp_path / "source").sound
