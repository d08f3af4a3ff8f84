"""The report's figures: for the page in its colours, and as SVG and PNG files on white."""

from em_study.report.figures.labels import spread
from em_study.report.figures.loss_alignment import alignment_by_loss
from em_study.report.figures.matched import dose_differences
from em_study.report.figures.outcomes import outcome_bars
from em_study.report.figures.rates import probe_shift, rate_by_loss, rate_of_each
from em_study.report.figures.spectra import flatness_by_layer, mean_spectrum, spectra, spectra_by_layer
from em_study.report.figures.style import PAGE_COLOURS, Drawing, palette
from em_study.report.figures.trajectories import probe_trajectory, rate_trajectory

__all__ = [
    "PAGE_COLOURS",
    "Drawing",
    "alignment_by_loss",
    "dose_differences",
    "flatness_by_layer",
    "mean_spectrum",
    "outcome_bars",
    "palette",
    "probe_shift",
    "probe_trajectory",
    "rate_by_loss",
    "rate_of_each",
    "rate_trajectory",
    "spectra",
    "spectra_by_layer",
    "spread",
]
