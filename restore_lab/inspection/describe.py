"""Model summary of a method without loading weights: taps, parameters, FLOPs per step.

Everything is built on torch's meta device, so that SDXL can be described on a laptop. The parameter count includes the
denoiser and the adaptor, as in the papers; codec and text encoders are listed separately. FLOPs are twice the
multiply-accumulates for one image of the given size, by torch's FlopCounterMode: of one guided sampling step (all
branches), and of one training step (latents, prediction, backward pass; without text encoders, whose outputs are
cached).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.config.build import build
from restore_lab.methods.weights import is_lora_tensor
from restore_lab.storage.artefact import DESCRIPTION, Artefact
from restore_lab.storage.atomic import write_json_atomic
from restore_lab.storage.identity import identity, plain_settings
from restore_lab.storage.outputs import take_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from restore_lab.methods.module import RestorationModule
    from restore_lab.types import Prompt

DESCRIPTION_FILE = "description.json"


def plan_description(cfg: DictConfig) -> Artefact:
    """The description of a method, in `cfg.run_dir`; without one `describe` leaves no artefact."""
    settings = plain_settings(cfg, ("module", "size"))
    return Artefact(kind=DESCRIPTION, identity=identity(settings), folder=Path(cfg.run_dir or ""), settings=settings)


def describe(cfg: DictConfig) -> dict[str, Any]:
    """The summary of `restore-lab describe`; also written to `cfg.run_dir` if it is set."""
    if not cfg.run_dir:
        return _facts(cfg)
    description = plan_description(cfg)  # before `_facts` changes the config
    take_folder(description.folder, setting="run_dir")
    facts = _facts(cfg)
    write_json_atomic(description.folder / DESCRIPTION_FILE, facts)
    description.finish()
    return facts


def _facts(cfg: DictConfig) -> dict[str, Any]:
    """The summary, from `module` and `size` (image side in pixels) of the config."""
    module = on_meta(cfg)
    backbone, adaptor = module.backbone, module.adaptor
    parts = {
        "denoiser": parameters(backbone.denoiser),
        "codec": parameters(backbone.codec),
        "text_encoders": parameters(backbone.text),
        "lq_encoder": parameters(module.lq_encoder),
        "decoder": parameters(module.decoder),
        "visual": parameters(module.visual) if module.visual is not None else 0,
        **{f"adaptor.{name}": parameters(part) for name, part in adaptor.named_children()},
        **{name: parameters(part) for name, part in module.extra_parts().items()},
    }
    others = _others(module)
    other_ids = {id(p) for part in others.values() for p in part.parameters()}
    return {
        "name": cfg.name,
        "total_parameters": parts["denoiser"] + sum(parts[name] for name in parts if name.startswith("adaptor.")),
        "trainable_parameters": sum(p.numel() for p in module.trainable().values() if id(p) not in other_ids),
        "parameters": parts | {name: parameters(part) for name, part in others.items()},
        "others": {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in others.items()},
        **(_flop_counts(module, size=cfg.size) if cfg.flops else {}),
        "size": cfg.size,
        "taps": [asdict(tap) for tap in backbone.taps],
    }


def _others(module: RestorationModule) -> dict[str, nn.Module]:
    """Modules that are trained with the method but are not part of it, such as a discriminator, by name."""
    own = {name.partition(".")[0] for name in module.extra_parts()}
    own |= {"backbone", "adaptor", "lq_encoder", "decoder", "visual"}
    return {
        name: part for name, part in module.named_children() if name not in own and any(True for _ in part.parameters())
    }


def _flop_counts(module: RestorationModule, *, size: int) -> dict[str, int]:
    return {
        "flops_per_step": flops(module, size=size),
        "flops_per_training_step": training_flops(module, size=size),
    }


def on_meta(cfg: DictConfig) -> RestorationModule:
    """The composed method on the meta device; changes the config so that no weights are loaded."""
    import torch

    cfg.backbone.meta = True
    for part in (cfg.lq_encoder, cfg.decoder):
        if "weights" in part:
            part.weights = None
    if cfg.prompt.visual is not None and "meta" in cfg.prompt.visual:
        cfg.prompt.visual.meta = True
    with torch.device("meta"):
        return build(cfg.module)


def parameters(module: nn.Module) -> int:
    """The number of parameters of a module, without LoRA in its layers, which is counted as a part."""
    return sum(p.numel() for name, p in module.named_parameters() if not is_lora_tensor(name))


def flops(module: RestorationModule, *, size: int) -> int:
    """FLOPs of one guided step on one image of size x size pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from restore_lab.methods.conditioning import Conditions
    from restore_lab.samplers.level import Level

    z_BCHW, lq_BCHW, prompt = _inputs(module, size)
    with torch.device("meta"), torch.no_grad():
        cond, null = (module.conditioner.cond(prompt, (size, size)) for _ in range(2))
        hint = module.conditioner.hint(lq_BCHW, prompt, hq_BCHW=lq_BCHW)
        level, sampler = Level(sigma=1, next_sigma=0, share=1), module.sampler
        with FlopCounterMode(display=False) as counter:
            module.denoiser(
                z_BCHW,
                torch.zeros(1, dtype=torch.long),
                Conditions(cond=cond, null=null, hint=hint),
                seeds=[0],
                guidance=sampler.guidance,
                level=level,
                strength=sampler.strength(level),
                preview=sampler.fidelity.watches,
            )
    return counter.get_total_flops()


def training_flops(module: RestorationModule, *, size: int) -> int:
    """FLOPs of one training step on one image of size x size pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from restore_lab.methods.conditioning import Conditions

    z_BCHW, lq_BCHW, prompt = _inputs(module, size)
    t_B = torch.zeros(1, dtype=torch.long, device="meta")
    with torch.device("meta"), torch.enable_grad():
        cond = module.conditioner.cond(prompt, (size, size))
        with FlopCounterMode(display=False) as counter:
            with torch.no_grad():
                module.backbone.codec.encode(lq_BCHW)  # the HQ's latent
            hint = module.conditioner.hint(lq_BCHW, prompt, hq_BCHW=lq_BCHW)
            conditions = Conditions(cond=cond, null=cond, hint=hint)
            module.denoiser(z_BCHW, t_B, conditions, seeds=[0]).out_BCHW.sum().backward()
    return counter.get_total_flops()


def _inputs(module: RestorationModule, size: int) -> tuple[Tensor, Tensor, Prompt]:
    """A noisy latent, an image and an empty prompt, on the meta device."""
    import torch

    from restore_lab.types import Prompt

    side = size // module.backbone.codec.compression
    with torch.device("meta"), torch.no_grad():
        lq_BCHW = torch.zeros(1, 3, size, size)
        visual_BLD = None if module.visual is None else module.visual(lq_BCHW)
        z_BCHW = torch.zeros(1, module.backbone.codec.channels, side, side)
    texts = {"semantic": ("",), "negative": ("",), "instruction": ("",)}
    return z_BCHW, lq_BCHW, Prompt(**texts, visual_BLD=visual_BLD, visual_null_BLD=visual_BLD)


def render_description(facts: Mapping[str, Any]) -> str:
    """The summary as text."""
    million = {name: f"{count / 1e6:.2f} M" for name, count in facts["parameters"].items()}
    width = max(len(name) for name in million)
    lines = [
        f"{facts['name']} at {facts['size']}x{facts['size']} pixels",
        f"total      {facts['total_parameters'] / 1e6:.2f} M parameters (denoiser and adaptor)",
        f"trainable  {facts['trainable_parameters'] / 1e6:.2f} M parameters",
        *(
            f"besides    {n / 1e6:.2f} M trainable in {name}, no part of the method"
            for name, n in facts["others"].items()
        ),
        *(
            (
                f"one step   {facts['flops_per_step'] / 1e9:.2f} GFLOP",
                f"training   {facts['flops_per_training_step'] / 1e9:.2f} GFLOP per step and image",
            )
            if "flops_per_step" in facts
            else ()
        ),
        "",
        *(f"  {name:<{width}}  {count}" for name, count in million.items()),
        "",
        "tap          kind      channels  skip  stride",
    ]
    for tap in facts["taps"]:
        lines.append(f"{tap['name']:<12} {tap['kind']:<8} {tap['channels']:>9} {tap['skip']:>5} {tap['stride']:>7}")
    return "\n".join(lines)
