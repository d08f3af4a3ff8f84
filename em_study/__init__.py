"""Grids of training and evaluation: run them, join the results, report."""

from em_study.study import Study, load_study

__all__ = ["Study", "load_study"]
