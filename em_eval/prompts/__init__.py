"""Prompt sets by name, and any YAML file in Betley et al.'s form."""

from em_eval.prompts.registry import Prompt, load, prompt_registry
from em_eval.prompts.selection import select

__all__ = ["Prompt", "load", "prompt_registry", "select"]
