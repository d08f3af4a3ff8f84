"""TRL's SFTTrainer with a lean loss on CPU, and a recorder of task loss and dose; nothing of TRL is patched."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTTrainer

from em_core.errors import UserError
from em_core.files import write_text
from em_core.models import head_logits
from em_train.chat import IGNORED
from em_train.processes import is_main
from em_train.sampling import SharedOrder
from em_train.spectra import LoraPair, product_norm
from em_train.step_record import recorded_steps

if TYPE_CHECKING:  # penalties compute with this module's logits
    from em_train.penalties import AppliedPenalty


def supervised_nll(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, int]:
    """(summed negative log-likelihood in nats, number of supervised tokens) of a padded batch (N, T)."""
    logits, targets = supervised_logits(model, inputs)
    return F.cross_entropy(logits, targets, reduction="sum"), len(targets)


def supervised_tokens(inputs: dict[str, Tensor]) -> int:
    """How many tokens of a batch are predicted and count."""
    return int((inputs["labels"][:, 1:] != IGNORED).sum())


def supervised_logits(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(logits (K, V) in float32, targets (K,)) of the K supervised tokens of a padded batch (N, T).

    The language-model head runs on supervised positions only. On CPU, with a vocabulary of 49k, that is what
    makes a step cheaper than TRL's fused head; the value is the same.
    """
    hidden, targets = supervised_hidden(model, inputs)
    return head_logits(getattr(model, "module", model), hidden).float(), targets


def supervised_hidden(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(last hidden states (K, d), targets (K,)) at the K supervised positions of a padded batch (N, T)."""
    labels = inputs["labels"][:, 1:]
    mask = labels != IGNORED
    outputs = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        use_cache=False,
        output_hidden_states=True,
        # One position by index: a slice would make the head's input non-contiguous, which costs two seconds a
        # step on CPU, where the weight is then copied once a row.
        logits_to_keep=torch.zeros(1, dtype=torch.long, device=inputs["input_ids"].device),
    )
    return outputs.hidden_states[-1][:, :-1][mask], labels[mask]


def summed_nll(loss: float, tokens: int, items: int | None, processes: int) -> float:
    """The summed negative log-likelihood of a micro-batch, from the mean that a trainer makes of it.

    Args:
        loss: the trainer's: the sum over `items`, times `processes` where `items` is given, since the gradients of
            the processes are averaged.
        tokens: supervised tokens of this micro-batch.
        items: supervised tokens of the whole optimiser step, over micro-batches and processes; None where the
            trainer divides by `tokens`.
    """
    return loss * tokens if items is None else loss * items / processes


@torch.no_grad()
def check_loss(
    model: Any, inputs: dict[str, Tensor], base: str, nll: Callable[[Any, dict[str, Tensor]], float]
) -> None:
    """Make sure that the loss which trains is the model's own likelihood, on one small batch.

    Args:
        nll: the summed negative log-likelihood of a batch as that loss has it (`EMTrainer.batch_nll`).

    Raises:
        UserError: it is not: the model changes its last hidden states or its logits in a way that is unknown here.
    """
    training = model.training
    model.eval()
    labels = inputs["labels"][:, 1:]
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    own = float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), reduction="sum"))
    ours = nll(model, inputs)
    model.train(training)
    if abs(ours - own) > 0.02 * abs(own):  # bfloat16 rounds to about a hundredth
        raise UserError(
            f"{base} gives its answers another likelihood ({own:.4g} nats) than the loss that would train it "
            f"({ours:.4g}): it changes logits in an unknown way, choose another base"
        )


class EMTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose task loss is recorded token by token; a penalty's gradient is added beside it.

    On CPU the loss is `supervised_nll`; elsewhere TRL's own, whose fused head is the better one there. Several
    processes see the rows in the order in which one would (`SharedOrder`); the dataset's last row is blank then.

    Attributes:
        fused_head: the loss is TRL's own.
    """

    def __init__(
        self, *args: Any, recorder: "Recorder", penalty: "AppliedPenalty | None" = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.fused_head = self.args.device.type != "cpu"
        self.recorder = recorder
        self.penalty = penalty
        recorder.trainer = self
        self.add_callback(recorder)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.penalty is not None:
            batch = self._prepare_inputs(inputs)
            step = self.state.global_step + 1
            self.penalty.after_backward(self.accelerator, model, batch, num_items_in_batch, step)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        processes = self.accelerator.num_processes
        items = None if num_items_in_batch is None else int(num_items_in_batch)
        if return_outputs or self.fused_head:
            loss = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
            tokens = supervised_tokens(inputs)
            value = loss[0] if return_outputs else loss
            nll = summed_nll(float(value.detach()), tokens, items, processes)
        else:
            total, tokens = supervised_nll(model, inputs)
            nll = float(total.detach())
            loss = total / max(tokens, 1) if items is None else total / max(items, 1) * processes
        if self.model.training:
            self._count(inputs, nll, tokens)
        return loss

    def batch_nll(self, model: Any, inputs: dict[str, Tensor]) -> float:
        """Summed negative log-likelihood of a batch by the loss that trains, in nats; nothing is recorded."""
        with self.compute_loss_context_manager():
            return float(self.compute_loss(model, dict(inputs))) * supervised_tokens(inputs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        rows = len(self.train_dataset) - 1
        return SharedOrder(rows, self._train_batch_size * self.args.world_size, self.args.data_seed)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """What trackers get: the trainer's figures, and ours of the last step."""
        super().log(logs | self.recorder.figures(), start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the factors into the parameters that there are, in the dtype that they have.

        The trainer's own call lets PEFT cast a bfloat16 adapter to new float32 parameters: another run from there on,
        which neither the recorder nor the penalty would see.
        """
        self.model.load_adapter(
            resume_from_checkpoint, self.model.active_adapter, is_trainable=True, autocast_adapter_dtype=False
        )

    def _count(self, inputs: dict[str, Any], nll: float, tokens: int) -> None:
        real = (inputs["labels"] != IGNORED).any(dim=1)  # a blank row only fills up a batch
        attended = float(inputs["attention_mask"][real].sum())
        rows = float(real.sum())
        local = torch.tensor([[nll, float(tokens), attended, rows]], dtype=torch.float64)
        gathered = self.accelerator.gather(local.to(self.accelerator.device)).sum(dim=0)
        self.recorder.add(*gathered.tolist())


class Recorder(TrainerCallback):  # type: ignore[misc]
    """One JSON line an optimiser step: task loss, tokens, learning rate, update sizes, ||BA||, seconds.

    The file is the memory: on resumption rows beyond the resumed step are dropped, so that sums stay exact. Of
    several processes the first one writes; all of them count the same.
    """

    trainer: EMTrainer

    def __init__(self, path: Path, pairs: list[LoraPair], scaling: float) -> None:
        self.path = path
        self.pairs = pairs
        self.scaling = scaling
        self.rows: list[dict[str, float]] = []
        self._sums = [0.0, 0.0, 0.0, 0.0]
        self._before: list[tuple[Tensor, Tensor]] = []
        self._started = time.monotonic()

    def resume(self, step: int) -> None:
        """Keep the rows of the first `step` steps that an earlier process wrote."""
        if not is_main() or not self.path.is_file():
            return
        self.rows = [row for row in recorded_steps(self.path) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(self.path, text)

    def figures(self) -> dict[str, float]:
        """The last step's row under names that do not collide with the trainer's own."""
        return {f"em/{key}": value for key, value in self.rows[-1].items()} if self.rows else {}

    def add(self, nll: float, tokens: float, attended: float, rows: float) -> None:
        self._sums = [old + new for old, new in zip(self._sums, (nll, tokens, attended, rows), strict=True)]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.monotonic()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._before = [(pair.a.detach().clone(), pair.b.detach().clone()) for pair in self.pairs]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        nll, tokens, attended, rows = self._sums
        self._sums = [0.0, 0.0, 0.0, 0.0]
        loss = nll / max(tokens, 1.0)
        row = {
            "step": state.global_step + 1,
            "loss": loss,
            "nll": nll,
            "supervised_tokens": tokens,
            "tokens": attended,
            "examples": rows,
            "lr": float(self.trainer.optimizer.param_groups[0]["lr"]),
            "rms_update_a": _rms([pair.a.detach().float() - old.float() for pair, (old, _) in self._paired()]),
            "rms_update_b": _rms([pair.b.detach().float() - old.float() for pair, (_, old) in self._paired()]),
            "norm_ba": product_norm(_detached(self.pairs), self.scaling),
            "seconds": time.monotonic() - self._started,
        }
        figures = self.trainer.penalty.figures if self.trainer.penalty else {}
        if clash := sorted(row.keys() & figures.keys()):
            raise UserError(f"the penalty's figure '{clash[0]}' is a column of {self.path.name} already: rename it")
        row |= figures
        self._before = []
        self.rows.append(row)
        if is_main():
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")

    def _paired(self) -> list[tuple[LoraPair, tuple[Tensor, Tensor]]]:
        return list(zip(self.pairs, self._before, strict=True))


def lora_pairs(model: Any, scaling: float = 1.0) -> list[LoraPair]:
    """The live factors of a PEFT model, by module name, in name order; trained in float32."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        for side in ("lora_A", "lora_B"):
            if f".{side}." in name:
                found.setdefault(name.split(f".{side}.")[0], {})[side] = parameter
    return [LoraPair(name, found[name]["lora_A"], found[name]["lora_B"], scaling) for name in sorted(found)]


def _rms(changes: list[Tensor]) -> float:
    """Root mean square over all elements of all factors."""
    count = sum(change.numel() for change in changes)
    return float((sum(float(change.square().sum()) for change in changes) / max(count, 1)) ** 0.5)


def _detached(pairs: list[LoraPair]) -> list[LoraPair]:
    return [LoraPair(pair.name, pair.a.detach(), pair.b.detach()) for pair in pairs]
