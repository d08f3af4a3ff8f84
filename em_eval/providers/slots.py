"""Keys and values of a batch whose rows come and go.

Every row fills slots of its own from 0 upwards and sees no other slot, so what a row computes does not depend on
its neighbours, nor on how many they are, beyond what the machine's matrix products round differently.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from em_core.errors import UserError


@dataclass
class _Place:
    """Where a forward pass reads and writes: `positions` (n, t) of rows from `first` on, out of slots up to `reach`.

    The layers share this and not the `Slots` that hold them: buffers in a reference cycle would outlive their batch
    until Python's collector comes by, and memory that ran out would not be free for the next, smaller one.
    """

    rows: int
    width: int
    positions: Tensor = field(default_factory=lambda: torch.empty(0))
    first: int = 0
    reach: int = 0


def row_bytes(model: Any, width: int) -> int:
    """Memory of one row of `width` tokens: its keys and values, and the logits that are drawn from, four times over.

    Keys and values are taken to be of one size in all layers; a model of which that is not true is estimated only.
    """
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * heads * size * width * model.dtype.itemsize
    return int(kept + 4 * config.vocab_size * torch.float32.itemsize)


class Slots:
    """Room for `rows` sequences of up to `width` tokens under a decoder-only transformers model.

    Raises:
        UserError: a model that keeps something else than keys and values (state-space and linear attention).
    """

    def __init__(self, model: Any, rows: int, width: int) -> None:
        config = model.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        odd = kinds - {"full_attention", "sliding_attention"}
        if odd:
            raise UserError(f"peft/ cannot run layers of type {sorted(odd)[0]}: use hf/ or vllm/ for this model")
        # Older configurations name no layer types: there a window counts for every layer.
        window = getattr(config, "sliding_window", None)
        self._window = window if "sliding_attention" in kinds or not getattr(config, "layer_types", None) else None
        self._kinds = kinds if len(kinds) > 1 else set()
        self._place = _Place(rows, width)
        self._layers = [_Layer(self._place) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=self._layers)

    def forward(self, model: Any, ids: Tensor, positions: Tensor, first: int = 0, **kwargs: Any) -> Any:
        """The model's output for token `ids` (n, t) of rows `first` to `first + n`, at `positions` (n, t).

        A token sees the slots of its row up to its own. Tokens of padding may stand at positions beyond a row's
        end: what they write is overwritten before it is seen.
        """
        reach = int(positions.max()) + 1
        self._place.positions, self._place.first, self._place.reach = positions, first, reach
        slots = torch.arange(reach, device=ids.device)
        seen = slots <= positions[..., None]
        near = seen & (slots > positions[..., None] - self._window) if self._window else seen
        full, sliding = (_additive(mask, model.dtype) for mask in (seen, near))
        mask = {"full_attention": full, "sliding_attention": sliding} if self._kinds else sliding
        return model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            **kwargs,
        )

    def copy(self, source: Tensor, target: Tensor, width: int) -> None:
        """Rows `target` become what rows `source` are, up to slot `width`."""
        if len(source):
            for layer in self._layers:
                for buffer in (layer.keys, layer.values):
                    assert buffer is not None
                    buffer[target, :, :width] = buffer[source, :, :width]


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, (rows, heads, width, head size) each, allocated at the first use."""

    is_sliding = False

    def __init__(self, place: _Place) -> None:
        super().__init__()
        self.place = place

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(like: Tensor) -> Tensor:
            # Zeros, since what is not seen still enters the product, where a stray NaN would survive its weight 0.
            return like.new_zeros(self.place.rows, like.shape[1], self.place.width, like.shape[3])

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        positions, first = self.place.positions, self.place.first
        last, width = first + len(positions), self.place.reach
        rows = torch.arange(first, last, device=positions.device)[:, None]
        self.keys[rows, :, positions] = key_states.transpose(1, 2)
        self.values[rows, :, positions] = value_states.transpose(1, 2)
        return self.keys[first:last, :, :width], self.values[first:last, :, :width]

    def get_seq_length(self) -> int:
        return self.place.reach if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        return self.place.width


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 1, t, width): 0 where seen, the dtype's lowest value elsewhere; every attention implementation takes it."""
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
