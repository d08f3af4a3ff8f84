"""Coherence filters: verdicts on one answer that stand side by side in its score. None of them shuts anything out."""

from em_eval.filters.registry import Material, Verdict, filter_registry, verdicts

__all__ = ["Material", "Verdict", "filter_registry", "verdicts"]
