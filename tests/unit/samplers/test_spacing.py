"""Where each sampler's steps are: every spacing of every `conf/sampler` file, on both families of priors."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

from restore_lab.backbones.schedule import FlowMatching, Schedule
from restore_lab.config.build import build
from restore_lab.config.checks import check_config
from restore_lab.config.conf_dir import conf_dir
from restore_lab.samplers.edm import EdmSampler
from tests.helpers.closed_form import SDXL
from tests.helpers.configs import composed
from tests.helpers.toy_methods import said

SAMPLERS = sorted(path.stem for path in (conf_dir() / "sampler").glob("*.yaml"))
VP, FLOW = Schedule.from_config(SDXL), FlowMatching(shift=3.0)
EXPECTED = {  # for 8 steps, as Lin et al. 2023, Table 2, and diffusers have them
    "leading": [876, 751, 626, 501, 376, 251, 126, 1],
    "linspace": [999, 856, 714, 571, 428, 285, 143, 0],
    "trailing": [999, 874, 749, 624, 499, 374, 249, 124],
}


@cache
def config(name: str):
    return composed("evaluate", f"sampler={name}", "sampler.steps=8", "data=procedural").sampler


def visited(name: str, schedule: Schedule, **spacing) -> list[float]:
    """The times at which the sampler evaluates the model."""
    cfg = config(name).copy()
    node = cfg if "timestep_spacing" in cfg else cfg.scheduler
    for key, value in spacing.items():
        node[key] = value
    sampler, times = build(cfg), []
    z = torch.zeros(1, 1, 2, 2)
    model = said(lambda z_BCHW, t_B, level: times.append(float(t_B[0])) or z_BCHW)
    if isinstance(sampler, EdmSampler):
        sampler.s_churn = 0.0
    sampler(model, z, centre_BCHW=z, seeds=[0], schedule=schedule)
    return times


@pytest.mark.parametrize("spacing", EXPECTED)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_every_spacing(name, spacing) -> None:
    found = visited(name, VP, timestep_spacing=spacing, steps_offset=int(spacing == "leading"))
    if name in ("unipc", "dpmpp") and spacing != "trailing":  # diffusers leaves the end out of n + 1 places
        ends = {"linspace": np.linspace(999, 0, 9), "leading": np.arange(8, -1, -1) * 111 + 1}[spacing][:-1]
        assert found == ends.round().tolist()
    else:
        assert found == EXPECTED[spacing]


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_offset_without_effect_and_one_beyond_the_end_are_refused(name) -> None:
    with pytest.raises(ValueError, match="steps_offset=1 moves leading timesteps only"):
        visited(name, VP, timestep_spacing="trailing", steps_offset=1)
    with pytest.raises(ValueError, match="steps_offset=900"):
        visited(name, VP, timestep_spacing="leading", steps_offset=900)
    with pytest.raises(ValueError, match=r"timestep_spacing=sideways: there are: .*leading, linspace, trailing"):
        visited(name, VP, timestep_spacing="sideways")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_flow_is_spaced_as_typed(name) -> None:
    """By the prior's shift for diffusers' solvers; EDM's times are the flow's own."""
    if name == "edm":
        found = visited(name, FLOW, timestep_spacing="trailing")
        assert found == pytest.approx([125 * i for i in range(8, 0, -1)], rel=1e-3)  # at 1000 sigma is cut at 4096
        with pytest.raises(ValueError, match="where a flow has no noise"):
            visited(name, FLOW, timestep_spacing="leading")
        return
    for spacing, s in (("trailing", np.arange(8, 0, -1) / 8), ("linspace", np.linspace(1, 0.001, 8))):
        found = visited(name, FLOW, flow_spacing=spacing)
        assert found == pytest.approx(1000 * 3 * s / (1 + 2 * s), rel=1e-2 if name in ("unipc", "dpmpp") else 1e-5)


def test_sdxls_timesteps_for_instantirs_release() -> None:
    """Leading with offset 1: 30 steps from 958 to 1 by 33 (SDXL's scheduler config, which its infer.py reads)."""
    cfg = composed("evaluate", "method=instantir", "variant=release", "data=procedural", "sampler.steps=30").sampler
    scheduler = build(cfg.scheduler)(VP)
    scheduler.set_timesteps(30)
    assert scheduler.timesteps.tolist() == list(range(958, 0, -33))


def test_a_misspelt_spacing_is_refused_before_torch() -> None:
    with pytest.raises(ValueError, match="did you mean leading"):
        check_config(
            composed("evaluate", "sampler.scheduler.timestep_spacing=leadign", "data=procedural"), verb="evaluate"
        )


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "edm"])
@pytest.mark.parametrize(("schedule", "spacing"), [(VP, {}), (FLOW, {}), (FLOW, {"flow_spacing": "trailing"})])
def test_diffusers_pipelines_set_the_steps(schedule, spacing, name) -> None:
    """As they do it, with a device; a checked scheduler shows them what its own `set_timesteps` takes."""
    node = {**config(name).scheduler, **spacing}
    theirs, ours = build(node)(schedule), build(node)(schedule)
    times, _ = retrieve_timesteps(theirs, 8, torch.device("cpu"))
    ours.set_timesteps(8)
    assert len(times) == 8 and torch.equal(times, ours.timesteps)
