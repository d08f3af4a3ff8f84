"""Narrow datasets by name, any JSONL file in chat format, and datasets of the hub at a commit."""

from em_train.datasets.registry import (
    NarrowDataset,
    dataset_registry,
    describe,
    label,
    load_dataset,
    read_dataset,
    split,
)
from em_train.datasets.rows import Refused, Row

__all__ = [
    "NarrowDataset",
    "Refused",
    "Row",
    "dataset_registry",
    "describe",
    "label",
    "load_dataset",
    "read_dataset",
    "split",
]
