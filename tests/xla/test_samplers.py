"""Every sampler with every fidelity guidance on XLA: the model is one program, and later images need no other."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch_xla
from torch import Tensor

from restore_lab.backbones.schedule import FlowMatching, Schedule
from restore_lab.samplers import schedulers
from restore_lab.samplers.edm import EdmSampler
from restore_lab.samplers.fidelity.base import FidelityGuidance
from restore_lab.samplers.fidelity.restoration_guided import RestorationGuided
from restore_lab.samplers.fidelity.rss import RestorationSampling
from restore_lab.samplers.level import Level
from restore_lab.samplers.tiling import Gaussian, TileBatch, Tiles
from tests.helpers.toy_methods import said, sampler_parts, toy_sampler
from tests.xla.counted import SOLVES, spent

SCHEDULES = {
    "vp": Schedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
    "flow": FlowMatching(shift=3.0),
}
FACTORIES: dict[str, Any] = {
    "ddim": partial(schedulers.ddim, timestep_spacing="leading"),
    "ddpm": partial(schedulers.ddpm, timestep_spacing="trailing"),
    "unipc": partial(schedulers.unipc, timestep_spacing="trailing"),
    "dpmpp": partial(schedulers.dpmpp, timestep_spacing="trailing"),
    "euler_flow": schedulers.euler_flow,
    "lcm": partial(schedulers.lcm, original_steps=50),
}
NAMES = [*FACTORIES, "edm"]
FIDELITIES = {
    "none": FidelityGuidance(),
    "restoration_guided": RestorationGuided(tau_r=2.0, s_tmin=0.0),
    "rss": RestorationSampling(weight=0.5, threshold=0.2),
}


def sampler_of(name: str, fidelity: FidelityGuidance, steps: int) -> Any:
    if name == "edm":
        churn = {"s_churn": 3.0, "s_noise": 1.0, "s_tmin": 0.0, "s_tmax": None}
        return EdmSampler(steps=steps, **churn, **sampler_parts(fidelity=fidelity))
    return toy_sampler(steps=steps, scheduler=FACTORIES[name], fidelity=fidelity)


def model(z_BCHW: Tensor, t_B: Tensor, level: Level) -> Tensor:
    return 0.9 * torch.sin(z_BCHW) + 0.001 * t_B.to(z_BCHW)[:, None, None, None]


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", SCHEDULES)
def test_later_images_need_no_new_program(family, name, fidelity) -> None:
    # Each sampler at a size of its own: torch-xla 2.9.0 takes LCM's step for DDIM's, if both are met in one process.
    size = (2, 4, 4, 4 + NAMES.index(name))

    def sample(seed: int, *, steps: int, device: Any) -> Tensor:
        lq = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device)
        sampler = sampler_of(name, FIDELITIES[fidelity], steps)
        return sampler(said(model), lq, centre_BCHW=0.5 * lq, seeds=(seed, seed + 9), schedule=SCHEDULES[family])

    images = ((1, 8), (2, 8), (3, 11), (4, 11))  # seed and number of steps
    made = [spent(lambda s=s, n=n: sample(s, steps=n, device=torch_xla.device())) for s, n in images]
    first, again, more, more_again = (one.compiled for one in made)
    assert first <= 8, "the model, and the solver's first, second, middle and last steps, at most twice"
    assert again == more_again == 0, "another image needs no new program"
    assert more <= 1, "nor does another number of steps, but for a last step that stands elsewhere"
    assert all(one.on_host <= (SOLVES if name == "unipc" else set()) for one in made)
    for one, (seed, steps) in zip(made, images, strict=True):
        expected = sample(seed, steps=steps, device="cpu")
        torch.testing.assert_close(one.result.cpu(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_model_is_compiled_once_for_all_steps() -> None:
    """A model that notes its programs: however many steps, one."""
    compiled: list[int] = []

    def watched(z_BCHW: Tensor, t_B: Tensor, level: Level) -> Tensor:
        return torch.cos(z_BCHW) * t_B.to(z_BCHW)[:, None, None, None].sqrt()

    def asked(z_BCHW: Tensor, t_B: Tensor, level: Level) -> Tensor:
        one = spent(lambda: watched(z_BCHW, t_B, level))
        compiled.append(one.compiled)
        return one.result

    lq = torch.randn(2, 4, 4, 4).to(torch_xla.device())
    sampler_of("dpmpp", FidelityGuidance(), 6)(said(asked), lq, centre_BCHW=lq, seeds=(1, 2), schedule=SCHEDULES["vp"])
    assert compiled == [1, 0, 0, 0, 0, 0]


def test_tiles_share_the_models_program() -> None:
    settings = Gaussian(tile=8, overlap=2, batch=2, sigma=0.1, words="image")
    tiles = Tiles(size=(12, 20), tile=(8, 8), overlap=2, compression=1, settings=settings)
    assert len(tiles.windows) == 6
    z = torch.randn(1, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    compiled: list[int] = []

    def ask(part: TileBatch) -> Tensor:
        tile_BCHW = part.crop(z.to(torch_xla.device()))
        one = spent(lambda: torch.tanh(tile_BCHW))
        compiled.append(one.compiled)
        return one.result

    on_xla = tiles.blend(ask, z.to(torch_xla.device())).cpu()
    assert compiled == [1, 0, 0]
    torch.testing.assert_close(on_xla, tiles.blend(lambda part: torch.tanh(part.crop(z)), z), rtol=0, atol=1e-6)
