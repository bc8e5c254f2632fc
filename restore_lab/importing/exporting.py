"""Exports an adaptor: safetensors with its tensors, and diffusers' own format where one exists.

A ControlNet (`adaptor=controlnet|controlnet_diffusers`) becomes a folder for ControlNetModel.from_pretrained; LoRA in
the prior becomes a file for a pipeline's load_lora_weights, with alpha folded into B. Other parts have no diffusers
format and are in the safetensors only. The method is composed on the meta device: no prior is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from restore_lab.adaptors.hint_net import HintNet
from restore_lab.backbones.loading.load import DTYPES
from restore_lab.importing.controlnet import sources
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
from restore_lab.storage.artefact import Manifest, fingerprint, identity, is_complete
from restore_lab.storage.foreign import has_type

if TYPE_CHECKING:
    from diffusers import ControlNetModel
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.methods.module import RestorationModule

CONTROLNET = "controlnet"
LORA = "pytorch_lora_weights.safetensors"  # diffusers' default file name
UPDATES = "lora.updates."
ROOTS = {"unet": "unet", "mmdit": "transformer"}  # the denoiser's attribute in diffusers' pipelines


def export(cfg: DictConfig) -> list[str]:
    """Write the folder and return one line per item in it.

    Args:
        cfg: the composed config of `restore-lab export`, with the method of the weights.

    Raises:
        ValueError: for weights that do not fit the method, or a folder with other content.
    """
    if cfg.dtype is not None and cfg.dtype not in DTYPES:
        raise ValueError(f"dtype={cfg.dtype!r} is not known; one of {', '.join(DTYPES)}, or null for the weights' own")
    module, file, folder = on_meta(cfg), weights_file(cfg.weights), Path(cfg.output)
    found = read_weights(file, base=None)
    wanted = module.adaptor_state()
    wanted |= module.decoder_state() if any(name.startswith(DECODER) for name in found) else {}
    copy_weights(found, wanted, file=file)  # on the meta device: compares names and shapes only
    if cfg.dtype is not None:
        found = {name: value.to(DTYPES[cfg.dtype]) for name, value in found.items()}
    settings = {"adaptor": OmegaConf.to_container(cfg.adaptor, resolve=True), "dtype": cfg.dtype}
    name = identity(settings, [fingerprint(file)])
    controlnet, lora = as_controlnet(module, found), as_lora(module, found)
    lines = [f"{folder / file.name}: {len(found)} tensors, for restore-lab's weights={folder}"]
    if controlnet is not None:
        lines.append(f"{folder / CONTROLNET}: ControlNetModel.from_pretrained reads it; {_image(module)}")
    if lora:
        root = ROOTS[module.backbone.family]
        lines.append(f"{folder / LORA}: a pipeline's load_lora_weights reads it ({root}, {len(lora)} tensors)")
    left = sorted({_host(name) for name in found if not _told(name, controlnet is not None)})
    lines += [f"no format of diffusers' holds {', '.join(left)}"] if left else []
    facts = {"base": base_of(file), "from": str(file), "licence": _licences(file), "holds": lines}

    def write() -> None:
        write_weights(found, folder, dtype=None, base=base_of(file))
        _write_others(folder, controlnet, lora)

    write_artefact(folder, Manifest(identity=name, kind="exported", settings=settings, extra=facts), write)
    return lines


def as_controlnet(module: RestorationModule, found: Mapping[str, Tensor]) -> ControlNetModel | None:
    """The adaptor as diffusers' ControlNet; None if its tensors or its text encoder differ from a ControlNet's."""
    import torch
    from diffusers import ControlNetModel

    adaptor, backbone = module.adaptor, module.backbone
    hint = getattr(adaptor, "hint", None)
    if backbone.family != "unet" or not isinstance(hint, HintNet) or adaptor.text != "semantic":
        return None
    with torch.device("meta"):
        made = ControlNetModel.from_unet(
            backbone.denoiser, conditioning_embedding_out_channels=hint.widths, load_weights_from_unet=False
        )
    own = {name: value for name, value in found.items() if part_name(name) in ("hint", "trunk", "fusion")}
    pieces = sources(own, module)
    state = {pieces[name].key: value for name, value in own.items() if name in pieces}
    shapes = {key: value.shape for key, value in made.state_dict().items()}
    if len(pieces) < len(own) or {key: value.shape for key, value in state.items()} != shapes:
        return None
    made.load_state_dict(state, assign=True)
    return made


def as_lora(module: RestorationModule, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA updates under diffusers' names, scaled so that alpha equals the rank; empty without LoRA."""
    root, made = ROOTS[module.backbone.family], {}
    for name, value in found.items():
        if name.startswith(f"{UPDATES}prior/"):
            key = name.removeprefix(f"{UPDATES}prior/").replace("/", ".")
            scale = module.adaptor.lora.scale if ".lora_B." in key else 1.0
            made[f"{root}.{key}"] = value if scale == 1.0 else (scale * value.float()).to(value.dtype)
    return made


def _write_others(folder: Path, controlnet: ControlNetModel | None, lora: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    if controlnet is not None:
        controlnet.save_pretrained(folder / CONTROLNET)
    if lora:
        save_file({key: value.contiguous() for key, value in lora.items()}, folder / LORA, metadata={"format": "pt"})


def _image(module: RestorationModule) -> str:
    signed = module.adaptor.hint.signed
    return "give it the LQ as a tensor in [-1, 1], 2 * image - 1" if signed else "give it the LQ in [0, 1]"


def _told(name: str, controlnet: bool) -> bool:
    return name.startswith(f"{UPDATES}prior/") or (controlnet and part_name(name) in ("hint", "trunk", "fusion"))


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
