"""A control at equal loss cost: the strength at which it ends at the task loss of another, penalised run."""

from pathlib import Path

from em_core.errors import UserError
from em_core.manifest import MANIFEST, Manifest, read_manifest
from em_train.config import TrainConfig, parse_config
from em_train.preparation import Resolved, resolve_run
from em_train.run import train

# What may differ between the runs, or is compared by content or as it was resolved.
NOT_COMPARED = {
    "penalty",
    "checkpoints",
    "base_model",
    "base_revision",
    "dataset",
    "schedule",
    "epochs",
    "micro_batch_size",
    "gradient_checkpointing",
    "report_to",
    "preset",
    "sources",
}
STRIDE = 4.0  # factor between strengths until the loss is bracketed; then bisection of the logarithm


def match_strength(
    config: TrainConfig, reference: Path, folder: Path, tolerance: float = 0.002, runs: int = 10
) -> tuple[TrainConfig, Path]:
    """Train `config` at one strength of its penalty after another until it costs as much as `reference` does.

    The cost is the manifest's training loss at the last checkpoint, and is taken to rise with the strength. Each run
    lies under `folder` by its strength and is idempotent, so that a killed search goes on where it was.

    Args:
        config: has a penalty with a strength, the first to be tried.
        reference: last checkpoint of the penalised run.
        tolerance: nats a token.
        runs: how many strengths are tried at most.

    Returns:
        The configuration that matched, and its last checkpoint.

    Raises:
        UserError: the reference is of other data, another base or another setting than penalty and checkpoints, the
            last step is not kept, or no strength matches.
    """
    if config.penalty is None or config.penalty.name == "early_stopping":
        raise UserError("the configuration has no penalty whose strength could be matched: give it one, e.g. kl")
    found = resolve_run(config)
    config = found.config  # where epochs decide the steps
    assert config.penalty is not None
    target = _target(found, reference)
    low, high, strength = 0.0, float("inf"), config.penalty.strength
    tried: dict[float, float] = {}
    for _ in range(runs):
        penalty = config.penalty.model_copy(update={"strength": strength})
        candidate = config.model_copy(update={"penalty": penalty})
        last = train(candidate, folder / f"{penalty.name}-{strength:g}")[-1]
        tried[strength] = _train_loss(read_manifest(last), last)
        if abs(tried[strength] - target) <= tolerance:
            return candidate, last
        if tried[strength] < target:
            low = strength
        else:
            high = strength
        strength = _between(low, high)
    nearest = min(tried, key=lambda one: abs(tried[one] - target))
    raise UserError(
        f"no strength of '{config.penalty.name}' ends at {target:.4f} +- {tolerance:g} nats in {runs} runs; the "
        f"nearest, {nearest:g}, ends at {tried[nearest]:.4f}: widen the tolerance, or lift max_grad_ratio"
    )


def _between(low: float, high: float) -> float:
    """The next strength, to three digits, so that it names the run fully."""
    if low == 0:
        return float(f"{high / STRIDE:.3g}")
    return float(f"{low * STRIDE if high == float('inf') else (low * high) ** 0.5:.3g}")


def _target(found: Resolved, reference: Path) -> float:
    config = found.config
    if config.steps not in config.kept_steps():
        raise UserError("the last step is not kept, whose loss is to be matched: add -1 to checkpoints")
    manifest = read_manifest(reference)
    theirs = parse_config(manifest.config, str(reference / MANIFEST))
    compared = [
        ("steps", config.steps, manifest.step),
        ("dataset sha256", found.dataset.sha256, manifest.dataset.sha256),
        ("base weights sha256", found.base.weights_sha256, manifest.base.weights_sha256),
        ("schedule", found.schedule, manifest.optimiser["schedule"]),
    ]
    compared += [
        (name, getattr(config, name), getattr(theirs, name))
        for name in TrainConfig.model_fields
        if name not in NOT_COMPARED
    ]
    for name, one, other in compared:
        if one != other:
            raise UserError(f"{name} is {one} here and {other} in {reference}: losses could not be compared")
    return _train_loss(manifest, reference)


def _train_loss(manifest: Manifest, checkpoint: Path) -> float:
    if manifest.loss.train is None:
        raise UserError(f"{checkpoint} has no training loss: give a run's last checkpoint")
    return manifest.loss.train
