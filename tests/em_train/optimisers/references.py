"""The papers' formulas in float64 NumPy, written without looking at the libraries that ship the optimisers.

A reference takes the factors (A, B), their gradients, a dictionary for its state, the step from 1 and the rate, and
returns the new factors.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def each(rule):
    """A rule for one matrix as a reference for both factors."""

    def both(values, grads, state, t, lr, **hyper):
        states = state.setdefault("each", [{}, {}])
        return [rule(p, g, s, t, lr, **hyper) for p, g, s in zip(values, grads, states, strict=True)]

    return both


def adam(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Kingma & Ba 2015, algorithm 1; weight decay as an L2 term of the objective."""
    g = g + weight_decay * p
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    return p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def adamw(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """Loshchilov & Hutter 2019, algorithm 2."""
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return p - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)


def lion(p, g, state, t, lr, betas=(0.9, 0.99), weight_decay=0.0):
    """Chen et al. 2023, algorithm 2."""
    m = state.get("m", np.zeros_like(g))
    c = betas[0] * m + (1 - betas[0]) * g
    state["m"] = betas[1] * m + (1 - betas[1]) * g
    return p - lr * (np.sign(c) + weight_decay * p)


def sgd(p, g, state, t, lr, momentum=0.9, dampening=0.0, nesterov=False, weight_decay=0.0):
    """Polyak momentum, its first value the gradient itself (Sutskever et al. 2013 for Nesterov)."""
    g = g + weight_decay * p
    state["m"] = m = momentum * state["m"] + (1 - dampening) * g if "m" in state else g
    return p - lr * (g + momentum * m if nesterov else m)


def signsgd(p, g, state, t, lr, momentum=0.0, weight_decay=0.0):
    """Bernstein et al. 2018, algorithm 1, and algorithm 2 (Signum) with momentum and its decay."""
    m = state["m"] = momentum * state.get("m", 0) + (1 - momentum) * g
    return p - lr * (np.sign(m) + weight_decay * p)


def newton_schulz(g, steps=5, eps=1e-7):
    """Jordan et al. 2024: quintic iteration on the wide orientation, coefficients as published."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / max(np.linalg.norm(x), eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def msign(g):
    """U V' of the singular value decomposition, over the nonzero singular values."""
    u, sigma, v = np.linalg.svd(g, full_matrices=False)
    keep = sigma > 1e-12 * max(sigma.max(), 1e-300)
    return u[:, keep] @ v[keep]


def muon_one(
    p, g, state, t, lr, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.1, adjust_lr_fn="original", polar=""
):
    """Jordan et al. 2024 with heavy-ball momentum; "match_rms_adamw" is Liu et al. 2025, equation 4.

    torch averages the momentum instead of summing it: the same up to a factor, which the orthogonalisation drops.
    """
    m = state["m"] = momentum * state.get("m", 0) + g
    direction = g + momentum * m if nesterov else m
    update = msign(direction) if polar == "exact" else newton_schulz(direction, ns_steps)
    rows, columns = p.shape
    scale = math.sqrt(max(1, rows / columns)) if adjust_lr_fn == "original" else 0.2 * math.sqrt(max(p.shape))
    return (1 - lr * weight_decay) * p - lr * scale * update


def muon(values, grads, state, t, lr, orthogonalise="ab", adamw_lr=None, adamw_weight_decay=0.01, **hyper):
    """Muon on both factors, or on B with AdamW on A. `adamw_lr` is a multiple of `lr` here, as the schedule scales
    both."""
    states = state.setdefault("each", [{}, {}])
    b = muon_one(values[1], grads[1], states[1], t, lr, **hyper)
    if orthogonalise == "ab":
        return [muon_one(values[0], grads[0], states[0], t, lr, **hyper), b]
    rate = lr if adamw_lr is None else lr * adamw_lr
    return [adamw(values[0], grads[0], states[0], t, rate, weight_decay=adamw_weight_decay), b]


def inverse_root(s, damping):
    """(S + damping sigma_1 I)^(-1/2), and 0 for S = 0."""
    values, vectors = np.linalg.eigh(s)
    if values[-1] <= 0:
        return np.zeros_like(s)
    return vectors @ np.diag((values + damping * values[-1]) ** -0.5) @ vectors.T


def lora_muon(values, grads, state, t, lr, momentum=0.95, damping=1e-6, weight_decay=0.0):
    """arXiv 2606.12921: steepest descent in the spectral norm of BA, decay split between the factors."""
    a, b = values
    m_a = state["a"] = momentum * state.get("a", 0) + (1 - momentum) * grads[0]
    m_b = state["b"] = momentum * state.get("b", 0) + (1 - momentum) * grads[1]
    root_a, root_b = inverse_root(a @ a.T, damping), inverse_root(b.T @ b, damping)
    step_b = -lr / 2 * msign(m_b @ root_a) @ root_a
    step_a = -lr / 2 * root_b @ msign(root_b @ m_a)
    s = math.sqrt(1 - weight_decay * lr)
    return [s * a + step_a / s, s * b + step_b / s]


def adafactor(
    p, g, state, t, lr, eps=(1e-30, 1e-3), clip_threshold=1.0, beta1=None, weight_decay=0.0, scale_parameter=False
):
    """Shazeer & Stern 2018, algorithm 4 with the decay of section 7.2; the rate is the schedule's, multiplied by the
    matrix's root mean square under `scale_parameter` (section 8). First moment and decay are common additions."""
    beta2 = 1 - t**-0.8
    squares = g**2 + eps[0]
    r = state["r"] = beta2 * state.get("r", 0) + (1 - beta2) * squares.sum(axis=1)
    c = state["c"] = beta2 * state.get("c", 0) + (1 - beta2) * squares.sum(axis=0)
    u = g / np.sqrt(np.outer(r, c) / r.sum())
    u = u / max(1, np.sqrt((u**2).mean()) / clip_threshold)
    alpha = lr * max(eps[1], np.sqrt((p**2).mean())) if scale_parameter else lr
    step = alpha * u
    if beta1 is not None:
        step = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * step
    return (1 - weight_decay * alpha) * p - step


def soap(
    p, g, state, t, lr, betas=(0.95, 0.95), eps=1e-8, weight_decay=0.01, precondition_frequency=10,
    max_precondition_dim=256,
):  # fmt: skip
    """Vyas et al. 2024, algorithm 3, with Adam's bias corrections and a first step that only starts the eigenbases,
    as the authors run it; a side longer than `max_precondition_dim` keeps the identity."""

    def statistics():
        yield "l", g @ g.T, p.shape[0] <= max_precondition_dim
        yield "r", g.T @ g, p.shape[1] <= max_precondition_dim

    def average():
        for side, outer, used in statistics():
            if used:
                state[side] = betas[1] * state.get(side, 0) + (1 - betas[1]) * outer

    if t == 1:
        average()
        for side, outer, used in statistics():
            state["q" + side] = np.linalg.eigh(state[side])[1] if used else np.eye(len(outer))
        return p
    left, right = state["ql"], state["qr"]
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * (left.T @ g @ right) ** 2
    update = left @ ((left.T @ m @ right) / (np.sqrt(v) + eps)) @ right.T
    rate = lr * math.sqrt(1 - betas[1] ** (t - 1)) / (1 - betas[0] ** (t - 1))
    p = (p - rate * update) * (1 - lr * weight_decay)
    average()
    if (t - 1) % precondition_frequency == 0:
        for axis, (side, _, used) in enumerate(statistics()):
            if used:
                basis = state["q" + side]
                order = np.argsort(-np.diag(basis.T @ state[side] @ basis))
                state["v"] = np.take(state["v"], order, axis=axis)
                state["q" + side] = np.linalg.qr(state[side] @ basis[:, order])[0]
    return p


def schedule_free_adamw(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, r=0.0, weight_lr_power=2.0):
    """Defazio et al. 2024, algorithm 1, in its three sequences; returns y, and leaves x in the state. The correction
    of the second moment divides it, as in the authors' code, instead of scaling the rate."""
    x, z = state.get("x", p), state.get("z", p)
    y = (1 - betas[0]) * z + betas[0] * x
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    z = z - lr * (g / (np.sqrt(v / (1 - betas[1] ** t)) + eps) + weight_decay * y)
    state["largest"] = max(state.get("largest", 0.0), lr)
    weight = t**r * state["largest"] ** weight_lr_power
    state["sum"] = state.get("sum", 0.0) + weight
    x = x + weight / state["sum"] * (z - x)
    state.update(x=x, z=z)
    return (1 - betas[0]) * z + betas[0] * x


REFERENCES: dict[str, Any] = {
    "adam": each(adam),
    "adamw": each(adamw),
    "sgd": each(sgd),
    "lion": each(lion),
    "muon": muon,
    "muon_gram": muon,
    "lora_muon": lora_muon,
    "signsgd": each(signsgd),
    "soap": each(soap),
    "adafactor": each(adafactor),
    "schedule_free_adamw": each(schedule_free_adamw),
}
