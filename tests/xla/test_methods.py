"""Each method on XLA: steps and sampling compile nothing after the first, and equal the CPU's results.

The modules are driven directly, as Lightning's trainer would: its TPU accelerator refuses XLA's CPU device.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_xla
from torch import Tensor

from restore_lab.types import Batch, Recipe, Step
from tests.helpers.configs import composed
from tests.helpers.matrix import made
from tests.helpers.toy_methods import toy_batch
from tests.helpers.toy_priors import toy_dino, toy_unet_folder
from tests.xla.counted import ON_TPUS, SOLVES, spent

# Step 1 compiles, and step 2, which finds the optimiser's moments there. What an image encoder sees in a black image is
# remembered from step 1 on.
WARM = 2
STEPS = 5
SMALL = ("adaptor.hint_widths=[4,4]", "adaptor.hint_channels=4")
METHODS: dict[str, tuple[str, ...]] = {
    "spire": SMALL,
    "controlnet": SMALL,
    "regression": SMALL,
    "supir": ("++encoder_weights=null",),
    "dra": ("++encoder_weights=null", "++lora_rank=2"),
    "instantir": ("++lora_rank=2", "++resampler={hidden:16,depth:1,heads:2,dim_head:8,queries:4}"),
    "diff_restorer": ("++control_encoder={widths:[8,8,8,8],out:8}", "decoder.blocks=2"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prior and a DINOv2, both random."""
    folder = tmp_path_factory.mktemp("priors")
    return toy_unet_folder(folder, "mini"), toy_dino(folder / "dino")


def module_of(method: str, folders: tuple[Path, Path]) -> Any:
    prior, dino = folders
    words = [f"method={method}", "backbone=tiny_sd", f"backbone.path={prior}", "weights=null", "sampler.steps=4"]
    words += [f"prompt.visual.path={dino}"] if method == "instantir" else []
    words += ["sampler.guidance.scale=3.0"] if method not in ("diff_restorer", "regression") else ["sampler.steps=4"]
    return made(composed("evaluate", *dict.fromkeys(words), *METHODS[method]))


def batch(number: int) -> Batch:
    """A batch unlike the others in images, words, recipes and seeds; in one of them all say the same."""
    words = ("the same",) * 2 if number == 3 else (f"picture {number}", f"another {number}")
    kinds = ("haze", "rain") if number % 2 else ("noise", "jpeg")
    steps = [tuple(Step(kind=kind, says=f"De{kind}", says_type=kind) for kind in kinds[: 1 + i]) for i in range(2)]
    recipes = tuple(Recipe(pipeline="toy", seed=number, steps=one) for one in steps)
    return replace(
        toy_batch(2, size=(8, 8), seed=number), caption=words, recipe=recipes, seed=(100 + number, 200 + number)
    )


def step(module: Any, optimiser: torch.optim.Optimizer, pairs: Batch) -> Tensor:
    optimiser.zero_grad()
    loss = module.loss(pairs, step=0)["loss"]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(module.trainable().values()), 1.0)
    optimiser.step()
    return loss.detach()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_restores_without_compiling_again(method, folders, capsys) -> None:
    device = torch_xla.device()
    plain, module = module_of(method, folders), module_of(method, folders).to(device)
    # A large eps: where a gradient is nearly nothing, Adam's quotient would turn rounding into steps.
    plain_adam, adam = (torch.optim.AdamW(list(m.trainable().values()), lr=1e-3, eps=1e-3) for m in (plain, module))
    trained = [spent(lambda n=n: step(module, adam, batch(n).to(device))) for n in range(STEPS)]
    assert [one.compiled for one in trained[WARM:]] == [0] * (STEPS - WARM)
    assert set().union(*(one.on_host for one in trained)) <= ON_TPUS
    losses = torch.stack([one.result.cpu() for one in trained])
    torch.testing.assert_close(
        losses, torch.stack([step(plain, plain_adam, batch(n)) for n in range(STEPS)]), rtol=1e-4, atol=0
    )
    worst = max(
        float((p.detach().cpu() - module.trainable()[name].detach().cpu()).abs().max())
        for name, p in plain.trainable().items()
    )
    assert worst < 1e-5, "weights of about 0.1 after five steps of 1e-3"

    module.eval(), plain.eval()
    restored = [spent(lambda n=n: module.restore(batch(n).to(device))) for n in range(3)]
    assert [one.compiled for one in restored[1:]] == [0, 0], "a second image needs no new program"
    on_host = ON_TPUS | (SOLVES if method == "diff_restorer" else set())  # whose sampler is UniPC
    assert set().union(*(one.on_host for one in restored)) <= on_host
    for n, one in enumerate(restored):
        torch.testing.assert_close(one.result.cpu(), plain.restore(batch(n)), rtol=0, atol=1e-4)
    with capsys.disabled():
        counts = [one.compiled for one in trained], [one.compiled for one in restored]
        print(f"\n{method}: programs by step {counts[0]}, by image {counts[1]}; weights within {worst:.0e}")
