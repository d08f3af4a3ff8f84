"""Narrow datasets by name, and any JSONL file in chat format."""

from em_train.datasets.registry import NarrowDataset, Row, dataset_registry, load_dataset, split

__all__ = ["NarrowDataset", "Row", "dataset_registry", "load_dataset", "split"]
