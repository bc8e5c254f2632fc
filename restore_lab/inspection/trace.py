"""Traces: the intermediate activations of a method, by place, to compare two runs.

The model is evaluated once, at one noise level, so that its input does not depend on the sampler; the restored image
comes last. Places in order: prompt and text conditions, hint, LQ latent, noisy latent and reference, the adaptor's
controls, the prior's taps after fusion, the prediction, the decoded LQ latent, the restored image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restore_lab.methods.denoiser import autocast
from restore_lab.methods.pipeline import pad_to_multiple
from restore_lab.random import noise_like

if TYPE_CHECKING:
    from restore_lab.methods.module import RestorationModule
    from restore_lab.types import Batch, Tap

Trace = dict[str, Tensor]  # by place, in the order computed; float32 on the CPU


@torch.no_grad()
def trace(module: RestorationModule, batch: Batch, *, share: float) -> Trace:
    """The activations of one evaluation of the model, and the restored image.

    Args:
        module: a method, on its device.
        batch: images with an LQ.
        share: timestep as a fraction in [0, 1), from no noise to pure noise.

    Raises:
        ValueError: if there is no LQ.
    """
    if batch.lq_BCHW is None:
        raise ValueError("there is no LQ to restore; give eval_data with HQ images an eval_degradation, or LQ images")
    backbone, conditioner, found = module.backbone, module.conditioner, Trace()
    prompt = conditioner.prompts(batch, training=False)
    lq_BCHW = pad_to_multiple(batch.lq_BCHW, backbone.multiple)
    hq_BCHW = None if batch.hq_BCHW is None else pad_to_multiple(batch.hq_BCHW, backbone.multiple)
    size = (lq_BCHW.shape[-2], lq_BCHW.shape[-1])
    cond = conditioner.cond(prompt, size)
    found |= _flat("prompt", prompt)
    found |= _flat("cond", cond)
    found |= _flat("null", conditioner.null(prompt, size, cond))
    hint = conditioner.hint(lq_BCHW, prompt, hq_BCHW=hq_BCHW)
    found |= _flat("hint", hint)
    z0_BCHW = module.lq_encoder(lq_BCHW, backbone.codec)
    t_B = backbone.schedule.time(torch.full((len(batch),), share, device=z0_BCHW.device))
    z_BCHW = backbone.schedule.add_noise(z0_BCHW, noise_like(z0_BCHW, batch.seed, "trace"), t_B)
    hint, _ = module.denoiser.add_reference(z_BCHW, t_B, cond, hint, seeds=batch.seed)
    found |= _flat("lq_latent", z0_BCHW) | _flat("z", z_BCHW) | _flat("reference", hint.reference_BCHW)

    def record(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
        h_BCHW, carry = module.adaptor.fuse(tap, h_BCHW, temb_BD, carry)
        found.update(_flat(f"tap.{tap.name}", h_BCHW))
        return h_BCHW, carry

    with autocast(backbone):
        controls = module.adaptor.control(z_BCHW, t_B, hint, cond)
        found |= _flat("controls", controls)
        found |= _flat("prediction", backbone(z_BCHW, t_B, cond, at=record, carry=controls))
    found |= _flat("decoded", module.decoder(z0_BCHW, hint, backbone.codec))
    return found | _flat("restored", module.restore(batch))


def _flat(name: str, value: object) -> Trace:
    """Every tensor in a value, by a dotted name."""
    return {place: tensor.detach().float().cpu() for place, tensor in _tensors(name, value)}


def _tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{name}.{key}", item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _tensors(f"{name}.{index}", item)
