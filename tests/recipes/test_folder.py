"""What a made model is asked before it is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.ember import EmberConfig
from recipes.folder import Exam
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
