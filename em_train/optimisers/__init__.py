"""Optimisers as plugins: one file a family."""

from em_train.optimisers.construction import build, find, resolve
from em_train.optimisers.evaluation_weights import published
from em_train.optimisers.registry import OptimiserPlugin, optimiser_registry

__all__ = ["OptimiserPlugin", "build", "find", "optimiser_registry", "published", "resolve"]
