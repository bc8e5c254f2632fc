"""Where weights lie while a method restores, and in what numbers the prior's. `memory=none|staged|offload|int8|...`.

staged: text and image encoders, codec, prior with adaptor are on the device in turn. offload: all weights stay in host
memory, and each layer's come for its own forward (accelerate). Neither changes a result. `weights` does: the linear
layers of the frozen denoiser in fewer bits, dequantised as they are used: int8, fp8 (torchao), nf4 (bitsandbytes;
QLoRA, Dettmers et al. 2023). What the method learned, LoRA included, stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from restore_lab.methods.module import RestorationModule, StageName

Placement = Literal["device", "staged", "offload"]
WeightFormat = Literal["int8", "fp8", "nf4"]


class MemoryPlan:
    """A plan.

    Args:
        place: device (everything stays on it), staged or offload.
        weights: null leaves the prior's weights as they are; int8, fp8 or nf4.

    Raises:
        ValueError: for two that exclude each other.
    """

    def __init__(self, *, place: Placement, weights: WeightFormat | None) -> None:
        if place == "offload" and weights is not None:
            raise ValueError(f"memory.place=offload moves plain weights alone, not {weights}; set memory.place=staged")
        self.place, self.weights = place, weights

    def apply(self, module: RestorationModule, device: torch.device | str) -> RestorationModule:
        """The method as planned, its weights loaded before.

        Args:
            module: the method.
            device: where it runs.

        Raises:
            ValueError: if the library behind `weights` is not installed, or blocks whose weights would come and go are
                compiled.
        """
        if self.weights is not None:
            quantise(module, self.weights)
        if self.place == "device":
            return module.to(device)
        module.stages = StageMover(module, torch.device(device), move=self.place == "staged")
        if self.place == "offload":
            if any("forward" in vars(part) for part in module.modules()):
                raise ValueError("memory.place=offload moves weights under compiled blocks; set compile=false")
            from accelerate import cpu_offload

            # A method's own state dict is what it learned; here all of its weights are meant.
            weights = {name: p.detach().cpu() for name, p in module.named_parameters(remove_duplicate=False)}
            cpu_offload(module, execution_device=torch.device(device), state_dict=weights)
        return module


class StageMover:
    """Which parts are on the device.

    Args:
        module: the method.
        device: where it runs.
        move: false leaves the parts alone, since their layers come by themselves.
    """

    def __init__(self, module: RestorationModule, device: torch.device, *, move: bool) -> None:
        self.device, self.move, self.now = device, move, ""
        backbone, processor = module.backbone, getattr(module, "processor", None)
        found: dict[str, list[Any]] = {
            "words": [backbone.text, module.visual, processor, module.adaptor.stream],
            "codec": [backbone.codec, module.lq_encoder, module.decoder],
            "prior": [backbone.denoiser, module.adaptor],
            "none": [],
        }
        self.groups = {name: [part for part in parts if part is not None] for name, parts in found.items()}

    def __call__(self, name: StageName) -> None:
        """From here on this group is needed, and no other."""
        if not self.move or name == self.now:
            return
        for part in (part for group in self.groups.values() for part in group if group is not self.groups[name]):
            part.to("cpu")
        for part in self.groups[name]:
            part.to(self.device)
        self.now = name


def quantise(module: RestorationModule, weights: WeightFormat) -> None:
    """The linear layers of the frozen denoiser in fewer bits, in place.

    Raises:
        ValueError: if the library is not installed.
    """
    learned = {id(p) for p in module.adaptor.parameters()}
    chosen = {
        name: layer
        for name, layer in module.backbone.denoiser.named_modules()
        if type(layer) is nn.Linear and id(layer.weight) not in learned
    }
    try:
        if weights == "nf4":
            _to_nf4(module.backbone.denoiser, chosen)
        else:
            _to_torchao(module.backbone.denoiser, chosen, weights)
    except ImportError as error:
        extra, library = ("quant", "bitsandbytes") if weights == "nf4" else ("torchao", "torchao")
        raise ValueError(
            f"memory.weights={weights} needs {library} ({error}): pip install 'restore-lab[{extra}]'"
        ) from error


def _to_torchao(denoiser: nn.Module, chosen: dict[str, nn.Linear], weights: str) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig() if weights == "int8" else Float8WeightOnlyConfig()
    quantize_(denoiser, config, filter_fn=lambda layer, name: name in chosen)


def _to_nf4(denoiser: nn.Module, chosen: dict[str, nn.Linear]) -> None:
    from bitsandbytes.nn import Linear4bit

    for name, layer in chosen.items():
        new = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            quant_type="nf4",
            compute_dtype=layer.weight.dtype,
        )
        new.load_state_dict(layer.state_dict())
        parent, _, own = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), own, new.requires_grad_(False).to(layer.weight.device))
