"""LoRA in the prior by peft, which can be switched on and off (Hu et al. 2021).

DRA tunes the prior's self attention with LoRA (section 3.2, "Diffusion Adapter"). InstantIR's previewer is the prior
with LoRA in nearly all layers, and sampling uses the same prior without it (section 4.1). `switch` turns LoRA on or off
within a step; with LoRA off, the prior's output is bit for bit unchanged. Gradient checkpointing recomputes a block in
the backward pass, when the switch may have another state: `checkpoint` restores the state of the forward pass. A prior
can have several LoRA sets, each with a name and a switch; their updates add up.
Selected by `adaptor/lora=none|self_attention|previewer`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from restore_lab.config.kinds import Count, Pattern, Positive
from restore_lab.config.validate import check_arguments

if TYPE_CHECKING:
    from restore_lab.backbones.base import Backbone

# Target layers by family, as regular expressions that peft matches against the full module name.
SELF_ATTENTION_LAYERS = {
    "unet": r".*attn1\.to_(q|k|v|out\.0)",
    "mmdit": r".*(attn|attn2)\.to_(q|k|v|out\.0)",  # the image stream's
}
PREVIEWER_LAYERS = {
    "unet": r".*(attn\d\.to_(q|out\.0)|attn1\.to_(k|v)|proj_in|proj_out|ff\.net\.(0\.proj|2)|conv1|conv2|conv_shortcut"
    r"|(down|up)samplers\.0\.conv|time_emb_proj)",
    "mmdit": r"transformer_blocks\..*(attn|attn2)\.to_(q|k|v|out\.0)|transformer_blocks\..*\.ff\.net\.(0\.proj|2)",
}
TARGETS = {"self_attention": SELF_ATTENTION_LAYERS, "previewer": PREVIEWER_LAYERS}


@check_arguments
class Lora(nn.Module):
    """Low-rank updates of the prior's layers, turned on and off by `switch`.

    The previewer's LoRA also includes the visual stream's layers and the resampler, if given in `others`. Weight files
    do not contain the name.

    Args:
        backbone: the prior, whose denoiser is modified in place.
        targets: "self_attention" or "previewer"; or suffixes of layer names (["to_q", "to_out.0"]), as in peft.
        rank: rank of the updates.
        alpha: the updates are scaled by alpha / rank.
        on: initial state of the switch; off for a previewer.
        name: adapter name, unique in the prior.
        others: further modules to modify by name, each with a regular expression of its target layers.

    Raises:
        ValueError: if the prior has a LoRA set of that name.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        targets: Literal["self_attention", "previewer"] | Sequence[str],
        rank: Count,
        alpha: Positive,
        on: bool = True,
        name: Annotated[str, Pattern(r"[^\W\d]\w*", "a name of letters, digits and _")] = "restore_lab",
        others: dict[str, tuple[nn.Module, str]] | None = None,
    ) -> None:
        super().__init__()
        from peft import LoraConfig, inject_adapter_in_model

        self.updates = nn.ParameterDict()
        self.layers: list[Any] = []
        self.scale, self.name = alpha / rank, name  # Hu et al., section 4.1
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
            with warnings.catch_warnings():  # several sets are intended
                warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
                settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha}  # peft annotates an integer alpha
                config = LoraConfig(**settings, target_modules=expression)
                inject_adapter_in_model(config, host, adapter_name=name)
            for layer, active in others_on:  # peft deactivates the other sets
                layer._active_adapter = active
            for p in host.parameters():  # peft freezes the host; trainable parameters stay trainable
                p.requires_grad_(frozen.get(id(p), True))
            for place, p in host.named_parameters():
                stem, _, ending = place.rpartition(f".{name}.")
                if stem.endswith(("lora_A", "lora_B")):
                    self.updates[f"{part}.{stem}.{ending}".replace(".", "/")] = p
            self.layers += [layer for layer in _changed(host) if name in layer.lora_A]
        self._set([on] * len(self.layers))

    @property
    def on(self) -> bool:
        """Whether LoRA is on."""
        return all(self._switches())

    @contextmanager
    def switch(self, on: bool) -> Iterator[None]:
        """A context in which LoRA is on or off."""
        before = self._switches()
        self._set([on] * len(self.layers))
        try:
            yield
        finally:
            self._set(before)

    def checkpoint(self, module: nn.Module, *args: Any) -> Any:
        """torch's checkpoint, with the switch in the same state in the recomputation as in the forward pass.

        All layers are restored, because a visual stream's layers are not submodules of `module`.
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
    """The layers of a module that have LoRA."""
    return [layer for layer in host.modules() if hasattr(layer, "lora_A")]
