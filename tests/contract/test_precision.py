"""Methods around a prior in 16 bits: trained parts and results stay in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from restore_lab.config.build import build
from restore_lab.types import Batch, Recipe
from tests.helpers.configs import composed


def pairs() -> Batch:
    recipe = Recipe(pipeline="none", seed=0, steps=())
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    both: dict[str, Any] = {"hq_BCHW": image, "lq_BCHW": image.flip(0), "caption": ("a", "b"), "key": ("a", "b")}
    return Batch(**both, seed=(1, 2), recipe=(recipe, recipe))


@pytest.mark.parametrize("method", ["spire", "supir", "instantir", "dra"])
def test_a_bfloat16_prior_leaves_trained_parts_in_float32(method) -> None:
    """Trained parts stay in float32; a sample is near the float32 prior's, without any autocast around it."""
    found: dict[str, Tensor] = {}
    cfg = composed("train", f"method={method}", "lq_encoder=codec", "sampler.steps=2")
    for dtype in ("float32", "bfloat16"):
        cfg.backbone.dtype = dtype
        torch.manual_seed(0)
        module = build(cfg.module)
        assert {p.dtype for p in module.trainable().values()} == {torch.float32}
        assert next(module.backbone.denoiser.parameters()).dtype == getattr(torch, dtype)
        loss = module.loss(pairs(), step=0)["loss"]
        loss.backward()
        grads = [p.grad for p in module.trainable().values() if p.grad is not None]
        assert grads and all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
        found[dtype] = module.eval().restore(pairs())
    assert found["bfloat16"].dtype == torch.float32
    assert 0 < (found["bfloat16"] - found["float32"]).abs().mean() < 0.05
