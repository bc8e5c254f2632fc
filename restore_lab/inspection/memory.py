"""How much memory a method takes, estimated without a weight: on the meta device, where tensors have sizes alone.

Weights, gradients, the optimiser's two moments and the average are counted exactly, and the 16-bit copies that autocast
makes of the method's float32 weights, all alive while it computes. Activations are what is alive at once while the
method computes one step for one image: the sizes of all storages that torch makes, added when they are made and
subtracted when they are dropped; in training that includes what the backward pass will read. They are estimates,
counted in float32 and halved where the computation runs in 16 bits; attention is counted as torch's fused kernels have
it. An allocator's fragments and the libraries (0.7 GiB of a host's memory) are not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from restore_lab.backbones.loading.load import DTYPES
from restore_lab.methods.conditioning import Conditions
from restore_lab.types import Prompt

if TYPE_CHECKING:
    from restore_lab.methods.module import RestorationModule

FLOAT32, HALF = 4, 2


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the device, by what takes them."""

    prior: int
    method: int
    gradients: int = 0
    optimiser: int = 0
    average: int = 0
    copies: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages made under it that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            self._seen(leaf, made=False)  # a weight, which was there before, may come back as a view of itself
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            self._seen(leaf, made=True)
        return out

    def _seen(self, leaf: Any, *, made: bool) -> None:
        if not isinstance(leaf, torch.Tensor):
            return
        storage = leaf.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if made else 0
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Fused(torch.autograd.Function):
    """What a fused attention kernel makes and keeps: its output, and its inputs for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out


class FusedAttention(TorchFunctionMode):
    """Attention without the matrix of all pairs, which the meta device would otherwise make."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Fused.apply(given["query"], given["key"], given["value"])
        return func(*args, **(kwargs or {}))


def peak_bytes(compute: Callable[[], Any]) -> int:
    """The most bytes alive at once of what `compute` makes; its result counts."""
    with FusedAttention(), Alive() as alive:
        kept = compute()
    del kept
    return alive.peak


def estimates(
    module: RestorationModule, settings: Any, *, size: int, crop: int, batch: int, ema: bool, precision: str
) -> dict[str, Memory]:
    """Memory for restoring one image and for training on one device.

    Args:
        module: a method on the meta device.
        settings: of `load_backbone`, for the types of the prior's parts.
        size: side of the image to restore in pixels.
        crop: side of the training images.
        batch: images of a training step on one device.
        ema: whether an average of the weights is kept.
        precision: Lightning's word; "bf16-mixed" and its like compute in 16 bits, "bf16-true" trains weights of 16.
    """
    prior = _prior_bytes(module, settings)
    backbone = {id(p) for p in module.backbone.parameters()}
    count = sum(p.numel() for p in module.trainable().values())
    own = FLOAT32 * sum(p.numel() for p in module.parameters() if id(p) not in backbone)
    own += FLOAT32 * sum(p.numel() for p in module.trainable().values() if id(p) in backbone)  # LoRA
    restoring = _step(module, side=size) * DTYPES[settings["dtype"]].itemsize // FLOAT32
    with torch.enable_grad():
        training = _step(module, side=crop) * batch // (1 if precision.startswith("32") else 2)
    trained = count * (HALF if precision == "bf16-true" else FLOAT32)
    sixteen = settings["dtype"] != "float32"
    copied = precision != "bf16-true" and (sixteen or not precision.startswith("32"))
    return {
        "restoring": Memory(prior=prior, method=own, copies=HALF * count * sixteen, activations=restoring),
        "training": Memory(
            prior=prior,
            method=own - FLOAT32 * count + trained,
            gradients=trained,
            optimiser=2 * trained,
            average=trained if ema else 0,
            copies=HALF * count * copied,
            activations=training,
        ),
    }


def _prior_bytes(module: RestorationModule, settings: Any) -> int:
    """The prior's weights in the types of its parts; LoRA in its layers is the method's."""
    backbone, trained = module.backbone, {id(p) for p in module.trainable().values()}
    words = {"denoiser": "dtype", "text": "text_dtype", "codec": "codec_dtype"}
    total = 0
    for part, word in words.items():
        itemsize = DTYPES[settings.get(word) or settings["dtype"]].itemsize
        total += itemsize * sum(p.numel() for p in getattr(backbone, part).parameters() if id(p) not in trained)
    return total


def _step(module: RestorationModule, *, side: int) -> int:
    """Bytes alive at once in one prediction for one image of `side` pixels."""
    side = -(-side // module.backbone.multiple) * module.backbone.multiple
    latent = side // module.backbone.codec.compression
    with torch.device("meta"):
        lq_BCHW = torch.zeros(1, 3, side, side)
        with torch.no_grad():
            seen_BLD = None if module.visual is None else module.visual(lq_BCHW)
            prompt = Prompt(
                semantic=("",), negative=("",), instruction=("",), visual_BLD=seen_BLD, visual_null_BLD=seen_BLD
            )
        z_BCHW = torch.zeros(1, module.backbone.codec.channels, latent, latent)

        def predicted() -> torch.Tensor:
            cond = module.conditioner.cond(prompt, (side, side))
            hint = module.conditioner.hint(lq_BCHW, prompt, hq_BCHW=lq_BCHW)
            conditions, t_B = Conditions(cond=cond, null=cond, hint=hint), torch.zeros(1, dtype=torch.long)
            return module.denoiser(z_BCHW, t_B, conditions, seeds=[0]).out_BCHW

        return peak_bytes(predicted)
