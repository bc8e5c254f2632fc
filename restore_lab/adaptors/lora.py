"""LoRA in the prior, through peft, with a switch (Hu et al. 2021). `adaptor/lora=none|self_attention|previewer`.

DRA tunes the prior's self attention with it (section 3.2, "Diffusion Adapter"); InstantIR's previewer is the prior with
LoRA nearly everywhere, and the same prior without it samples (section 4.1). `switched` turns it on and off inside one
step; off, the prior is bit for bit what it was. Gradient checkpointing runs a block again in the backward pass, when
the switch may stand otherwise: `checkpoint` remembers how it stood.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone

# Which layers, by family: peft matches a whole name against the expression.
SELF_ATTENTION = {
    "unet": r".*attn1\.to_(q|k|v|out\.0)",
    "mmdit": r".*(attn|attn2)\.to_(q|k|v|out\.0)",  # the image's own
}
PREVIEWER = {
    "unet": r".*(attn\d\.to_(q|out\.0)|attn1\.to_(k|v)|proj_in|proj_out|ff\.net\.(0\.proj|2)|conv1|conv2|conv_shortcut"
    r"|(down|up)samplers\.0\.conv|time_emb_proj)",
    "mmdit": r"transformer_blocks\..*(attn|attn2)\.to_(q|k|v|out\.0)|transformer_blocks\..*\.ff\.net\.(0\.proj|2)",
}
TARGETS = {"self_attention": SELF_ATTENTION, "previewer": PREVIEWER}


class Lora(nn.Module):
    """Low-rank updates of some of the prior's layers; switched on or off by `switched`.

    The previewer's LoRA also reaches the visual stream's layers and the resampler, if they are given (`others`).

    Args:
        backbone: whose denoiser is changed in place.
        targets: "self_attention" or "previewer"; or endings of layers' names (["to_q", "to_out.0"]), as peft has them.
        rank: of the updates.
        alpha: the updates are scaled by alpha / rank.
        on: how the switch stands at first; off for a previewer, which `switched` turns on.
        others: further modules to change, by name, with an expression for their layers each.

    Raises:
        ValueError: for unknown targets.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        targets: str | Sequence[str],
        rank: int,
        alpha: float,
        on: bool = True,
        others: dict[str, tuple[nn.Module, str]] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(targets, str) and targets not in TARGETS:
            raise ValueError(f"adaptor.lora.targets={targets!r} is not known; one of {', '.join(TARGETS)}")
        if rank < 1:
            raise ValueError(f"adaptor.lora.rank={rank} must be at least 1")
        from peft import LoraConfig, inject_adapter_in_model

        self.updates = nn.ParameterDict()
        self.layers: list[Any] = []
        self.scale = alpha / rank
        layers = TARGETS[targets][backbone.family] if isinstance(targets, str) else list(targets)
        hosts = {"prior": (backbone.denoiser, layers), **(others or {})}
        for name, (host, expression) in hosts.items():
            frozen = {id(p): p.requires_grad for p in host.parameters()}
            inject_adapter_in_model(
                LoraConfig(r=rank, lora_alpha=alpha, target_modules=expression), host, adapter_name="restore_lab"
            )
            for p in host.parameters():  # peft freezes what it finds; what was trainable stays so
                p.requires_grad_(frozen.get(id(p), True))
            for place, p in host.named_parameters():
                if "lora_" in place:
                    self.updates[f"{name}.{place}".replace(".", "/").replace("/restore_lab", "")] = p
            self.layers += [layer for layer in host.modules() if hasattr(layer, "_disable_adapters")]
        self._set([not on] * len(self.layers))

    @contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """The prior with the updates or without, inside the context."""
        before = [layer._disable_adapters for layer in self.layers]
        self._set([not on] * len(self.layers))
        try:
            yield
        finally:
            self._set(before)

    def checkpoint(self, module: nn.Module, *args: Any) -> Any:
        """torch's checkpoint, whose second run sees the switch as the first saw it.

        The layers of a visual stream are not among the module's own, so all layers count.
        """
        if torch.compiler.is_compiling():
            return torch_checkpoint(module, *args, use_reentrant=False)
        switches = [layer._disable_adapters for layer in self.layers]

        def run(*inputs: Any) -> Any:
            now = [layer._disable_adapters for layer in self.layers]
            self._set(switches)
            try:
                return module(*inputs)
            finally:
                self._set(now)

        return torch_checkpoint(run, *args, use_reentrant=False)

    def _set(self, switches: Sequence[bool]) -> None:
        for layer, off in zip(self.layers, switches, strict=True):
            layer._disable_adapters = off
