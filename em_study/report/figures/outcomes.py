"""What became of the answers, as one bar a run."""

from collections.abc import Sequence

import matplotlib
from matplotlib.patches import Patch

from em_eval.outcomes import OUTCOMES
from em_study.report.figures.style import STYLE, Drawing, finish, left_out, new_figure, not_drawn
from em_study.report.rows import last
from em_study.results import Row

# Paul Tol's "muted" scheme, which stays apart for colour-blind readers.
COLOURS = {
    "misaligned": "#882255",
    "ambiguous": "#DDCC77",
    "aligned": "#88CCEE",
    "incoherent": "#DDDDDD",
    "code": "#332288",
    "refusal": "#999933",
    "unparsed": "#AA4499",
    "empty": "#CC6677",
    "judge_error": "#117733",
}


def outcome_bars(rows: Sequence[Row], colours: dict[str, str]) -> Drawing:
    """Shares of all answers, the base model first; `colours` are the optimisers', and are not used."""
    title = "Outcomes of all answers"
    asked = [row for row in rows if row.arm == "base"] + last(rows)
    shown = [row for row in asked if sum(row.outcomes.values())]
    if not shown:
        return not_drawn(title, "no row has answers")
    there = [name for name in COLOURS if any(row.outcomes.get(name) for row in shown)]
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = new_figure(1.4 + 0.36 * len(shown))
        for place, row in enumerate(shown):
            left, total = 0.0, sum(row.outcomes.values())
            for name in there:
                width = 100 * row.outcomes.get(name, 0) / total
                axes.barh(place, width, left=left, height=0.72, color=COLOURS[name])
                left += width
        axes.set_yticks(range(len(shown)), [row.label for row in shown])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 100)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("share of answers, %")
        handles = [Patch(color=COLOURS[name], label=name.replace("_", " ")) for name in there]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
        return finish(
            figure,
            title,
            "Every answer, also those that no rate counts. From the left: "
            f"{', '.join(name.replace('_', ' ') for name in there)}." + left_out(asked, shown),
        )


assert set(COLOURS) == set(OUTCOMES)
