"""A penalty on a run: its gradient joins the task's once an optimiser step, after the last backward pass and before
clipping, where the task's gradient is whole.

That is the same sum as a term in the loss, but for two things: it counts once whatever the number of micro-batches
and processes, and both gradients have norms of their own, to be logged and compared. The task loss is not touched.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

from em_core.errors import UserError
from em_train.penalties.gradient import Gradient, OfParameters, norm_of
from em_train.penalties.registry import Seen, plugin_and_hyperparameters
from em_train.spectra import LoraPair

REMEDY = "lower its strength or the learning rate, start it later (start_step), or mend the plugin"


class AppliedPenalty:
    """The penalty of one run.

    Args:
        resolved: as `resolve` gives it.
        modules: the live factors.

    Attributes:
        figures: of the step now under way, for steps.jsonl.
    """

    def __init__(self, resolved: dict[str, Any], modules: list[LoraPair]) -> None:
        self.name: str = resolved["name"]
        self.plugin, self.hyperparameters = plugin_and_hyperparameters(resolved)
        self.strength: float = resolved["strength"]
        self.modules = modules
        self.figures: dict[str, float] = {}
        self._gradient: Gradient | None = None
        self._sums: dict[str, float] = {}

    def ramp(self, step: int) -> float:
        """Share of the strength that acts at `step`, counted from 1."""
        begun = step - self.hyperparameters.start_step + 1
        share: float = begun / max(self.hyperparameters.ramp_steps, 1)
        return min(1.0, max(0.0, share))

    def after_backward(
        self, accelerator: Accelerator, model: Any, batch: dict[str, Tensor], tokens: Tensor | int | None, step: int
    ) -> None:
        """To be called after each micro-batch's backward pass; acts on `.grad` after the step's last one.

        Raises:
            UserError: the term or its gradient is not finite although the task's gradient is, or a decomposition in
                it failed.
        """
        if self.plugin.term is None:
            return
        last = accelerator.sync_gradients
        if self.ramp(step) == 0:
            self.figures = {"penalty_weight": 0.0}
            return
        inner = getattr(model, "module", model)
        parameters = [parameter for parameter in inner.parameters() if parameter.requires_grad]
        if self.plugin.depends_on_data:
            assert tokens is not None
            seen = Seen(self.modules, inner, step, batch, int(tokens))
            self._collect(seen, parameters)
            if last and accelerator.num_processes > 1:
                self._sum_over_processes(accelerator, parameters)
        elif last:
            self._collect(Seen(self.modules, inner, step), parameters)
        if last:
            self._add(parameters, step)

    def _collect(self, seen: Seen, parameters: list[torch.nn.Parameter]) -> None:
        assert self.plugin.term is not None
        try:
            term = self.plugin.term(seen, self.hyperparameters)
            if term.loss is not None:
                self._gradient = self._gradient_of(term.loss, term.gradient, parameters)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            reason = str(error).splitlines()[0]
            raise UserError(f"penalty '{self.name}' failed at step {seen.step} ({reason}): {REMEDY}") from error
        figures = dict(term.figures)
        if term.loss is not None:
            figures["penalty"] = float(term.loss.detach())
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _gradient_of(self, loss: Tensor, given: Gradient | None, parameters: list[torch.nn.Parameter]) -> Gradient:
        """What there is of the step's gradient with this term's."""
        if given is None:
            found = OfParameters(parameters, torch.autograd.grad(loss, parameters, allow_unused=True))
            return found.plus(self._gradient) if isinstance(self._gradient, OfParameters) else found
        if self.plugin.depends_on_data:  # its micro-batches and processes could not be summed
            raise UserError(f"penalty '{self.name}' depends on data and must leave its gradient to autograd: mend it")
        return given

    def _sum_over_processes(self, accelerator: Accelerator, parameters: list[torch.nn.Parameter]) -> None:
        own = self._gradient  # none where this process saw nothing to add; the others wait for it all the same
        given = own.tensors if isinstance(own, OfParameters) else [None] * len(parameters)
        whole = [torch.zeros_like(p) if tensor is None else tensor for tensor, p in zip(given, parameters, strict=True)]
        self._gradient = OfParameters(parameters, [accelerator.reduce(tensor, reduction="sum") for tensor in whole])
        for name in sorted(self._sums):
            value = torch.tensor(self._sums[name], dtype=torch.float32, device=accelerator.device)
            self._sums[name] = float(accelerator.reduce(value, reduction="sum"))

    def _add(self, parameters: list[torch.nn.Parameter], step: int) -> None:
        weight = self.strength * self.ramp(step)
        own = weight * self._gradient.norm() if self._gradient else 0.0
        task = norm_of([parameter.grad for parameter in parameters])
        value = self._sums.get("penalty", 0.0)
        if math.isfinite(task) and not (math.isfinite(value) and math.isfinite(own)):  # else the loss is to blame
            raise UserError(
                f"penalty '{self.name}' is {value:g} at step {step}, with a gradient of norm {own:g}: {REMEDY}"
            )
        allowed = self.hyperparameters.max_grad_ratio
        scale = allowed * task / own if allowed is not None and own > allowed * task else 1.0
        if self._gradient:
            self._gradient.add(weight * scale)
        self.figures = {
            **self._sums,
            "penalty_weight": weight * scale,
            "penalty_grad_norm": own,
            "penalty_grad_scale": scale,
            "task_grad_norm": task,
        }
        self._gradient, self._sums = None, {}


class StopByRule(TrainerCallback):  # type: ignore[misc]
    """Ends training after the step at which a stopping rule says so.

    Args:
        rows: gives the rows of steps.jsonl so far.
    """

    def __init__(self, penalty: AppliedPenalty, rows: Callable[[], list[dict[str, float]]]) -> None:
        self.penalty, self.rows = penalty, rows

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.penalty.plugin.stop is None:
            return
        stop = [self.penalty.plugin.stop(self.rows(), self.penalty.hyperparameters)]
        if dist.is_initialized():  # the first process decides: a resumed one may be the only one that knows the rows
            dist.broadcast_object_list(stop)
        if stop[0]:
            control.should_training_stop = True
            control.should_save = False  # a run resumed from a state of this very step would train one step more


def summary(resolved: dict[str, Any] | None, rows: list[dict[str, float]]) -> dict[str, Any] | None:
    """The manifest's `penalty`: its settings, how often it was silent, capped or not begun, and the last figures."""
    if resolved is None:
        return None
    last = rows[-1] if rows else {}
    return {
        **resolved,
        "steps_before_start": sum(row.get("penalty_weight") == 0.0 and "penalty_grad_norm" not in row for row in rows),
        "steps_silent": sum("penalty_grad_norm" in row and "penalty" not in row for row in rows),
        "steps_capped": sum(row.get("penalty_grad_scale", 1.0) < 1.0 for row in rows),
        "last": {name: value for name, value in last.items() if name.startswith("penalty") or name == "task_grad_norm"},
    }
