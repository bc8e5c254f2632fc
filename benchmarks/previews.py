"""InstantIR's previews: what distillation gave them (Eq. 5), and what they say of an input's quality (Fig. 4).

    .venv/bin/python benchmarks/previews.py --weights asset:instantir_tiny_sdxl --sheet previews.png

First table: from one z_t, the previewer's single step with LoRA ("after") and the prior's own denoising mean, LoRA off
("before"), against the answer that the teacher, LoRA off, reaches by DDIM over all the steps that lie below t. All see
the LQ through DCP; the teacher is told the caption too and guided, as when it taught. Error: |one step - many|^2 /
|many|^2 in latents; PSNR between the decoded images; detail: mean absolute gradient of the luma over the original's.
Second table: the error of the denoising mean in latents (squared, without words) when DCP sees the image's own LQ,
another's, or black. Third table and the picture: while inputs of falling quality are restored with previews as they
are, (a) the distance of preview and denoising mean, (b) of a preview to the one before it, both squared, (c) delta
(Eq. 7), a over b; medians over images, and in the table their means over the steps behind the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from configs import composed
from torch import Tensor

from restore_lab.config.build import build
from restore_lab.data.image_io import to_tensor
from restore_lab.degradation.fixed import FixedDegradation
from restore_lab.methods.module import RestorationModule
from restore_lab.methods.reference import preview
from restore_lab.methods.weights import weights_file
from restore_lab.objectives.consistency import solver_step
from restore_lab.random import mix, noise_like
from restore_lab.samplers.fidelity.adares import AdaRes, AdaResState, relative_distance
from restore_lab.types import Batch, Cond

# Blur in pixels, noise in [0, 1], JPEG by quality; the last is SUPIR's mixture. Fig. 4's order, the best first.
INPUTS: dict[str, dict[str, float]] = {
    "HQ itself": {},
    "x4": {"downsample": 4.0},
    "x8": {"downsample": 8.0},
    "mixture": {"blur": 2.0, "downsample": 4.0, "noise": 20 / 255, "jpeg": 50},
}


class Watched(AdaRes):
    """AdaRes that steers nothing and writes down what it sees: a row a step, each (B,)."""

    def __init__(self) -> None:
        super().__init__(mode="off")
        self.watches = True
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(self, x0_BCHW: Tensor, preview_BCHW: Tensor | None, *, state: Any) -> AdaResState:
        """As AdaRes'."""
        assert preview_BCHW is not None
        before_BCHW = torch.zeros_like(preview_BCHW) if state is None else state.preview_BCHW
        apart_B, moved_B = ((preview_BCHW - other).square().flatten(1).sum(dim=1) for other in (x0_BCHW, before_BCHW))
        self.rows.append((apart_B, moved_B, relative_distance(preview_BCHW, x0_BCHW, before_BCHW)))
        return super().watch(x0_BCHW, preview_BCHW, state=state)


def pictures(source: Any, *, stages: Mapping[str, float], name: str) -> list[Batch]:
    """The held-out photographs with their degradation, in batches of 8."""
    found = [source.read(index, epoch=0) for index in range(len(source))]
    batches = []
    for first in range(0, len(found), 8):
        part = found[first : first + 8]
        hq_BCHW = torch.stack([to_tensor(picture.hq_HWC) for picture in part])
        seeds = [mix("previews", name, picture.key) for picture in part]
        lq_BCHW, recipes = FixedDegradation(name=name, stages=stages)(hq_BCHW, seeds)
        batches.append(
            Batch(
                hq_BCHW=hq_BCHW,
                lq_BCHW=lq_BCHW,
                key=tuple(picture.key for picture in part),
                caption=tuple(picture.caption for picture in part),
                seed=tuple(seeds),
                recipe=tuple(recipes),
            )
        )
    return batches


def many_steps(module: RestorationModule, z_BCHW: Tensor, t: int, cond: Cond, null: Cond, *, w: float) -> Tensor:
    """The guided prior's answer from z_t, by the solver that the previewer learned from: DDIM, a step for every 20."""
    schedule = module.backbone.schedule
    for now in range(t, 0, -20):
        s_B = torch.full((len(z_BCHW),), now)
        said, plain = (module.backbone(z_BCHW, s_B, c) for c in (cond, null))
        out_BCHW = said + w * (said - plain)
        if now <= 20:
            return schedule.to_x0(out_BCHW, z_BCHW, s_B)
        z_BCHW = solver_step(out_BCHW, z_BCHW, s_B, s_B - 20, schedule)
    raise ValueError(f"t={t}: give timesteps above 0")


def detail(image_BCHW: Tensor) -> Tensor:
    """Mean absolute gradient of the luma, one an image."""
    luma_BHW = image_BCHW.mean(dim=1)
    return (luma_BHW.diff(dim=1).abs().mean(dim=(1, 2)) + luma_BHW.diff(dim=2).abs().mean(dim=(1, 2))) / 2


@torch.no_grad()
def distillation(module: RestorationModule, batches: list[Batch], times: list[int], *, w: float) -> str:
    """The first table."""
    lines = ["| t | error before | after | PSNR before | after | detail before | after | many |", f"|{'---|' * 8}"]
    backbone = module.backbone
    for t in times:
        errors, psnrs, details = [], [], []
        for batch in batches:
            assert batch.hq_BCHW is not None and batch.lq_BCHW is not None
            size = tuple(batch.hq_BCHW.shape[-2:])
            prompt = module.conditioner.prompts(batch, training=False)
            empty = backbone.embed(("",) * len(batch), size)
            hint, cond = module.conditioner.hint(batch.lq_BCHW, prompt), module.conditioner.cond(prompt, size)
            null = module.conditioner.stream(empty, prompt.visual_null_BLD)
            z0_BCHW = backbone.codec.encode(batch.hq_BCHW)
            t_B = torch.full((len(batch),), t)
            z_BCHW = backbone.schedule.add_noise(z0_BCHW, noise_like(z0_BCHW, batch.seed, "noise"), t_B)
            before = backbone.schedule.to_x0(
                backbone(z_BCHW, t_B, module.conditioner.stream(empty, prompt.visual_BLD)), z_BCHW, t_B
            )
            after = preview(backbone, module.adaptor, z_BCHW, t_B, empty, hint)
            many = many_steps(module, z_BCHW, t, cond, null, w=w)
            images = [backbone.codec.decode(latent).clamp(0, 1) for latent in (before, after, many)]
            scale_B = many.square().flatten(1).mean(dim=1)
            errors.append(torch.stack([(z - many).square().flatten(1).mean(dim=1) / scale_B for z in (before, after)]))
            psnrs.append(
                torch.stack([-10 * (image - images[2]).square().flatten(1).mean(dim=1).log10() for image in images[:2]])
            )
            own_B = detail(batch.hq_BCHW)
            details.append(torch.stack([detail(image) / own_B for image in images]))
        error, psnr, sharp = (torch.cat(rows, dim=1) for rows in (errors, psnrs, details))
        half = 1.96 * (error[1] - error[0]).std() / len(error[0]) ** 0.5
        cells = [f"{error[0].mean():.3f}", f"{error[1].mean():.3f} ({(error[1] - error[0]).mean():+.3f} ± {half:.3f})"]
        cells += [f"{row.mean():.2f}" for row in psnr] + [f"{row.median():.2f}" for row in sharp]
        lines.append(f"| {t} | {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.no_grad()
def sight(module: RestorationModule, batches: list[Batch], times: list[int]) -> str:
    """The second table."""
    lines = ["| t | own | another's | black |", f"|{'---|' * 4}"]
    backbone = module.backbone
    for t in times:
        errors = []
        for batch in batches:
            assert batch.hq_BCHW is not None
            prompt = module.conditioner.prompts(batch, training=False)
            empty = backbone.embed(("",) * len(batch), tuple(batch.hq_BCHW.shape[-2:]))
            z0_BCHW, t_B = backbone.codec.encode(batch.hq_BCHW), torch.full((len(batch),), t)
            z_BCHW = backbone.schedule.add_noise(z0_BCHW, noise_like(z0_BCHW, batch.seed, "noise"), t_B)
            assert prompt.visual_BLD is not None
            views = (prompt.visual_BLD, prompt.visual_BLD.roll(1, dims=0), prompt.visual_null_BLD)
            means = [
                backbone.schedule.to_x0(backbone(z_BCHW, t_B, module.conditioner.stream(empty, view)), z_BCHW, t_B)
                for view in views
            ]
            errors.append(torch.stack([(mean - z0_BCHW).square().flatten(1).mean(dim=1) for mean in means]))
        lines.append(f"| {t} | {' | '.join(f'{row.mean():.4f}' for row in torch.cat(errors, dim=1))} |")
    return "\n".join(lines)


@torch.no_grad()
def by_quality(module: RestorationModule, source: Any) -> dict[str, Tensor]:
    """By input: (3, steps, images): distance, movement and delta."""
    found = {}
    for name, stages in INPUTS.items():
        rows = []
        for batch in pictures(source, stages=stages, name=name):
            watched = module.sampler.fidelity = Watched()
            module.restore(batch)
            rows.append(torch.stack([torch.stack(step) for step in watched.rows], dim=1))
        found[name] = torch.cat(rows, dim=2)
    return found


def draw(found: Mapping[str, Tensor], file: Path) -> None:
    """Fig. 4: three panels, one line an input."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.2))
    titles = ("(a) |preview - denoising mean|²", "(b) |preview - preview before|²", "(c) delta: (a) over (b)")
    for panel, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for name, rows in found.items():
            axis.plot(range(1, rows.shape[1] + 1), rows[panel].median(dim=1).values, label=name)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("step")
        axis.set_yscale("log")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Print the tables; write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--crops", type=int, default=4, help="of each of the 14 photographs")
    parser.add_argument("--times", type=int, nargs="+", default=[999, 799, 599, 399, 199])
    parser.add_argument("--guidance", type=float, default=2.0, help="the teacher's w; 0 is none")
    parser.add_argument("--sheet", type=Path)
    given, overrides = parser.parse_known_args()
    cfg = composed("evaluate", "method=instantir", f"photos_crops={given.crops}", "progress=false", *overrides)
    module, source = build(cfg.module).eval(), build(cfg.eval_data)
    module.load_weights(weights_file(given.weights))
    module.sampler.progress = False
    print(f"n = {len(source)} crops of held-out photographs; medians of detail, means of the rest; 95 % intervals\n")
    mixed = pictures(source, stages=INPUTS["mixture"], name="mixture")
    print(distillation(module, mixed, given.times, w=given.guidance))
    print(f"\n{sight(module, mixed, given.times)}")
    found = by_quality(module, source)
    columns = ("input", "(a) distance", "(b) movement", "(c) delta", "delta, first half", "second half")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, rows in found.items():
        median, half = rows.median(dim=2).values[:, 1:], rows.shape[1] // 2
        cells = [*median.mean(dim=1), median[2, :half].mean(), median[2, half:].mean()]
        print(f"| {name} | {' | '.join(f'{cell:.3g}' for cell in cells)} |")
    if given.sheet is not None:
        draw(found, given.sheet)


if __name__ == "__main__":
    main()
