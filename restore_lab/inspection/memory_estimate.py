"""Memory estimates of a method without loading weights, on the meta device, where tensors have no data.

Counted exactly are weights, gradients, the optimiser's two moments, the weight average, and the 16-bit copies that
autocast makes of the method's float32 weights, all alive during a step. Activations are the peak of live storages in
one step for one image: sizes are added when torch allocates a storage and subtracted when it is freed; in training
tensors saved for the backward pass are included. They are estimates, counted in float32 and halved for computation in
16 bits, with attention counted as torch's fused kernels. Allocator fragmentation and libraries (0.7 GiB of host memory)
are not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
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

FLOAT32, HALF = 4, 2  # bytes
Arguments = Mapping[str, object]  # of a call, by keyword


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the device, by use."""

    prior: int
    method: int
    gradients: int = 0
    optimiser: int = 0
    average: int = 0
    copies: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return sum(asdict(self).values())


class LiveStorages(TorchDispatchMode):
    """Counts the bytes, and their peak, of live storages allocated in this context."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: Arguments | None = None
    ) -> object:
        for leaf in tree_leaves((args, kwargs)):
            self._track(leaf, allocated=False)  # existing storages, such as weights, may be returned as views
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            self._track(leaf, allocated=True)
        return out

    def _track(self, leaf: object, *, allocated: bool) -> None:
        if not isinstance(leaf, torch.Tensor):
            return
        storage = leaf.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if allocated else 0
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Fused(torch.autograd.Function):
    """The memory of a fused attention kernel: its output, and inputs and output saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out


class FusedAttention(TorchFunctionMode):
    """Replaces attention by a fused kernel's memory: the meta device would allocate the attention matrix."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: Arguments | None = None
    ) -> object:
        if func is F.scaled_dot_product_attention:
            inputs = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            return _Fused.apply(inputs["query"], inputs["key"], inputs["value"])
        return func(*args, **(kwargs or {}))


def peak_bytes(compute: Callable[[], object]) -> int:
    """The peak of live bytes allocated by `compute`, with its result."""
    with FusedAttention(), LiveStorages() as live:
        result = compute()
    del result
    return live.peak


def estimate_memory(
    module: RestorationModule,
    settings: Mapping[str, Any],
    *,
    size: int,
    crop: int,
    batch: int,
    ema: bool,
    precision: str,
) -> dict[str, MemoryEstimate]:
    """Memory for restoring one image and for training on one device.

    Args:
        module: a method on the meta device.
        settings: of `load_backbone`, for the dtypes of the prior's parts.
        size: side of the image to restore in pixels.
        crop: side of the training images.
        batch: training batch size per device.
        ema: whether there is an average of the weights.
        precision: Lightning's; "bf16-mixed" and "16-mixed" compute in 16 bits, "bf16-true" has 16-bit weights.
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
        "restoring": MemoryEstimate(prior=prior, method=own, copies=HALF * count * sixteen, activations=restoring),
        "training": MemoryEstimate(
            prior=prior,
            method=own - FLOAT32 * count + trained,
            gradients=trained,
            optimiser=2 * trained,
            average=trained if ema else 0,
            copies=HALF * count * copied,
            activations=training,
        ),
    }


def _prior_bytes(module: RestorationModule, settings: Mapping[str, Any]) -> int:
    """Bytes of the prior's weights in the dtypes of its parts, without LoRA, which is the method's."""
    backbone, trained = module.backbone, {id(p) for p in module.trainable().values()}
    keys = {"denoiser": "dtype", "text": "text_dtype", "codec": "codec_dtype"}
    total = 0
    for part, key in keys.items():
        itemsize = DTYPES[settings.get(key) or settings["dtype"]].itemsize
        total += itemsize * sum(p.numel() for p in getattr(backbone, part).parameters() if id(p) not in trained)
    return total


def _step(module: RestorationModule, *, side: int) -> int:
    """Peak of live bytes in one prediction for one image of `side` pixels."""
    side = -(-side // module.backbone.multiple) * module.backbone.multiple
    latent = side // module.backbone.codec.compression
    with torch.device("meta"):
        lq_BCHW = torch.zeros(1, 3, side, side)
        with torch.no_grad():
            visual_BLD = None if module.visual is None else module.visual(lq_BCHW)
            prompt = Prompt(
                semantic=("",), negative=("",), instruction=("",), visual_BLD=visual_BLD, visual_null_BLD=visual_BLD
            )
        z_BCHW = torch.zeros(1, module.backbone.codec.channels, latent, latent)

        def predict() -> torch.Tensor:
            cond = module.conditioner.cond(prompt, (side, side))
            hint = module.conditioner.hint(lq_BCHW, prompt, hq_BCHW=lq_BCHW)
            conditions, t_B = Conditions(cond=cond, null=cond, hint=hint), torch.zeros(1, dtype=torch.long)
            return module.denoiser(z_BCHW, t_B, conditions, seeds=[0]).out_BCHW

        return peak_bytes(predict)
