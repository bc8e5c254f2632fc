"""Settings of a method's speed, which change neither its results nor its identity. `compile=true`, `speed.*`.

The repeated blocks of prior and trunks are compiled one by one: blocks of the same class and shape share compiled code,
and taps, adaptors and LoRA's switch between blocks stay plain Python. The names of weights do not change, since a block
stays in place and gets another `forward`. In restoring, sizes are symbolic, so other steps, tiles or images do not
recompile; training has one size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from restore_lab.adaptors.trunk.mmdit import MMDiTTrunk
from restore_lab.adaptors.trunk.unet import Trunk
from restore_lab.methods.module import RestorationModule

if TYPE_CHECKING:
    from restore_lab.methods.trainable import Trainable

    M = TypeVar("M", bound=Trainable)

BLOCK_TYPES = (
    "ResnetBlock2D",
    "BasicTransformerBlock",
    "JointTransformerBlock",
    "SD3SingleTransformerBlock",
)  # diffusers'
RECOMPILE_LIMIT = 32  # variants of a block's code: with or without gradients, LoRA on or off, one image or more, ...


class Speed:
    """The settings.

    Args:
        compiled: compile the blocks of prior and trunks with torch.compile.
        backend: the backend of torch.compile.
        channels_last: use the channels-last memory format for convolutions and their feature maps.
        batched: evaluate the guidance branches of a step in one call.
        gradient_checkpointing: recompute the blocks of prior and trunks in the backward pass.
    """

    def __init__(
        self, *, compiled: bool, backend: str, channels_last: bool, batched: bool, gradient_checkpointing: bool
    ) -> None:
        self.compiled, self.backend, self.channels_last = compiled, backend, channels_last
        self.batched, self.gradient_checkpointing = batched, gradient_checkpointing

    def apply(self, module: M) -> M:
        """Apply the settings in place; call it before the module is moved, sharded or quantised."""
        methods = [part for part in module.modules() if isinstance(part, RestorationModule)]
        for method in methods:
            method.denoiser.batched = self.batched
        if self.gradient_checkpointing:
            for network in networks(module):
                checkpoint_blocks(network, partial(checkpoint, use_reentrant=False))
            for method in methods:
                if method.adaptor.lora is not None:  # restores LoRA's switch of the forward pass
                    checkpoint_blocks(method.backbone.denoiser, method.adaptor.lora.checkpoint)
        if self.channels_last:
            any_module: Any = module  # torch's annotations of `to` lack memory formats
            any_module.to(memory_format=torch.channels_last)
        if self.compiled:
            compile_blocks(module, backend=self.backend)
        return module


def networks(module: nn.Module) -> Iterator[nn.Module]:
    """The denoisers and trunks in a module."""
    classes = (UNet2DConditionModel, SD3Transformer2DModel, Trunk, MMDiTTrunk)
    return (part for part in module.modules() if isinstance(part, classes))


def checkpoint_blocks(network: nn.Module, checkpoint_fn: Callable[..., Any]) -> None:
    """Run every block of a network through a checkpoint function, in place; the two attributes are diffusers'."""
    part: Any
    for part in network.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing, part._gradient_checkpointing_func = True, checkpoint_fn


def compile_blocks(module: nn.Module, *, backend: str) -> None:
    """Compile every block of the denoisers and trunks at its first call, in place; equal shapes share compiled code."""
    from torch.fx.experimental import _config

    _config.use_duck_shape = False  # otherwise sides that are equal in the first image are assumed to be always equal
    settings: dict[str, Any] = {
        "backend": backend,
        "dynamic": None if module.training else True,
        "isolate_recompiles": True,  # otherwise torch counts the variants of all blocks of a class together
        "recompile_limit": RECOMPILE_LIMIT,
    }
    compiled: dict[Any, Callable[..., Any]] = {}
    for network in networks(module):
        for block in [part for part in network.modules() if type(part).__name__ in BLOCK_TYPES]:
            block_type: Any = type(block)
            shape = (block_type, *((name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters()))
            if shape not in compiled:
                compiled[shape] = torch.compile(block_type.forward, **settings)
            block.forward = MethodType(compiled[shape], block)
