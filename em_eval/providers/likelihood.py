"""Log-likelihoods of given answers, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from em_core.chat import Message, render
from em_core.models import changes_logits
from em_eval.providers.padding import pad_right
from em_eval.providers.weights import Loaded


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
    """Log-likelihood of each answer after its messages, tokenised as generation would see it.

    Rows of similar length share a batch; padding is on the right, so it changes no value.
    """
    encoded = []
    for messages, answer in pairs:
        prompt = loaded.tokenizer(render(loaded.tokenizer, messages, prompt=True), add_special_tokens=False)[
            "input_ids"
        ]
        encoded.append((prompt, loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]))
    order = sorted(range(len(encoded)), key=lambda i: sum(map(len, encoded[i])))
    results: dict[int, AnswerLikelihood] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, value in zip(chosen, _batch(loaded, [encoded[i] for i in chosen]), strict=True):
            results[index] = value
    return [results[i] for i in range(len(encoded))]


def _batch(loaded: Loaded, rows: list[tuple[list[int], list[int]]]) -> list[AnswerLikelihood]:
    ids, mask, answered = pad_right(loaded, rows)
    wanted = answered[:, 1:]
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if changes_logits(loaded.model.config):
        logits = loaded.model(**inputs).logits[:, :-1][wanted].float()
    else:
        # The language-model head is the dearest layer of a small model: only answer positions go through it.
        hidden = loaded.model.get_decoder()(**inputs).last_hidden_state[:, :-1]
        logits = loaded.model.get_output_embeddings()(hidden[wanted]).float()
    nll = F.cross_entropy(logits, ids[:, 1:][wanted], reduction="none").double()
    losses = torch.zeros(len(rows), dtype=torch.double, device=nll.device)
    losses.index_add_(0, wanted.nonzero()[:, 0], nll)
    return [AnswerLikelihood(-float(loss), len(answer)) for loss, (_, answer) in zip(losses, rows, strict=True)]
