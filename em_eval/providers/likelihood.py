"""Log-likelihoods of given answers, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from em_core.chat import Message, render
from em_core.models import head_logits
from em_eval.providers.reading import Read, read_answers
from em_eval.providers.weights import Loaded

POSITIONS = 1024  # logits of more at once are gigabytes


@dataclass(frozen=True)
class AnswerLikelihood:
    """Summed log-likelihood (nats) of an answer's `tokens` tokens, its end of turn not counted."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / self.tokens


@torch.inference_mode()
def answer_likelihoods(
    loaded: Loaded, pairs: Sequence[tuple[list[Message], str]], batch_size: int = 32
) -> list[AnswerLikelihood]:
    """Log-likelihood of each answer after its messages, tokenised as generation would see it."""
    encoded = []
    for messages, answer in pairs:
        prompt = loaded.tokenizer(render(loaded.tokenizer, messages, prompt=True), add_special_tokens=False)
        encoded.append((prompt["input_ids"], loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]))
    totals: dict[int, float] = {}
    for read in read_answers(loaded, encoded, batch_size):
        totals.update(zip(read.chosen, _totals(loaded, read), strict=True))
    return [AnswerLikelihood(totals[i], len(answer)) for i, (_, answer) in enumerate(encoded)]


def _totals(loaded: Loaded, read: Read) -> list[float]:
    """Each answer's log-likelihood; the language-model head, the dearest layer, sees answer positions only."""
    hidden = torch.cat([read.before[:, None], read.output.last_hidden_state[:, :-1]], dim=1)
    rows, ids = hidden[read.mask], read.ids[read.mask]
    parts = zip(torch.split(rows, POSITIONS), torch.split(ids, POSITIONS), strict=True)
    each = [F.cross_entropy(head_logits(loaded.model, h).float(), i, reduction="none") for h, i in parts]
    nll = torch.cat(each).double()
    losses = torch.zeros(len(read.ids), dtype=torch.double, device=nll.device)
    losses.index_add_(0, read.mask.nonzero()[:, 0], nll)
    return [-float(loss) for loss in losses]
