"""Reading logs: damaged ones, and whose judge the facts describe."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from em_core.errors import UserError
from em_eval.answers import judge_facts, read_log
from em_eval.judge.embedded import read_facts


def log(first: str, *scorers: str) -> Any:
    """A log whose task ran judge `first`, with judged answers of `scorers` in that order."""
    score = SimpleNamespace(metadata={"judgement": {}})
    metadata = {"judge": first, "judge_facts": {"in_words": f"facts of {first}"}}
    sample = SimpleNamespace(scores=dict.fromkeys(scorers, score))
    return SimpleNamespace(eval=SimpleNamespace(metadata=metadata), samples=[sample])


def test_facts_are_of_the_judge_whose_scores_count() -> None:
    """A log scored again keeps the facts of its first judge."""
    assert judge_facts(log("model", "model_judge")) == {"in_words": "facts of model"}
    again = log("model", "model_judge", "embedded_judge")
    assert judge_facts(again) == read_facts()
    assert judge_facts(again, "model_judge") == {"in_words": "facts of model"}
    assert judge_facts(log("embedded", "embedded_judge", "model_judge")) == {}
    assert judge_facts(log("mine", "plugin_judge")) == {"in_words": "facts of mine"}


def test_a_log_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "2026-01-01T00-00-00_em_x.eval"
    damaged.write_bytes(b"not a zip")
    with pytest.raises(UserError, match="is not a readable Inspect log"):
        read_log(damaged)
    with pytest.raises(UserError, match="does not exist"):
        read_log(tmp_path / "nowhere.eval")
