"""LoRA in the prior, through peft, with a switch (Hu et al. 2021). `adaptor/lora=none|self_attention|previewer`.

DRA tunes the prior's self attention with it (section 3.2, "Diffusion Adapter"); InstantIR's previewer is the prior with
LoRA nearly everywhere, and the same prior without it samples (section 4.1). `switched` turns it on and off inside one
step; off, the prior is bit for bit what it was. Gradient checkpointing runs a block again in the backward pass, when
the switch may stand otherwise: `checkpoint` remembers how it stood. A prior may hold several sets, each with a name and
a switch of its own; their updates add up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from restore_lab.config.kinds import Count, Positive

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

    The previewer's LoRA also reaches the visual stream's layers and the resampler, if they are given (`others`). A file
    of weights does not hold the name.

    Args:
        backbone: whose denoiser is changed in place.
        targets: "self_attention" or "previewer"; or endings of layers' names (["to_q", "to_out.0"]), as peft has them.
        rank: of the updates.
        alpha: the updates are scaled by alpha / rank.
        on: how the switch stands at first; off for a previewer, which `switched` turns on.
        name: of this set; a second one in the same prior needs another.
        others: further modules to change, by name, with an expression for their layers each.

    Raises:
        ValueError: for a name that is none, or that a set of this prior has already.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        targets: Literal["self_attention", "previewer"] | Sequence[str],
        rank: Count,
        alpha: Positive,
        on: bool = True,
        name: str = "restore_lab",
        others: dict[str, tuple[nn.Module, str]] | None = None,
    ) -> None:
        super().__init__()
        if not name.isidentifier():
            raise ValueError(f"adaptor.lora.name={name!r} is no name; give letters, digits and _")
        from peft import LoraConfig, inject_adapter_in_model

        self.updates = nn.ParameterDict()
        self.layers: list[Any] = []
        self.scale, self.name = alpha / rank, name
        layers = TARGETS[targets][backbone.family] if isinstance(targets, str) else list(targets)
        hosts = {"prior": (backbone.denoiser, layers), **(others or {})}
        held = {set_ for host, _ in hosts.values() for layer in _changed(host) for set_ in layer.lora_A}
        if name in held:
            raise ValueError(
                f"adaptor.lora.name={name}: this prior holds a LoRA set of that name already; give this one another"
            )
        for part, (host, expression) in hosts.items():
            frozen = {id(p): p.requires_grad for p in host.parameters()}
            others_on = [(layer, layer.active_adapters) for layer in _changed(host)]
            with warnings.catch_warnings():  # that several sets are there is meant
                warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
                config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=expression)
                inject_adapter_in_model(config, host, adapter_name=name)
            for layer, active in others_on:  # peft turns off whatever else is there
                layer._active_adapter = active
            for p in host.parameters():  # peft freezes what it finds; what was trainable stays so
                p.requires_grad_(frozen.get(id(p), True))
            for place, p in host.named_parameters():
                stem, _, ending = place.rpartition(f".{name}.")
                if stem.endswith(("lora_A", "lora_B")):
                    self.updates[f"{part}.{stem}.{ending}".replace(".", "/")] = p
            self.layers += [layer for layer in _changed(host) if name in layer.lora_A]
        self._set([on] * len(self.layers))

    @property
    def on(self) -> bool:
        """How the switch stands."""
        return all(self._switches())

    @contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """The prior with the updates or without, inside the context."""
        before = self._switches()
        self._set([on] * len(self.layers))
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
        switches = self._switches()

        def run(*inputs: Any) -> Any:
            now = self._switches()
            self._set(switches)
            try:
                return module(*inputs)
            finally:
                self._set(now)

        return torch_checkpoint(run, *args, use_reentrant=False)

    def _switches(self) -> list[bool]:
        return [self.name in layer.active_adapters for layer in self.layers]

    def _set(self, switches: Sequence[bool]) -> None:
        for layer, on in zip(self.layers, switches, strict=True):
            others = [name for name in layer.active_adapters if name != self.name]
            layer._active_adapter = [*others, self.name] if on else others


def _changed(host: nn.Module) -> list[Any]:
    """The layers of a module that LoRA changes."""
    return [layer for layer in host.modules() if hasattr(layer, "lora_A")]
