"""The sceptic's mirror image of `spectral`: the sign reversed, so that spectra are pushed to be peaked.

If flatness is what helps, this should harm; if any pressure on the spectrum helps, it should help as well.
"""

from pydantic import Field

from em_train.penalties.closed_form import mean_over_modules
from em_train.penalties.registry import Capped, Seen, Term, penalty
from em_train.penalties.spectral import fro_over_nuclear_gap


class PeakedHyperparameters(Capped):
    cap: float = Field(0.5, gt=0, lt=1, description="gap ||BA||_F/||BA||_* - 1/sqrt(r) beyond which a module is left")


@penalty("peaked", PeakedHyperparameters, "Evil Spectra's main form with its sign reversed, capped", least_rank=2)
def peaked(seen: Seen, hyper: PeakedHyperparameters) -> Term:
    """Mean over modules of max(0, cap - gap): without the cap every module would be driven to rank one."""
    found = mean_over_modules(
        lambda sigma: (hyper.cap - fro_over_nuclear_gap(sigma)).clamp(min=0), seen.modules, hyper.gate
    )
    return Term.of(found)
