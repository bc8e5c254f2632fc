"""Memory plans for restoring: where the weights are, and how the prior's are quantised. `memory=none|staged|int8|...`.

staged: encoders of text and images, the codec, and prior with adaptor take turns on the device. offload: all weights
stay in host memory, and those of a layer are copied for its forward pass (accelerate). Neither changes a result.
Quantised `weights` do: the linear layers of the frozen denoiser are stored in int8, fp8 (torchao) or nf4 (bitsandbytes;
QLoRA, Dettmers et al. 2023) and dequantised in use. The method's trained weights, LoRA included, are not quantised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from restore_lab.methods.conditioning import StageName
    from restore_lab.methods.module import RestorationModule

Placement = Literal["device", "staged", "offload"]
WeightFormat = Literal["int8", "fp8", "nf4"]


class MemoryPlan:
    """A memory plan.

    Args:
        place: device (all weights stay on it), staged or offload.
        weights: format of the prior's quantised weights, int8, fp8 or nf4; null for no quantisation.

    Raises:
        ValueError: for offload with quantised weights.
    """

    def __init__(self, *, place: Placement, weights: WeightFormat | None) -> None:
        if place == "offload" and weights is not None:
            raise ValueError(f"memory.place=offload moves plain weights alone, not {weights}; set memory.place=staged")
        self.place: Placement = place
        self.weights: WeightFormat | None = weights

    def apply(self, module: RestorationModule, device: torch.device | str) -> RestorationModule:
        """Apply the plan to a method whose weights are loaded, in place.

        Args:
            module: the method.
            device: the device that it runs on.

        Raises:
            ValueError: if the library for `weights` is not installed, or for offload with compiled blocks.
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

            # All weights, those of shared modules under each name.
            weights = {name: p.detach().cpu() for name, p in module.named_parameters(remove_duplicate=False)}
            cpu_offload(module, execution_device=torch.device(device), state_dict=weights)
        return module


class StageMover:
    """Moves the group of parts that is needed to the device, and the others to the CPU.

    Args:
        module: the method.
        device: the device that it runs on.
        move: false moves nothing, since accelerate moves each layer.
    """

    def __init__(self, module: RestorationModule, device: torch.device, *, move: bool) -> None:
        self.device, self.move, self.current = device, move, ""
        backbone, processor = module.backbone, getattr(module, "processor", None)
        parts: dict[StageName, list[nn.Module | None]] = {
            "words": [backbone.text, module.visual, processor, module.adaptor.stream],
            "codec": [backbone.codec, module.lq_encoder, module.decoder],
            "prior": [backbone.denoiser, module.adaptor],
            "none": [],
        }
        self.groups = {name: [part for part in group if part is not None] for name, group in parts.items()}

    def __call__(self, name: StageName) -> None:
        """Move this group to the device."""
        if not self.move or name == self.current:
            return
        for part in (part for group in self.groups.values() for part in group if group is not self.groups[name]):
            part.to("cpu")
        for part in self.groups[name]:
            part.to(self.device)
        self.current = name


def quantise(module: RestorationModule, weights: WeightFormat) -> None:
    """Quantise the linear layers of the frozen denoiser, in place.

    Raises:
        ValueError: if the library is not installed.
    """
    trained = {id(p) for p in module.adaptor.parameters()}
    layers = {
        name: layer
        for name, layer in module.backbone.denoiser.named_modules()
        if type(layer) is nn.Linear and id(layer.weight) not in trained
    }
    try:
        if weights == "nf4":
            _quantise_nf4(module.backbone.denoiser, layers)
        else:
            _quantise_torchao(module.backbone.denoiser, layers, weights)
    except ImportError as error:
        extra, library = ("quant", "bitsandbytes") if weights == "nf4" else ("torchao", "torchao")
        raise ValueError(
            f"memory.weights={weights} needs {library} ({error}): pip install 'restore-lab[{extra}]'"
        ) from error


def _quantise_torchao(denoiser: nn.Module, layers: dict[str, nn.Linear], weights: WeightFormat) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig() if weights == "int8" else Float8WeightOnlyConfig()
    quantize_(denoiser, config, filter_fn=lambda layer, name: name in layers)


def _quantise_nf4(denoiser: nn.Module, layers: dict[str, nn.Linear]) -> None:
    from bitsandbytes.nn import Linear4bit

    for name, layer in layers.items():
        quantised = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            quant_type="nf4",
            compute_dtype=layer.weight.dtype,
        )
        quantised.load_state_dict(layer.state_dict())
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, quantised.requires_grad_(False).to(layer.weight.device))
