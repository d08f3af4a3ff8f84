"""Emergent-misalignment evaluation on Inspect: prompt sets, judges, outcomes, rates, tasks."""

from em_eval._registry import em, peft, preference

__all__ = ["em", "peft", "preference"]
