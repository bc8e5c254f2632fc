"""Exports an adaptor: safetensors with its tensors, and diffusers' own format where one exists.

A ControlNet (`adaptor=controlnet|controlnet_diffusers`) becomes a folder for ControlNetModel.from_pretrained; LoRA in
the prior becomes a file for a pipeline's load_lora_weights, with alpha folded into B. Other parts have no diffusers
format and are in the safetensors only. The method is composed on the meta device: no prior is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.adaptors.hint_net import HintNet
from restore_lab.backbones.loading.load import DTYPES
from restore_lab.importing.controlnet import controlnet_sources
from restore_lab.importing.engine import write_artefact
from restore_lab.inspection.describe import on_meta
from restore_lab.methods.weights import (
    DECODER,
    base_of,
    copy_weights,
    part_name,
    read_weights,
    weights_file,
    write_weights,
)
from restore_lab.storage.artefact import Artefact, Manifest, is_complete
from restore_lab.storage.foreign import has_type
from restore_lab.storage.identity import fingerprint, identity, plain_settings

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.methods.module import RestorationModule

CONTROLNET_FOLDER = "controlnet"
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' default file name
UPDATES = "lora.updates."
PRIOR_UPDATES = f"{UPDATES}prior/"
CONTROLNET_PARTS = ("hint", "trunk", "fusion")
PIPELINE_ROOTS = {"unet": "unet", "mmdit": "transformer"}  # the denoiser's attribute in diffusers' pipelines


def export(cfg: DictConfig) -> list[str]:
    """Write the folder and return one line per item in it.

    Args:
        cfg: the composed config of `restore-lab export`, with the method of the weights.

    Raises:
        ValueError: for weights that do not fit the method, or a folder with other content.
    """
    module, file, folder = on_meta(cfg), weights_file(cfg.weights), Path(cfg.output)
    tensors = read_weights(file, base=None)
    state = module.adaptor_state()
    state |= module.decoder_state() if any(name.startswith(DECODER) for name in tensors) else {}
    copy_weights(tensors, state, file=file)  # on the meta device: compares names and shapes only
    if cfg.dtype is not None:
        tensors = {name: value.to(DTYPES[cfg.dtype]) for name, value in tensors.items()}
    settings = plain_settings(cfg, ("adaptor", "dtype"))
    artefact = Artefact(
        kind="exported", identity=identity(settings, [fingerprint(file)]), folder=folder, settings=settings
    )
    controlnet, lora = as_controlnet(module, tensors), as_lora(module, tensors)
    lines = [f"{folder / file.name}: {len(tensors)} tensors, for restore-lab's weights={folder}"]
    if controlnet is not None:
        lines.append(f"{folder / CONTROLNET_FOLDER}: ControlNetModel.from_pretrained reads it; {_input_range(module)}")
    if lora:
        root = PIPELINE_ROOTS[module.backbone.family]
        lines.append(f"{folder / LORA_FILE}: a pipeline's load_lora_weights reads it ({root}, {len(lora)} tensors)")
    left = sorted({_host(name) for name in tensors if not _has_format(name, controlnet is not None)})
    lines += [f"no format of diffusers' holds {', '.join(left)}"] if left else []
    facts = {"base": base_of(file), "from": str(file), "licence": _licences(file), "holds": lines}

    def write() -> None:
        write_weights(tensors, folder, dtype=None, base=base_of(file))
        _write_others(folder, controlnet, lora)

    write_artefact(artefact, write, facts)
    return lines


def as_controlnet(module: RestorationModule, tensors: Mapping[str, Tensor]) -> ControlNetModel | None:
    """The adaptor as diffusers' ControlNet; None if its tensors or its text encoder differ from a ControlNet's."""
    import torch
    from diffusers.models.controlnets.controlnet import ControlNetModel

    adaptor, backbone = module.adaptor, module.backbone
    hint = getattr(adaptor, "hint", None)
    if backbone.family != "unet" or not isinstance(hint, HintNet) or adaptor.text != "semantic":
        return None
    with torch.device("meta"):
        model = ControlNetModel.from_unet(
            backbone.denoiser, conditioning_embedding_out_channels=hint.widths, load_weights_from_unet=False
        )
    own = {name: value for name, value in tensors.items() if part_name(name) in CONTROLNET_PARTS}
    pieces = controlnet_sources(own, module)
    state = {pieces[name].key: value for name, value in own.items() if name in pieces}
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if len(pieces) < len(own) or {key: value.shape for key, value in state.items()} != shapes:
        return None
    model.load_state_dict(state, assign=True)
    return model


def as_lora(module: RestorationModule, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA updates under diffusers' names, scaled so that alpha equals the rank; empty without LoRA."""
    root, updates = PIPELINE_ROOTS[module.backbone.family], {}
    for name, value in tensors.items():
        if name.startswith(PRIOR_UPDATES):
            assert module.adaptor.lora is not None
            key = name.removeprefix(PRIOR_UPDATES).replace("/", ".")
            scale = module.adaptor.lora.scale if ".lora_B." in key else 1.0
            updates[f"{root}.{key}"] = value if scale == 1.0 else (scale * value.float()).to(value.dtype)
    return updates


def _write_others(folder: Path, controlnet: ControlNetModel | None, lora: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    if controlnet is not None:
        controlnet.save_pretrained(folder / CONTROLNET_FOLDER)
    if lora:
        save_file(
            {key: value.contiguous() for key, value in lora.items()}, folder / LORA_FILE, metadata={"format": "pt"}
        )


def _input_range(module: RestorationModule) -> str:
    hint = module.adaptor.hint
    assert isinstance(hint, HintNet)
    return "give it the LQ as a tensor in [-1, 1], 2 * image - 1" if hint.signed else "give it the LQ in [0, 1]"


def _has_format(name: str, controlnet: bool) -> bool:
    """Whether a format of diffusers has this tensor."""
    return name.startswith(PRIOR_UPDATES) or (controlnet and part_name(name) in CONTROLNET_PARTS)


def _host(name: str) -> str:
    """The part that a tensor belongs to, for messages."""
    return (
        f"lora of the {name.removeprefix(UPDATES).partition('/')[0]}" if name.startswith(UPDATES) else part_name(name)
    )


def _licences(file: Path) -> list[Any]:
    """The licences that an import wrote next to the weights."""
    if not is_complete(file.parent):
        return []
    sources = Manifest.read(file.parent).extra.get("sources", ())
    return [one["licence"] for one in sources if "licence" in one] if has_type(sources, tuple[Mapping, ...]) else []
