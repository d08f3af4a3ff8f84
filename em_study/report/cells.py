"""Values as they stand in the page's tables."""

from markupsafe import Markup

from em_eval.intervals import Interval
from em_study.report.terminal import GAP, decimal, is_known


def gap(why: str) -> Markup:
    """What stands where there is no value."""
    return Markup('<span class="gap" title="{}">{}</span>').format(why, GAP)


def number(value: float | None, why: str, digits: int = 2) -> Markup | str:
    return decimal(value, digits) if is_known(value) else gap(why)


def interval(x: Interval | None, why: str, digits: int = 1, scale: float = 1) -> Markup:
    """The value, and under it its 95 % interval; how that was made is in the title."""
    if x is None or not is_known(x.value):
        return gap(why)
    if not is_known(x.low):
        return Markup('<span title="{}">{}</span>').format(x.method, decimal(scale * x.value, digits))
    low, high = decimal(scale * x.low, digits), decimal(scale * x.high, digits)
    return Markup('<span title="95 % interval: {}">{}<span class="range">{} to {}</span></span>').format(
        x.method, decimal(scale * x.value, digits), low, high
    )


def probability(p: float | None) -> str:
    if not is_known(p):
        return GAP
    return "< 0.001" if p < 0.001 else decimal(p, 3)
