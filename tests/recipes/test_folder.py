"""What a made model is asked before it is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import folder
from recipes.ember import EmberConfig
from recipes.folder import Exam, keep_origin
from smelt.core.errors import InvalidRequestError
from smelt.data.tasks.about import Limits


def test_an_unknown_family_of_suites_is_refused() -> None:
    """ember named `bits`, which there is not, and would have been shipped without its bits per byte."""
    with pytest.raises(InvalidRequestError, match="bits"):
        Exam(per_language=1, per_size=0, data=None, extra=("bits",)).questions(Limits())


@pytest.mark.slow
def test_ember_is_asked_every_family_its_settings_name(shared_data: Path) -> None:
    """Families without named suites of their own (ifeval, xquad) were left out silently."""
    asked = Exam(per_language=1, per_size=1, data=shared_data, extra=EmberConfig().families).questions(Limits())
    suites = {one.suite for one in asked}
    for sought in ("bpb_en", "bpb_code", "ifeval", "xquad", "needle", "bfcl_simple_python", "clinc150"):
        assert any(name.startswith(sought) for name in suites), f"{sought} in {sorted(suites)}"


def test_questions_about_itself_have_the_models_own_limits() -> None:
    few = Exam(per_language=2, per_size=0, data=None)
    short, long = (few.questions(Limits(context_len=length)) for length in (4096, 131_072))
    differing = {one.suite for one, other in zip(short, long, strict=True) if one != other}
    assert differing == {"limits"}


def test_a_run_that_goes_on_with_other_code_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(code: str) -> dict[str, object]:
        monkeypatch.setattr(folder, "origin", lambda *_: {"code_sha256": code, "sources_sha256": {}})
        keep_origin(tmp_path, None)
        found: dict[str, object] = json.loads((tmp_path / "origin.json").read_text())
        return found

    assert told("a") == {"code_sha256": "a", "sources_sha256": {}}
    assert told("a") == {"code_sha256": "a", "sources_sha256": {}}
    (tmp_path / "run/state-00000007").mkdir(parents=True)
    assert told("b")["changed"] == [{"from": "state-00000007", "code_sha256": "b"}]
    assert told("b")["changed"] == [{"from": "state-00000007", "code_sha256": "b"}]
    assert told("a")["changed"] == [{"from": "state-00000007", "code_sha256": c} for c in "ba"]
