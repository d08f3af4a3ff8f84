"""The linear layers of Qwen3-8B, whose LoRA factors the benchmarks of optimisers and spectra have."""

HIDDEN, KEYS, INNER = 4096, 1024, 12288
LAYERS, RANK = 36, 32
PROJECTIONS = {  # name: (inputs n, outputs m); A is r x n, B is m x r
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (HIDDEN, KEYS),
    "v_proj": (HIDDEN, KEYS),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (HIDDEN, INNER),
    "up_proj": (HIDDEN, INNER),
    "down_proj": (INNER, HIDDEN),
}
