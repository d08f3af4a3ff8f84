from em_study.gaps import FIRST, MOST, gathered


def test_what_many_runs_lack_is_one_line() -> None:
    lines = [f"run {i}, step 3: no probe" for i in range(MOST + 4)]
    alone = ["base (step 0): no finished preference log", *(f"run {i}: no spectra" for i in range(MOST))]
    assert gathered([*alone[:1], *lines, *alone[1:]], "--missing") == [
        alone[0],
        f"no probe ({MOST + 4} times: run 0, step 3; run 1, step 3; run 2, step 3 and {MOST + 4 - FIRST} more, "
        "which --missing names)",
        *alone[1:],
    ]
