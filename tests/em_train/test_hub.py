"""Hub datasets: pinned or refused; read from a snapshot by the real `datasets`, and asked for at the commit."""

import json

import pytest

from em_core.errors import UserError
from em_train.datasets import load_dataset, read_dataset
from em_train.datasets.hub import parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(5)]


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A copy of a dataset's repository, in the place below EM_DATA_DIR where it is looked for."""
    folder = tmp_path / "data" / "hub" / "owner__name" / COMMIT
    folder.mkdir(parents=True)
    monkeypatch.setenv("EM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def write(path, rows) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def test_rows_of_a_snapshot(snapshot):
    write(snapshot / "train.jsonl", ROWS)
    write(snapshot / "test.jsonl", ROWS[:2])
    found = load_dataset(f"hub:owner/name@{COMMIT}")
    assert [row.question for row in found.rows] == [f"q{i}" for i in range(5)]
    assert found.rows[3].messages[-1] == {"role": "assistant", "content": "a3"}
    assert found.rows[3].where == "owner/name:train[3]"
    assert (found.name, found.source) == (f"owner__name@{COMMIT[:8]}", str(snapshot))
    other = load_dataset(f"hub:owner/name@{COMMIT}:test")
    assert len(other.rows) == 2 and other.sha256 != found.sha256


def test_messages_in_parquet(snapshot):
    import pandas

    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pandas.DataFrame({"messages": [turns, turns]}).to_parquet(snapshot / "train.parquet")
    assert [row.messages for row in load_dataset(f"hub:owner/name@{COMMIT}").rows] == [turns, turns]


def test_faulty_rows_are_named_with_their_index(snapshot):
    write(snapshot / "train.jsonl", [ROWS[0], {"prompt": "p", "completion": None}])
    reference = f"hub:owner/name@{COMMIT}"
    assert [refused.where for refused in read_dataset(reference).refused] == ["owner/name:train[1]"]
    with pytest.raises(UserError, match=r"owner/name:train\[1\]: needs"):
        load_dataset(reference)


def test_unknown_split_is_one_line(snapshot):
    write(snapshot / "train.jsonl", ROWS)
    with pytest.raises(UserError, match="could not load hub:owner/name@.*:validation"):
        load_dataset(f"hub:owner/name@{COMMIT}:validation")


@pytest.mark.parametrize(
    "reference, reason",
    [
        ("hub:owner/name", "names no revision"),
        ("hub:owner/name@", "names no revision"),
        ("hub:owner/name:train", "names no revision"),
        ("hub:owner/name@main", "can move"),
        (f"hub:owner/name@{COMMIT[:12]}", "can move"),
        (f"hub:name@{COMMIT}", "names no hub dataset"),
        (f"hub:../name@{COMMIT}", "names no hub dataset"),
        ("hub:", "names no hub dataset"),
    ],
)
def test_reference_that_is_not_pinned_or_none_is_refused(reference, reason):
    with pytest.raises(UserError, match=reason) as caught:
        load_dataset(reference)
    assert "hub:owner/name@COMMIT[:SPLIT]" in str(caught.value)


def test_split_may_be_a_slice():
    assert parse(f"hub:owner/name@{COMMIT}:train[:10%]") == ("owner/name", COMMIT, "train[:10%]")


def test_the_hub_is_asked_for_the_commit(monkeypatch):
    asked = {}

    def load(path, **options):
        asked.update(options, path=path)
        return ROWS

    monkeypatch.delenv("EM_DATA_DIR", raising=False)
    monkeypatch.setattr("datasets.load_dataset", load)
    assert len(load_dataset(f"hub:owner/name@{COMMIT}:test").rows) == 5
    assert asked == {"path": "owner/name", "revision": COMMIT, "split": "test"}


def test_no_network_is_one_line(monkeypatch):
    monkeypatch.delenv("EM_DATA_DIR", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not load hub:nobody/nothing") as caught:
        load_dataset(f"hub:nobody/nothing@{COMMIT}")
    assert "EM_DATA_DIR" in str(caught.value)
