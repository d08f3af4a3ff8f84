"""Emergent-misalignment evaluation on Inspect: prompt sets, judges, outcomes, rates, tasks."""

from em_eval._distribution import prefer_installed

prefer_installed()  # before the first task is named

from em_eval._registry import deception, em, peft, preference  # noqa: E402

__all__ = ["deception", "em", "peft", "preference"]
