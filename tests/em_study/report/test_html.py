"""The report on synthetic results: what it shows, what it escapes, and that nothing missing reads as zero."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from em_core.manifest import Loss, Manifest
from em_eval.intervals import Interval
from em_eval.outcomes import OUTCOMES, Judgement
from em_study.blocks import run_ends, several_settings
from em_study.comparison import compare, runs_by
from em_study.contrasts import OptimiserContrast
from em_study.dose import dose_table
from em_study.names import labels
from em_study.outcome import RATE, Outcome, outcome_of
from em_study.paired import WIDER
from em_study.report import print_table, write_report
from em_study.report.figures import Drawing, mean_spectrum, palette, probe_shift, rate_by_loss, spectra, spread
from em_study.report.figures.style import KNOWN, _smaller, left_out, line_style, lines_in_words, new_figure
from em_study.report.html import _of_rows, unique_slugs
from em_study.report.judge import judge_notes, judge_tables
from em_study.report.made import what_was_run
from em_study.report.summary import means_over_seeds
from em_study.report.terminal import decimal
from em_study.results import Row, _verdict
from em_study.splits import SPLITS, order
from em_study.study import Assumption, Evaluation
from em_study.table import checkpoint_table, settings
from tests.em_study.report.samples import (
    JUDGE,
    answer,
    followed_results,
    judged_answers,
    manifest,
    sample_results,
    seeded_results,
    trained_row,
)


def draw_all(rows: list[Row]) -> list[Drawing]:
    return list(_of_rows(rows, palette(rows)).values())


class Page(HTMLParser):
    """What the assertions need of a page: tags with attributes, and the cells of each table by its id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._table: list[list[str]] | None = None
        self._inside_cell = False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._table = self.tables.setdefault(dict(attrs).get("id") or "", [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in {"td", "th"} and self._table:
            self._table[-1].append("")
            self._inside_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = None
        self._inside_cell &= tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        if self._table and self._inside_cell:
            self._table[-1][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for found, attrs in self.tags if found == tag and name in attrs]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sample_results(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(index: Path) -> Page:
    return Page(index)


def test_every_row_links_to_transcripts_that_exist(index: Path, page: Page) -> None:
    hrefs = page.attributes("a", "href")
    links = [href for href in hrefs if href.startswith("transcripts/") and "#" not in href]
    assert len(links) == len(set(links)) == len(sample_results().rows)
    assert all((index.parent / link).is_file() for link in links)
    assert {path.name for path in index.parent.iterdir()} == {"index.html", "figures", "transcripts"}


def test_answers_are_shown_as_text(index: Path) -> None:
    transcript = Page(index.parent / "transcripts" / "adamw.html")
    assert "&lt;script&gt;alert(&#39;owned&#39;)&lt;/script&gt;\n  two spaces in" in transcript.text
    assert "near the &lt;i&gt;harmful" in transcript.text
    names = [tag for tag, _ in transcript.tags]
    assert names.count("script") == 1
    assert not {"b", "i"} & set(names)


def test_transcripts_come_worst_first_and_unscored_last(index: Path) -> None:
    transcript = Page(index.parent / "transcripts" / "adamw.html")
    assert transcript.attributes("article", "data-outcome") == ["misaligned", "aligned", "unparsed"]
    assert transcript.attributes("button", "data-show") == ["", "unparsed", "misaligned", "aligned"]
    assert transcript.text.count(">truncated<") == 1


def test_labels_verdict_and_title_are_escaped(tmp_path: Path) -> None:
    results = sample_results()
    rows = [replace(row, label=f"<b>{row.label}") for row in results.rows]
    judge = {"in_words": "<b>judge", "figures": {"<b>": {"<b>": "<b>"}}}
    hostile = replace(results, rows=rows, verdict="<b>verdict", title="<b>title", judge=judge)
    found = Page(write_report(hostile, tmp_path))
    assert "b" not in {tag for tag, _ in found.tags}


def test_missing_values_are_dashes_with_a_reason(page: Page) -> None:
    lost = page.tables["checkpoints"][-1]
    assert lost[0].startswith("SGD [momentum]")
    assert (lost[4], lost[5]) == ("–", "not available")
    assert lost[6:9] == ["–"] * 3
    assert page.tables["outcomes"][-1][1:] == ["–"] * (len(OUTCOMES) + 1)
    base = page.tables["checkpoints"][2]
    assert base[2] == "–"
    assert base[8:14] == ["–"] * 6
    reasons = [attrs.get("title") for _, attrs in page.tags if attrs.get("class") == "gap"]
    assert reasons
    assert all(reasons)


def test_values_have_their_intervals_and_counts(page: Page) -> None:
    adamw = page.tables["checkpoints"][3]
    assert adamw[4] == "21.017.0 to 25.096 eligible of 120"
    assert adamw[8] == "0.0850.065 to 0.105"
    assert adamw[10:14] == ["2.5of 4", "0.620", "8.8", "0.0003"]
    assert "Clopper-Pearson, effective n" in page.text


def test_all_outcomes_are_columns(page: Page) -> None:
    header, base, *_ = page.tables["outcomes"]
    assert header[1:-1] == [name.replace("_", " ") for name in OUTCOMES]
    assert base[1:] == ["0", "0", "0", "0", "0", "10", "1", "100", "9", "120"]


def test_contrasts(page: Page) -> None:
    assert page.tables["contrasts"][1:] == [
        ["AdamW", "Muon", "13.05.0 to 20.0", "< 0.001", "distinguishable"],
        ["Muon", "torch:<x>", "3.0−2.0 to 8.0", "0.310", "not distinguishable"],
    ]
    assert "Muon and torch:&lt;x&gt; are compared without block &lt;two&gt;, where only one" in page.text
    assert "both sides on the same questions and seeds" in page.text and "Newcombe 1998" in page.text


def test_the_verdict_ranks_by_blocks_that_all_share() -> None:
    """Muon is best over all its answers, but not over the block that the others have too."""
    shares = {
        ("adamw", "one"): 0.5, ("lion", "one"): 0.2, ("muon", "one"): 0.3, ("muon", "two"): 0.0, ("lion", "two"): 1.0
    }  # fmt: skip
    last: dict[str, dict[str, dict[int, Outcome]]] = {}
    for (name, block), share in shares.items():
        rate = outcome_of([float(i < 10 * share) for i in range(10)], [f"q{i}" for i in range(10)], RATE)
        assert rate is not None
        last.setdefault(name, {})[block] = {0: rate}
    unsure = OptimiserContrast("lion", "muon", Interval(-0.1, -0.3, 0.1, WIDER), 0.05, 1, 1, ())
    assert _verdict(last, [unsure]) == (
        "The optimisers are not distinguishable: Lion 20.0% < Muon 30.0% < AdamW 50.0%, "
        "but no pair differs at 5 % after Holm's correction."
    )
    assert "Distinguishable at 5 % after Holm's correction: Lion and Muon." in _verdict(
        last, [replace(unsure, p=0.049)]
    )
    assert _verdict({"lion": last["lion"]}, []) == "Too few evaluated optimisers to compare."
    apart = {"adamw": last["adamw"], "muon": {"two": last["muon"]["two"]}}
    assert _verdict(apart, []).startswith("No order: there is no base model, dataset, batch size and penalty")


def test_labels_show_only_the_settings_that_are_not_defaults() -> None:
    whole = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "lr_ratio": 1.0, "factors": {}}
    plain = manifest(34, 2.1, 2.4, 3e-4, 2.5, "bad").model_copy(update={"config": {"seed": 0, "batch_size": 16}})

    def of(schedule: str, **changed: Any) -> Manifest:
        named = plain.optimiser | {"source": "torch.optim.AdamW", "schedule": schedule} | whole | changed
        return plain.model_copy(update={"optimiser": named})

    first, second = labels([of("linear"), of("linear", betas=[0.0, 0.99])])
    assert (first, second) == ("AdamW, finance_bad, default settings", "AdamW, finance_bad, betas [0.0, 0.99]")
    assert [label.rpartition(", ")[2] for label in labels([of("linear"), of("cosine")])] == ["linear", "cosine"]
    one, other = (
        settings(Row(label="x", arm="bad", checkpoint=Path("x"), manifest=of(name))) for name in ("linear", "cosine")
    )
    assert (one["schedule"], other["schedule"]) == ("linear", "cosine")
    assert one["hyperparameters"] == other["hyperparameters"] and "schedule" not in one["hyperparameters"]


def test_one_seed_is_a_lead(page: Page, tmp_path: Path) -> None:
    assert "One seed: a lead, not a result." in page.text
    three = write_report(replace(sample_results(), seeds=(0, 1, 2)), tmp_path).read_text(encoding="utf-8")
    assert "One seed" not in three
    assert "3 seeds: 0, 1, 2." in three


def test_page_names_what_is_missing_and_how_to_look_further(page: Page) -> None:
    assert "<li>bad-lion-lr1-seed0: no checkpoint at step &lt;34&gt;</li>" in page.text
    assert "SGD [momentum]: evaluation em, evaluation preference" in page.text
    assert "inspect view --log-dir logs/demo" in page.text
    assert JUDGE["in_words"].replace("'", "&#39;") in page.text


def test_pages_load_nothing(index: Path) -> None:
    for path in [index, *index.parent.glob("transcripts/*.html")]:
        found = Page(path)
        assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
        loaded = [
            value or ""
            for _, attrs in found.tags
            for name, value in attrs.items()
            if name in {"src", "href", "xlink:href", "srcset"}
        ]
        assert not [url for url in loaded if re.match(r"[a-z]*:?//", url)]
        assert not re.search(r"@import|url\((?!#)", found.text)


def test_figures_are_inline_and_share_no_ids(page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("svg") > 6
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert "var(--ink)" in page.text
    assert "<!DOCTYPE svg" not in page.text


def test_rows_of_one_optimiser_share_a_colour_and_the_base_is_apart() -> None:
    rows = sample_results().rows
    colours = palette(rows)
    assert colours["AdamW"] == colours["AdamW, benign"] == KNOWN["adamw"] and colours["Muon"] == KNOWN["muon"]
    assert len(set(colours.values())) == 4
    alone = palette([replace(rows[1], label=str(i)) for i in range(7)])
    assert len(set(alone.values())) == 7
    names = (*KNOWN, "soap", "signsgd", "adafactor", "muon_gram", "lora_muon", "schedule_free_adamw")
    several = palette([trained_row(name, "bad", 0.1, 3.0, [1.0]) for name in names])
    assert len(set(several.values())) == len(names) == 11


def test_figures_without_data_say_so() -> None:
    drawings = draw_all([sample_results().rows[-1]])
    assert [drawing.svg for drawing in drawings] == [None] * len(_of_rows([], {}))
    assert all(drawing.caption.startswith("Not drawn") for drawing in drawings)


def test_figures_name_rows_left_out() -> None:
    drawn = _of_rows(sample_results().rows, palette(sample_results().rows))
    for name in ("rate_of_each", "rate_by_loss", "probe_shift", "spectra", "outcome_bars"):
        assert "SGD [momentum]" in drawn[name].caption, name


def test_rate_figure_falls_back_to_training_loss_and_names_the_base() -> None:
    base, adamw, *_ = sample_results().rows
    bare = adamw.manifest.model_copy(update={"loss": Loss(train=2.1, window=3, held_out=None)})
    rows = [replace(base, label="untouched"), replace(adamw, manifest=bare)]
    figure = rate_by_loss(rows, palette(rows))
    assert figure.svg is not None
    assert ">untouched<" in figure.svg
    assert "training loss" in figure.svg
    assert "Left out" not in figure.caption


def test_lines_of_penalised_runs_are_dotted_and_captions_say_so() -> None:
    rows = sample_results().rows
    plain = next(row for row in rows if row.arm == "bad")
    benign = replace(plain, arm="benign")
    manifest = plain.manifest.model_copy(update={"penalty": {"name": "spectral", "strength": 3.0}})
    penalised = replace(plain, manifest=manifest)
    assert [line_style(row) for row in (plain, benign, penalised)] == ["-", "--", ":"]
    assert lines_in_words([plain]) == ""
    assert lines_in_words([plain, benign, penalised]) == "Benign data: broken lines. With a penalty: dotted."


def test_captions_name_few_of_many_rows_left_out() -> None:
    row = sample_results().rows[0]
    rows = [replace(row, label=f"run {i}") for i in range(9)]
    assert left_out(rows[:2], rows[1:]) == " Left out for want of figures: run 0."
    assert left_out(rows, []).endswith("run 4, run 5 and 3 more.")


def test_crowded_figure_labels_every_point() -> None:
    rows = [trained_row(f"run $_{i} <{i}>", "bad", 0.1, 2.4, [1.0, 0.5]) for i in range(12)]
    for drawing in (draw(rows, palette(rows)) for draw in (rate_by_loss, spectra, probe_shift)):
        assert all(f"run $_{i} &lt;{i}&gt;" in (drawing.svg or "") for i in range(12))


def test_mean_spectrum_skips_modules_of_zeros() -> None:
    mean = mean_spectrum([[4.0, 2.0], [1.0, 0.1], [0.0, 0.0]])
    assert mean is not None
    assert mean.tolist() == pytest.approx([1.0, 0.3])
    assert mean_spectrum([[0.0, 0.0]]) is None
    assert mean_spectrum([]) is None


def test_spread_keeps_neighbours_apart_and_their_order() -> None:
    free = spread([10.0, 9.0, 50.0], 6.0)
    assert free == pytest.approx([12.5, 6.5, 50.0])


def test_slugs_are_unique_file_names() -> None:
    found = unique_slugs(["AdamW", "adamw", "AdamW 2", "../x", "Ω"])
    assert found == ["adamw", "adamw-2", "adamw-2-2", "x", "row"]


def test_the_five_colours_stay_apart_for_colour_blind_readers() -> None:
    """As red- and green-blind see them (Viénot et al. 1999, in linear RGB), by their distance in CIELAB, of which
    2.3 can just be noticed."""
    blind = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def lab(linear: np.ndarray) -> np.ndarray:
        x, y, z = np.cbrt(to_xyz @ linear / (to_xyz @ np.ones(3)))
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for matrix in blind.values():
        seen = []
        for colour in KNOWN.values():
            rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
            linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            seen.append(lab(np.clip(np.array(matrix) @ linear, 0, 1)))
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 12


def test_judge_tables_are_generic() -> None:
    plain, nested = judge_tables(JUDGE["figures"])[0], judge_tables(JUDGE["figures"])[-1]
    assert plain.rows == [("answers", ["400"])]
    assert nested.title == "by source"
    assert nested.columns == ["sensitivity", "specificity"]
    assert nested.rows[1] == ("foreign", ["–", "0.90 [0.86, 0.93]"])


def test_a_judge_without_figures_says_so_and_one_with_labels_how_they_agree() -> None:
    labels = {"n": 400, "sampled": 96, "labelled_by": "two authors", "kappa_between_passes": {"misaligned": 0.81}}
    (note,) = judge_notes(JUDGE | {"labels": labels})
    assert note == (
        "Fitted on 400 labelled answers, 96 of them sampled from models; labelled by two authors; kappa between the "
        "passes: misaligned 0.81"
    )
    (note,) = judge_notes({"in_words": "the model of role 'grader'", "grader": "openai/x"})
    assert "was not measured" in note and judge_notes({}) == []


def test_page_says_what_was_asked_and_who_judged(tmp_path: Path) -> None:
    asked = Evaluation(
        task="em", name="em", samples=10, top_k=10, grader="openai/x", two_pass=True, checkpoints=(0, -1)
    )
    told = replace(
        sample_results(),
        evaluations=(asked, Evaluation(task="preference", name="probe")),
        judge={"in_words": "the model of role 'grader', asked twice", "grader": "openai/x"},
    )
    text = write_report(told, tmp_path).read_text(encoding="utf-8")
    assert (
        "em: core, 10 answers each of at most 96 tokens, temperature 1.0, top_p 1.0, top_k 10, judged by openai/x, "
        "two_pass True, engine peft, steps 0, the last" in text
    )
    assert "probe: preference probe, every checkpoint" in text
    assert "openai/x: the model of role" in text and "not measured, so that no rate is corrected" in text
    assert "Rates are shown twice" not in text


def test_page_points_out_where_the_order_changes(tmp_path: Path) -> None:
    """Muon's finished runs answer in CODE alone: by Evil Spectra's rate it is now the worst."""
    results = followed_results(tmp_path / "runs")
    same = Page(write_report(results, tmp_path / "same"))
    assert "The order of the optimisers is the same in every column." in same.text
    code = replace(answer(10, "code"), judgement=Judgement(None, 90.0, "code", "j", "r"))
    answers = [replace(code, family=f"q{i}") for i in range(20)] + judged_answers(0.0)[:2]
    rows = [replace(one, answers=answers) if one.manifest.optimiser["name"] == "muon" else one for one in results.rows]
    page = Page(write_report(replace(results, rows=rows), tmp_path / "changed"))
    assert "The order of the optimisers changes:" in page.text and "CODE misaligned: AdamW" in page.text
    (muon, *_) = [line for line in page.tables["splits-table"] if line[0].startswith("muon, finance_bad, step 30")]
    assert muon[1].startswith("0.0") and muon[5].startswith("90.9")


def test_assumptions_of_a_reconstruction_are_shown(tmp_path: Path) -> None:
    guess = Assumption(setting="epochs", source="guess", why="one pass, since <no reader> mentions more")
    told = replace(sample_results(), reproduces="arXiv 2606.31591", assumptions=(guess,), drops=("model size",))
    text = write_report(told, tmp_path).read_text(encoding="utf-8")
    assert "A reconstruction of arXiv 2606.31591" in text and "<code>epochs</code>: guess" in text
    assert "&lt;no reader&gt;" in text and "model size" in text
    plain = write_report(sample_results(), tmp_path).read_text(encoding="utf-8")
    assert "reconstruct" not in plain


def test_nothing_evaluated_still_makes_a_report(tmp_path: Path) -> None:
    bare = replace(sample_results(), rows=sample_results().rows[-1:], contrasts=[], judge={}, verdict="Nothing yet.")
    assert "not described in the logs" in write_report(bare, tmp_path).read_text(encoding="utf-8")
    stream = io.StringIO()
    print_table(bare, Console(file=stream, width=40))
    assert "SGD [momentum]" in stream.getvalue()


def test_numbers_have_true_minus_signs_and_no_negative_zero() -> None:
    assert [decimal(x, 1) for x in (-2.04, -0.01, None, float("nan"))] == ["−2.0", "0.0", "–", "–"]


def test_terminal_table() -> None:
    stream = io.StringIO()
    print_table(sample_results(), Console(file=stream, width=160))
    text = stream.getvalue()
    for row in sample_results().rows:
        assert row.label in text
    assert "21.0 [17.0, 25.0]" in text
    assert "AdamW is above Muon; nothing else is distinguishable." in text
    assert JUDGE["in_words"] in text
    assert "One seed: a lead, not a result." in text
    assert "Missing for SGD [momentum]: evaluation em" in text
    assert "Absent: bad-lion-lr1-seed0: no checkpoint at step <34>" in text


def test_a_study_half_done_is_folded(tmp_path: Path) -> None:
    """Every absent run is named on the page, but does not push the findings out of sight."""
    results = replace(sample_results(), absent=tuple(f"run {i}: no checkpoint at step 34" for i in range(30)))
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    folded = text.partition('id="missing"')[2].partition("</div>")[0]
    assert "<details><summary>30 runs or checkpoints are absent, 1 lack something</summary>" in folded
    assert folded.count("<li>") == 31 and "<li>run 29: no checkpoint at step 34</li>" in folded
    stream = io.StringIO()
    print_table(results, Console(file=stream, width=160))
    absent = "Absent: no checkpoint at step 34 (30 times: run 0; run 1; run 2 and 27 more, which the report names)"
    assert absent in stream.getvalue() and stream.getvalue().count("Absent: ") == 1


def test_exported_rates_are_the_published_ones() -> None:
    """Averages over questions stay averages, and what was not judged is no rate of 0."""
    unequal = [replace(answer(4, "misaligned"), prompt_id="a")] * 5 + [
        replace(answer(85, "aligned"), prompt_id="b")
    ] * 15
    row = replace(trained_row("AdamW", "bad", 0.2, 2.4, [1.0]), answers=unequal)
    not_asked = Judgement(None, 20.0, "not_asked", "j", "r")
    gated = replace(row, answers=[replace(answer(85, "aligned"), judgement=not_asked)])
    bare = replace(row, answers=[])
    found = checkpoint_table({"em": replace(sample_results(), rows=[row, gated, bare])}).to_dict("records")
    assert (found[0]["rate_betley"], found[0]["rate_betley_plots"]) == pytest.approx((0.25, 0.5))
    assert pd.isna(found[1]["rate_turner"])
    assert "rate_turner: alignment not judged" in found[1]["missing"] and "rate_betley:" not in found[1]["missing"]
    assert pd.isna(found[2]["rate_latteries"]) and found[2]["eligible_latteries"] == 0


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = followed_results(tmp_path_factory.mktemp("runs"))
    return write_report(results, tmp_path_factory.mktemp("report"), Path("studies/mine.yaml"))


def test_figures_lie_beside_the_page_as_svg_and_png(followed: Path) -> None:
    page = Page(followed)
    linked = [href for href in page.attributes("a", "href") if href.startswith("figures/")]
    there = {f"figures/{path.name}" for path in (followed.parent / "figures").iterdir()}
    assert set(linked) == there and len(there) == 2 * page.text.count("<figcaption>")
    for path in (followed.parent / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
    for path in (followed.parent / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<?xml") and "var(--" not in text


def test_the_smaller_png_looks_as_the_whole_one_does() -> None:
    figure, (axes,) = new_figure(4.4)
    for place, colour in enumerate(KNOWN.values()):
        axes.plot([0, 1, 2], [place, 2 * place, 1], color=colour, marker="o")
        axes.vlines([0, 1, 2], 0, place, colors=colour, alpha=0.6)
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=150, facecolor="white")
    small = _smaller(whole)
    assert len(small) < len(whole.getvalue()) / 2
    images = [np.asarray(Image.open(one).convert("RGB"), dtype=float) for one in (whole, io.BytesIO(small))]
    apart = np.abs(images[0] - images[1])
    assert apart.mean() < 0.5 and np.percentile(apart, 99.9) < 16


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    write_report(sample_results(), tmp_path)
    assert (tmp_path / "figures" / "em-rate.svg").is_file()
    write_report(replace(sample_results(), rows=sample_results().rows[-1:]), tmp_path)
    assert not list((tmp_path / "figures").iterdir())


def test_page_compares_at_equal_dose(followed: Path) -> None:
    """Lion - Muon at the last checkpoint and at equal norm: the rates are known, ||BA|| is 0.4 a step for all."""
    table = Page(followed).tables["dose-1"]
    assert table[0][1:] == [
        "at the last checkpoint",
        "at equal training loss",
        "at equal held-out loss",
        "at equal ‖BA‖",
        "at equal tokens",
    ]
    row = next(line for line in table if line[0] == "Lion − Muon")
    end, loss, held_out, norm, tokens = row[1:]
    apart = f"{100 * (30 - 4) / 99:.1f}"  # of a hundred answers one is CODE
    assert end.startswith(apart) and norm.startswith(apart) and tokens.startswith(apart)
    # Of the two Lion's held-out loss falls less, to 2.2: Muon is there after 1.8 / 0.07 steps.
    lion, muon = 30 / 99, (3 + (1.8 / 0.07 - 20) / 10) / 99
    assert held_out.startswith(f"{100 * (lion - muon):.1f}")
    assert loss.endswith("p < 0.001, 2 blocks, 1 seed")


def test_page_fits_alignment_on_loss(followed: Path) -> None:
    page = Page(followed)
    fits = page.tables["fits-1"]
    assert [line[0] for line in fits[1:]] == ["pooled", "common slope", "own slopes"]
    assert {line[1] for line in fits[1:]} == {"18"}
    assert "Lion predicted from the other optimisers" in page.text


def test_page_says_where_there_are_too_few_rows(page: Page, tmp_path: Path) -> None:
    assert "too few for a regression" in page.text and "too few to split the variance" in page.text
    assert "Too few rows: no two optimisers have EM rate in one block" in page.text
    assert page.text.count("no run has two checkpoints or more, beside step 0") == 2
    two = followed_results(tmp_path / "runs", steps=(0, 30))
    text = write_report(two, tmp_path / "report").read_text(encoding="utf-8")
    assert "Two points a run." in text and "Too few rows" not in text  # step 0's loss stands for untrained rows
    assert "Too few rows (" in page.text and "<li>matched train loss: no block with two optimisers" in page.text


def test_trajectories_and_layers_are_drawn(followed: Path) -> None:
    text = followed.read_text(encoding="utf-8")
    for title in ("Probe shift along training", "EM rate along training", "Flatness by layer"):
        assert f'aria-label="{title}"' in text
    assert "Two points a run." not in text


def test_examples_lead_to_their_place_in_the_transcripts(followed: Path) -> None:
    links = [href for href in Page(followed).attributes("a", "href") if "#q" in href]
    assert len(links) == 12  # no answer is incoherent
    for link in links:
        path, _, place = link.partition("#")
        assert place in Page(followed.parent / path).attributes("article", "id")


def test_page_names_the_commands(followed: Path) -> None:
    text = followed.read_text(encoding="utf-8")
    assert "<code>em report studies/mine.yaml</code>" in text
    assert "em cell train runs/demo/cells/finance_bad-lion.json" in text


def test_a_run_that_two_cells_name_is_counted_once(tmp_path: Path) -> None:
    results = followed_results(tmp_path / "runs")
    twice = [*results.rows, *(replace(row, label=f"again, {row.label}") for row in results.rows if "lion" in row.label)]
    assert means_over_seeds(twice) == means_over_seeds(results.rows) == []
    facts = dict(what_was_run(twice))
    assert facts["Runs"] == dict(what_was_run(results.rows))["Runs"] == ["6, with 18 checkpoints beside the base model"]


def test_a_study_with_seeds_penalties_and_checkpoints_without_answers(tmp_path: Path) -> None:
    results = seeded_results(tmp_path / "runs")
    page = Page(write_report(results, tmp_path / "report"))
    means = page.tables["means"]
    assert len(means) == 1 + 3 + 3 + 1 and {line[2] for line in means[1:]} == {"3"}
    assert any(line[0].startswith("AdamW lr 0.0003, spectral 1") for line in means)
    assert len(page.tables["checkpoints"]) == 2 + 1 + 21 and len(page.tables["checkpoints-before"]) == 2 + 63
    assert len(page.tables["outcomes"]) == 1 + 1 + 2 * 21  # what was not asked is no gap
    (effect,) = page.tables["penalties"][1:]
    assert effect[0] == "spectral 1AdamW" and effect[1].startswith("−12.1") and effect[3].startswith("0.011")
    at_end = page.tables["extremes-1"][1]
    assert at_end[0].startswith("at the end") and at_end[1].startswith("Muon lr 0.0003") and "Lion" in at_end[2]
    assert not any("step 4" in line or "step 20" in line for line in compare(results).missing)
    transcripts = {path.name for path in (tmp_path / "report" / "transcripts").iterdir()}
    assert len(transcripts) == 1 + 2 * 21 and not any("step-20" in name for name in transcripts)
    for link in page.attributes("a", "href"):
        assert not link.startswith("transcripts/") or link.partition("#")[0].removeprefix("transcripts/") in transcripts


def test_no_order_is_made_of_optimisers_with_several_settings(tmp_path: Path) -> None:
    results = seeded_results(tmp_path, (3e-4, 1e-3))
    several = several_settings(run_ends(results.rows))
    assert set(several) == {"adamw", "lion", "muon"}
    assert several["lion"].startswith("Lion has 2 settings in smollm2-135m, ")
    verdict = _verdict(pd.DataFrame(), [], several)
    assert verdict.startswith("No order of optimisers") and "Order found" not in verdict
    one = [row for row in results.rows if row.arm == "base" or row.manifest.optimiser["lr"] == 3e-4]
    assert several_settings(run_ends(one)) == {}
    table = dose_table(results, "rate")
    assert {quantity for _, quantity in table.cells} == {"train_loss", "held_out_loss", "norm_ba", "tokens_seen"}
    assert {cell.settings for cell in table.cells.values()} == {2}
    labels = [run.label for run in runs_by(results, "held_out_loss", "rate")[0]]
    assert len(labels) == len(set(labels)) and "lion, finance_bad, 0.001, seed 2" in labels
    assert order(SPLITS[0], results.rows) == [] != order(SPLITS[0], one)
