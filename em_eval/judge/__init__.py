"""Judges: what turns a question and an answer into a raw judgement."""

from em_eval.judge.registry import Judge, judge_registry

__all__ = ["Judge", "judge_registry"]
