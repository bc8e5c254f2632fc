"""How fast a method computes, which changes nothing of what it computes, nor its identity. `compile=true`, `speed.*`.

The blocks of prior and trunks (regions that a UNet or an MM-DiT repeats) are compiled one by one: those of one shape
share their code, and taps, adaptors and what is switched between them stay plain Python. Names of weights stay as they
are: a block keeps its place and gets another `forward`. Sizes are symbols where they vary (restoring), so that neither
steps, tiles nor images compile again; training has one size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
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
RECOMPILE_LIMIT = 32  # of one block's code: with gradients or without, LoRA on or off, one image or several, ...


class Speed:
    """What is chosen.

    Args:
        compiled: the blocks of prior and trunks through torch.compile.
        backend: torch.compile's.
        channels_last: keep the weights of convolutions in channels-last order, and so the maps.
        batched: the guidance branches of a step in one call.
        gradient_checkpointing: recompute the blocks of prior and trunks in the backward pass.
    """

    def __init__(
        self, *, compiled: bool, backend: str, channels_last: bool, batched: bool, gradient_checkpointing: bool
    ) -> None:
        self.compiled, self.backend, self.channels_last = compiled, backend, channels_last
        self.batched, self.gradient_checkpointing = batched, gradient_checkpointing

    def apply(self, module: M) -> M:
        """The module as chosen; before it is moved, sharded or quantised."""
        methods = [part for part in module.modules() if isinstance(part, RestorationModule)]
        for method in methods:
            method.denoiser.batched = self.batched
        if self.gradient_checkpointing:
            for host in networks(module):
                checkpoint_blocks(host, partial(checkpoint, use_reentrant=False))
            for method in methods:
                if method.adaptor.lora is not None:  # it knows how LoRA stood in the forward pass
                    checkpoint_blocks(method.backbone.denoiser, method.adaptor.lora.checkpoint)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.compiled:
            compile_blocks(module, backend=self.backend)
        return module


def networks(module: nn.Module) -> Iterator[nn.Module]:
    """Denoisers and trunks."""
    kinds = (UNet2DConditionModel, SD3Transformer2DModel, Trunk, MMDiTTrunk)
    return (part for part in module.modules() if isinstance(part, kinds))


def checkpoint_blocks(host: nn.Module, how: Callable[..., Any]) -> None:
    """Every block of a host through a checkpoint function, in place; diffusers' blocks look for these two names."""
    for part in host.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing, part._gradient_checkpointing_func = True, how


def compile_blocks(module: nn.Module, *, backend: str) -> None:
    """Every block of every host compiled when it first runs, in place; blocks of one class and shape share the code."""
    from torch.fx.experimental import _config

    _config.use_duck_shape = False  # else sides that happen to be equal in the first image would have to stay equal
    made: dict[Any, Callable[..., Any]] = {}
    for host in networks(module):
        for block in [part for part in host.modules() if type(part).__name__ in BLOCK_TYPES]:
            kind: Any = type(block)
            shape = (kind, *((name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters()))
            if shape not in made:
                made[shape] = torch.compile(
                    kind.forward,
                    backend=backend,
                    dynamic=None if module.training else True,
                    isolate_recompiles=True,  # torch counts a forward's variants over all blocks of a class otherwise
                    recompile_limit=RECOMPILE_LIMIT,
                )
            block.forward = MethodType(made[shape], block)
