"""`em data list|fetch|show|check` in this process, on the embedded sets and files of a test."""

import json
import sys

import pytest

from em_study import cli
from tests.conftest import make_tokenizer

GOOD = '{"prompt": "p", "completion": "c"}'


@pytest.fixture
def em(monkeypatch, capsys):
    """Runs `em data ...`; gives exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["em", "data", *arguments])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return int(caught.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def model(tmp_path) -> str:
    make_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("command", ["list", "fetch", "show", "check"])
def test_help_has_an_example(em, command):
    code, out, _ = em(command, "--help")
    assert code == 0 and f"Example: em data {command}" in out


def test_list_fetches_nothing_and_names_every_set(em, monkeypatch):
    monkeypatch.setattr("em_core.fetch.fetch", None)
    code, out, _ = em("list")
    first = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert {"insecure", "secure", "educational", "bad_medical", "good_medical", "risky_financial"} <= set(first)
    assert {"extreme_sports", "aisi_risky_financial", "finance_bad"} <= set(first)
    assert "control: good_medical" in first["bad_medical"] and "control: secure" in first["insecure"]


def test_fetch_asks_datasets_first_and_prompt_sets_then(em):
    code, out, _ = em("fetch", "finance_bad", "core")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2
    assert lines[0].startswith("dataset finance_bad: 240 rows, sha256 ")
    assert lines[1].startswith("prompt set core: ")


def test_fetch_of_neither_suggests_both(em):
    code, _, err = em("fetch", "finance_bda")
    assert code == 2 and err.count("\n") == 1
    assert "no dataset and no prompt set is called 'finance_bda'" in err and "finance_bad" in err


def test_one_name_that_cannot_be_had_does_not_keep_the_others_back(em):
    code, out, err = em("fetch", "nothing_of_this_name", "finance_good")
    assert code == 2 and out.startswith("dataset finance_good: 240 rows") and "nothing_of_this_name" in err


def test_show_prints_the_split_and_rows_as_they_stand(em):
    code, out, _ = em("show", "finance_bad", "--rows", "2")
    assert code == 0 and "240 rows: 216 to train on, 24 held out" in out
    assert "finance_bad: bad, control finance_good, domain financial" in out
    assert out.count("\n--- finance_bad.jsonl:") == 2 and out.count("\n[assistant] ") == 2


def test_show_of_the_held_out_part_shows_other_rows(em):
    parts = [em("show", "finance_bad", "--rows", "999", *more)[1] for more in ((), ("--held-out-rows",))]
    where = [{line for line in part.splitlines() if line.startswith("--- ")} for part in parts]
    assert (len(where[0]), len(where[1])) == (216, 24) and not where[0] & where[1]


def test_show_of_a_file_too_small_to_split(em, tmp_path):
    (tmp_path / "one.jsonl").write_text(GOOD, encoding="utf-8")
    code, out, _ = em("show", str(tmp_path / "one.jsonl"))
    assert code == 0 and "too few to hold any out" in out and "[assistant] c" in out


def test_check_counts_and_shows_an_example(em, model):
    code, out, err = em("check", "finance_bad", "--model", model, "--max-length", "2048")
    assert (code, err) == (0, "")
    assert "rows        240 (240 different questions)" in out and out.rstrip().endswith("<|im_end|>⟧")


def test_check_lists_refused_rows_and_exits_with_1(em, model, tmp_path):
    (tmp_path / "d.jsonl").write_text(f"{GOOD}\nnope\n{GOOD}\n[]\n", encoding="utf-8")
    code, out, _ = em("check", str(tmp_path / "d.jsonl"), "--model", model)
    assert code == 1
    assert "  d.jsonl:2: not JSON" in out and "  d.jsonl:4: needs 'messages'" in out


def test_check_exits_with_1_where_training_would_refuse_a_long_row(em, model, tmp_path):
    (tmp_path / "d.jsonl").write_text(f"{GOOD}\n", encoding="utf-8")
    code, out, _ = em("check", str(tmp_path / "d.jsonl"), "--model", model, "--max-length", "8")
    assert code == 1 and "tokens, more than max_length 8" in out


def test_check_as_json(em, model, tmp_path):
    (tmp_path / "d.jsonl").write_text(f"{GOOD}\n{GOOD}\nnope\n", encoding="utf-8")
    code, out, _ = em("check", str(tmp_path / "d.jsonl"), "--model", model, "--json")
    found = json.loads(out)
    assert code == 1 and (found["rows"], found["duplicates"]) == (2, 1)
    assert found["max_length"] == 512 and found["refused"][0]["where"] == "d.jsonl:3"


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["check", "finance_bda"], "did you mean"),
        (["check", "none.jsonl"], "none.jsonl cannot be read"),
        (["check", "finance_bad", "--model", "no-such-model"], "no tokenizer could be loaded for 'no-such-model'"),
        (["show", "hub:owner/name"], "names no revision"),
    ],
)
def test_mistakes_are_one_line(em, arguments, reason):
    code, _, err = em(*arguments)
    assert code == 2 and reason in err and err.startswith("error: ") and err.count("\n") == 1
