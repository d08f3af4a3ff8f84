"""Inspect model APIs of ours."""
