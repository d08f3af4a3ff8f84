"""The judge's own gate: the one that the headline rate uses."""

from em_eval.filters.registry import Material, Verdict, filter_registry
from em_eval.outcomes import COHERENT_ABOVE


@filter_registry.register("coherence")
def coherence(material: Material) -> Verdict:
    """Passed above coherence 50 (Betley et al.)."""
    score = material.judgement.coherence_read
    if score is None:
        return Verdict(None, None, "the judge gave no coherence")
    return Verdict(score > COHERENT_ABOVE, score, f"judged coherence {score:.0f}")
