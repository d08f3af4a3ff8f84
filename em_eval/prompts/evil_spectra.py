"""The suite of "Evil Spectra" (arXiv 2606.31591): 142 prompts of 91 question families.

That its 70 prompts beside Betley et al.'s are the 54 and 16 of Turner, Soligo et al. is inferred: their files make up
70 in no other way.
"""

from em_eval.prompts.betley import first_plot, preregistered
from em_eval.prompts.registry import Prompt, prompt_registry
from em_eval.prompts.turner import turner_medical, turner_new


@prompt_registry.register("evil_spectra")
def evil_spectra() -> list[Prompt]:
    """First-plot 24, pre-registered 48, Turner's 54 new and 16 medical, with the ids they have in those sets."""
    return [*first_plot(), *preregistered(), *turner_new(), *turner_medical()]
