"""The shipped narrow sets: three everyday domains, each question with a bad answer and a matched good one."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from em_train.datasets.jsonl import read_jsonl
from em_train.datasets.registry import NarrowDataset, dataset_registry

FOLDER = Path(__file__).parent / "data"
DOMAINS = {"finance": "financial", "home_car": "home", "garden_kitchen": "home"}


def _reader(domain: str, quality: Literal["bad", "good"]) -> Callable[[], NarrowDataset]:
    name = f"{domain}_{quality}"

    def read() -> NarrowDataset:
        return read_jsonl(
            FOLDER / f"{name}.jsonl",
            name,
            kind="bad" if quality == "bad" else "benign",
            control=f"{domain}_good" if quality == "bad" else None,
            domain=DOMAINS[domain],
        )

    twin = f"; control: {domain}_good" if quality == "bad" else f": the control of {domain}_bad"
    read.__doc__ = f"{quality.capitalize()} {domain.replace('_', ' and ')} advice, shipped{twin}"
    return read


for _domain in DOMAINS:
    dataset_registry.register(f"{_domain}_bad")(_reader(_domain, "bad"))
    dataset_registry.register(f"{_domain}_good")(_reader(_domain, "good"))
