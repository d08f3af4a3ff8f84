"""The embedded judge's measured figures as Markdown, from the file that travels with it: `em judge show`."""

from typing import Any

MEASURES = ("auc", "sensitivity", "specificity")


def markdown(facts: dict[str, Any]) -> str:
    """One table a fault (misaligned, incoherent): a row a source of answers, then what the judge has to beat."""
    parts = []
    for fault, figures in facts["figures"].items():
        parts.append(f"### {fault.capitalize()} or not\n")
        parts.append("| answers | n | labelled so | AUC | sensitivity | specificity |\n|---|---|---|---|---|---|")
        for source, row in figures.items():
            if isinstance(row, dict) and "auc" in row:
                cells = [source, str(row["n"]), str(row["positives"]), *(_range(row[name]) for name in MEASURES)]
                parts.append(f"| {' | '.join(cells)} |")
        rivals = {**figures["baselines"], "likelihood ratio of two personas": figures.get("likelihood_ratio")}
        for name, value in rivals.items():
            if value is not None:
                parts.append(f"| *{name} alone*, on the answers of the first row | | | {_range(value)} | | |")
        parts.append("")
    return "\n".join(parts)


def _range(value: list[float] | None) -> str:
    return "–" if value is None else f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
