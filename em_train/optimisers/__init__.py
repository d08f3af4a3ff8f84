"""Optimisers as plugins: one file a family."""

from em_train.optimisers.registry import OptimiserPlugin, build, optimiser_registry, resolve

__all__ = ["OptimiserPlugin", "build", "optimiser_registry", "resolve"]
