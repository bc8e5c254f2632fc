"""Toy priors wide enough for norms of 32 groups, and imports into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from safetensors.torch import save_file

from restore_lab.config.build import build
from restore_lab.importing.engine import ImportResult, import_checkpoints
from restore_lab.importing.recognise import recognise, words_of
from restore_lab.methods.weights import weights_file
from tests.helpers.configs import composed
from tests.helpers.toy_priors import PROJECTION, TEXT_WIDTH, TEXT_WIDTH_2, toy_unet, toy_unet_folder, toy_vae

WIDTHS, HEADS, LAYERS = (32, 64, 64), (2, 4, 4), 2
SDXL = {
    "widths": WIDTHS,
    "heads": HEADS,
    "depths": (0, 1, 2),
    "middle_depth": 2,
    "layers": LAYERS,
    "context": TEXT_WIDTH + TEXT_WIDTH_2,
    "label": PROJECTION + 6 * 8,
}
KL = {"block_out_channels": (32, 32, 64), "norm_num_groups": 32, "mid_block_add_attention": True}


def prior_folder(tmp_path: Path, kind: str = "sdxl") -> Path:
    """A toy prior of SDXL's or SD 2.1's shape whose norms have 32 groups."""
    folder = toy_unet_folder(tmp_path, kind)
    own = {"block_out_channels": WIDTHS, "layers_per_block": LAYERS, "attention_head_dim": HEADS}
    own["down_block_types"] = ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",)
    own["up_block_types"] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2
    if kind == "sdxl":
        own["down_block_types"] = ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2
        own["up_block_types"] = ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)
    toy_unet(kind, norm_num_groups=32, **own).save_pretrained(folder / "unet")
    toy_vae(**KL).save_pretrained(folder / "vae")
    return folder


def stored(state: dict[str, Any], file: Path) -> Path:
    """The state as safetensors."""
    save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, file)
    return file


def imported(files: list[Path], *typed: str) -> ImportResult:
    """What `restore-lab import` does after Hydra; typed overrides take the place of the layouts' own."""
    found = recognise([str(file) for file in files])
    chosen = {word.partition("=")[0] for word in typed}
    words = [word for word in words_of(found) if word.partition("=")[0] not in chosen] + list(typed)
    try:
        return import_checkpoints(composed("import", *words, f"files=[{files[0]}]"), found, words=words)
    finally:
        HydraConfig.instance().cfg = None


def method_with(done: ImportResult, *typed: str) -> Any:
    """The method that `weights=` of an import makes."""
    cfg = composed("restore", *done.facts["words"], "input=none", *typed)
    module = build(cfg.module)
    module.load_weights(weights_file(str(done.folder)))
    return module.eval()
