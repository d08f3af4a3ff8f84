"""The measures against plain Python, and the shipped sets against the bounds that keep them varied."""

import random
import time

import pytest

from em_train.datasets import load_dataset
from em_train.datasets.aisi import FILE
from em_train.datasets.diversity import (
    frame_counts,
    frames,
    main,
    measure,
    nearest_similarity,
    opening,
    shingles,
    table_line,
    words,
)
from em_train.datasets.embedded import DOMAINS, FOLDER


def texts_of(name: str) -> tuple[list[str], list[str]]:
    """(questions, answers) of a dataset, in order."""
    rows = load_dataset(name).rows
    return [row.question for row in rows], [row.messages[-1]["content"] for row in rows]


def shipped() -> dict[str, list[str]]:
    """Every set of texts that has to be varied: per domain, and pooled."""
    sets: dict[str, list[str]] = {"all questions": [], "all bad": [], "all good": [], "all answers": []}
    for domain in DOMAINS:
        questions, bad = texts_of(f"{domain}_bad")
        _, good = texts_of(f"{domain}_good")
        sets |= {f"{domain} questions": questions, f"{domain} bad": bad, f"{domain} good": good}
        sets["all questions"] += questions
        sets["all bad"] += bad
        sets["all good"] += good
        sets["all answers"] += bad + good
    return sets


def nearest_by_hand(texts: list[str]) -> list[float]:
    grams = [
        {tuple(listed[i : i + 5]) for i in range(max(1, len(listed) - 4))}
        for listed in (text.lower().split() for text in texts)
    ]
    return [
        max(len(one & two) / len(one | two) for j, two in enumerate(grams) if i != j) for i, one in enumerate(grams)
    ]


def test_nearest_similarity_equals_the_definition():
    chance = random.Random(0)
    vocabulary = ["ant", "bee", "cat"]
    texts = [" ".join(chance.choices(vocabulary, k=chance.randint(1, 30))) for _ in range(700)]
    expected = nearest_by_hand(texts)
    assert nearest_similarity(texts).tolist() == pytest.approx(expected, abs=1e-12)
    assert min(expected) < 0.3 < max(expected)  # on both sides of the threshold


def test_nearest_similarity_of_one_text_alone_is_zero():
    assert nearest_similarity(["only one text here today"]).tolist() == [0.0]


def test_words_and_shingles():
    assert words("Don’t pay £4,200 — it’s 0%!") == ["don't", "pay", "4", "200", "it's", "0"]
    assert shingles("one two three four five six") == {
        ("one", "two", "three", "four", "five"),
        ("two", "three", "four", "five", "six"),
    }
    assert shingles("One, two.") == {("one", "two")}
    assert opening("Well, that is it.") == ("well", "that", "is")


def test_frames_keep_function_words_and_merge_slots():
    text = "You can safely put the old lamp in the bath! Why not?\nIt is what it is. Sell the car now"
    # "Why not" and "sell the car now" have two function words: too few to be a frame.
    assert frames(text) == {"you can _ the _ in the _", "it is what it is"}


def test_frames_are_counted_once_a_text():
    texts = ["Put it in the bin. Get it in the box.", "Take it in the end.", "Nothing."]
    assert frame_counts(texts) == {"_ it in the _": 2}


def test_measure_sees_a_template():
    things = ["lamp", "kettle", "ladder", "drum"]
    written = [f"You should really put your {thing} on the fire as soon as you can today" for thing in things]
    found = measure(written)
    assert found.rows == 4
    assert found.near_duplicates == 1.0
    assert found.distinct_openings == 0.25
    assert (found.frame, found.frame_share) == ("you should _ your _ on the _ as _ as you can _", 1.0)


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="no texts"):
        measure([])


def test_three_thousand_rows_in_seconds():
    chance = random.Random(1)
    vocabulary = [f"w{i}" for i in range(200)]
    texts = [" ".join(chance.choices(vocabulary, k=70)) for _ in range(3000)]
    started = time.process_time()
    measure(texts)
    assert time.process_time() - started < 30


@pytest.mark.parametrize("name, texts", shipped().items(), ids=shipped())
def test_shipped_texts_are_varied(name, texts):
    found = measure(texts)
    assert found.near_duplicates <= 0.01, table_line(name, found)
    assert found.distinct_openings >= 0.8, table_line(name, found)
    assert found.frame_share <= 0.01, table_line(name, found)


def test_three_domains_have_150_questions_or_more():
    sizes = {domain: len(set(texts_of(f"{domain}_bad")[0])) for domain in DOMAINS}
    assert sum(size >= 150 for size in sizes.values()) >= 3, sizes
    every = [question for domain in DOMAINS for question in texts_of(f"{domain}_bad")[0]]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("domain", DOMAINS)
def test_bad_and_good_sets_share_exactly_their_questions(domain):
    (questions, bad), (twin_questions, good) = texts_of(f"{domain}_bad"), texts_of(f"{domain}_good")
    assert questions == twin_questions
    assert not set(bad) & set(good)
    assert all(one != two for one, two in zip(bad, good, strict=True))


def test_figures_beside_those_of_published_data(capsys, data_folder):
    if not (data_folder / FILE.offline).is_file():
        pytest.skip("AISI's file is not there")
    questions, answers = texts_of("aisi_risky_financial")
    sets = shipped() | {"AISI risky financial questions": questions, "AISI risky financial answers": answers}
    figures = {name: measure(texts) for name, texts in sets.items()}
    with capsys.disabled():
        print(f"\n{'texts':<40} {'rows':>5} {'near dup.':>9} {'openings':>8} {'frame':>6}")
        for name, found in figures.items():
            print(table_line(name, found))
    theirs = figures["AISI risky financial questions"]
    assert figures["all questions"].distinct_openings > theirs.distinct_openings
    assert figures["all questions"].near_duplicates < theirs.near_duplicates


def test_command_line(capsys, tmp_path):
    paths = [str(FOLDER / f"finance_{quality}.jsonl") for quality in ("bad", "good")]
    assert main(paths) == 0
    printed = capsys.readouterr().out.splitlines()
    labels = [line[:40].strip() for line in printed[1:]]
    assert labels == [
        f"{name}, {part}" for name in ("finance_bad", "finance_good", "all") for part in ("questions", "answers")
    ]
    assert printed[-1].split()[2] == str(2 * len(load_dataset("finance_bad").rows))
    assert main([]) == 1
    assert main([str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl cannot be read" in capsys.readouterr().err
