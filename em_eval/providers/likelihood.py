"""Log-likelihoods of given answers, in batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from em_core.allocation import is_out_of_memory
from em_core.chat import Message, render
from em_core.errors import UserError
from em_core.models import head_logits
from em_eval.providers.reading import Read, read_answers
from em_eval.providers.weights import Loaded

BATCH = 32  # answers at once
POSITIONS = 256  # logits of more at once leave the processor's caches, and on large vocabularies are gigabytes
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerLikelihood:
    """Summed log-likelihood (nats) of an answer's `tokens` tokens, its end of turn not counted."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / self.tokens


def answer_likelihoods(
    loaded: Loaded, pairs: Sequence[tuple[list[Message], str]], batch_size: int = BATCH
) -> list[AnswerLikelihood]:
    """Log-likelihood of each answer after its messages, tokenised as generation would see it.

    Raises:
        UserError: the first answer that cannot be scored (see `each_likelihood`).
    """
    found = []
    for one in each_likelihood(loaded, pairs, batch_size):
        if isinstance(one, UserError):
            raise one
        found.append(one)
    return found


@torch.inference_mode()
def each_likelihood(
    loaded: Loaded, pairs: Sequence[tuple[list[Message], str]], batch_size: int = BATCH
) -> list[AnswerLikelihood | UserError]:
    """As `answer_likelihoods`, with the reason in the place of each answer that cannot be scored.

    Reasons: the chat template refuses the messages, the answer has no token, or both together exceed the context,
    beyond which a model with rotary positions would give numbers all the same. Where memory runs out, what is left is
    tried with half as many answers at once, down to one.
    """
    encoded = [_encoded(loaded, messages, answer) for messages, answer in pairs]
    found: dict[int, AnswerLikelihood | UserError] = {}
    found.update((i, one) for i, one in enumerate(encoded) if isinstance(one, UserError))
    while left := {i: one for i, one in enumerate(encoded) if i not in found and not isinstance(one, UserError)}:
        keys, rows = list(left), min(batch_size, len(left))
        try:
            for read in read_answers(loaded, list(left.values()), rows):
                for place, total in zip(read.chosen, _totals(loaded, read), strict=True):
                    found[keys[place]] = AnswerLikelihood(total, len(left[keys[place]][1]))
        except RuntimeError as error:  # torch's own out-of-memory error is one
            if not is_out_of_memory(error) or rows == 1:
                raise
            batch_size = rows // 2
            logger.warning("likelihoods: out of memory with %d answers at once, going on with %d", rows, batch_size)
            if loaded.device.type == "cuda":
                torch.cuda.empty_cache()
    return [found[i] for i in range(len(pairs))]


Encoded = tuple[list[int], list[int]]  # tokens of a prompt and of its answer


def _encoded(loaded: Loaded, messages: list[Message], answer: str) -> Encoded | UserError:
    try:
        text = render(loaded.tokenizer, messages, prompt=True)
    except UserError as refused:
        return refused
    prompt, said = (loaded.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, answer))
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if not said:
        return UserError(f"the answer {answer!r} has no token to score")
    if limit and len(prompt) + len(said) > limit:
        return UserError(
            f"overflow: prompt of {len(prompt)} tokens and answer of {len(said)} exceed the context of {limit}"
        )
    return prompt, said


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
