"""A prior in one `.safetensors` file, in its original layout (LDM's, SDXL's, SD3's).

diffusers' converters map the keys. Configs, scheduler and tokenizers are not in such a file: they come from
`backbone.config_path`, a folder in diffusers format or the configs in this package (`config:sdxl`), and so do weights
that are not in the file (usually T5's). Only a part's tensors are read from the file. If it has EMA weights
(`model_ema.*`), these are used, as in the diffusers folders on the hub.
Config line: `backbone.path=/x/model.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.backbones.loading.diffusers_folder import BackboneError, Folder, check_complete, first_line
from restore_lab.system.quiet import silence_libraries

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
PREFIXES = {
    "unet": ("model.diffusion_model.", "model_ema."),
    "transformer": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}


class SingleFile(Folder):
    """The parts of one file, with the configs of a folder.

    Args:
        file: the weights.
        folder: configs, scheduler and tokenizers, and weights of the parts that are not in the file.

    Raises:
        BackboneError: if the file cannot be read or has no denoiser.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        super().__init__(folder)
        self.file = file
        try:
            with safe_open(file, framework="pt") as opened:
                self.keys = tuple(opened.keys())
        except (OSError, SafetensorError) as error:
            raise BackboneError(f"{file}: weights cannot be read ({first_line(error)})") from error
        if not self._keys("unet"):
            raise BackboneError(
                f"{file}: no prior in one file, its weights are not called model.diffusion_model.*; a denoiser alone "
                "needs a folder in diffusers format"
            )

    def files(self, part: str) -> list[Path]:
        """The file, or the folder's files for parts that are not in it."""
        return [self.file] if self._keys(part) else super().files(part)

    def encoders(self) -> list[Path]:
        """The file, and the folder's encoders."""
        return [self.file, *super().encoders()]

    def read(self, cls: Any, part: str, *, dtype: torch.dtype) -> Any:
        """The part from the file, else from the folder."""
        if self._keys(part):
            return self._convert(cls, part, dtype=dtype)
        if super().files(part):
            return super().read(cls, part, dtype=dtype)
        out = f", or leave it out: backbone.without=[{part}]" if self.has("transformer") and part != "vae" else ""
        raise BackboneError(
            f"{self.file}: holds no {part}; set backbone.config_path to a diffusers folder that has one{out}"
        )

    def _keys(self, part: str) -> list[str]:
        return [key for key in self.keys if key.startswith(PREFIXES[part])]

    def _convert(self, cls: Any, part: str, *, dtype: torch.dtype) -> Any:
        from diffusers.loaders.single_file_utils import (
            SingleFileComponentError,
            create_diffusers_clip_model_from_ldm,
            create_diffusers_t5_model_from_checkpoint,
        )
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as opened:
            weights = {key: opened.get_tensor(key) for key in self._keys(part)}
        where: dict[str, Any] = {"config": str(self.root), "subfolder": part, "local_files_only": True}
        try:
            with silence_libraries():
                if part == "text_encoder_3":
                    model = create_diffusers_t5_model_from_checkpoint(cls, weights, torch_dtype=dtype, **where)
                    model.tie_weights()
                elif part.startswith("text_encoder"):
                    model = create_diffusers_clip_model_from_ldm(cls, weights, **where)
                elif part == "unet":
                    model = cls.from_single_file(weights, extract_ema=True, **where)
                else:
                    model = cls.from_single_file(weights, **where)
        except (OSError, ValueError, KeyError, IndexError, RuntimeError, SingleFileComponentError) as error:
            # diffusers reports a missing weight only as a meta tensor that cannot be moved (NotImplementedError).
            why = "weights are missing" if isinstance(error, NotImplementedError) else first_line(error)
            raise BackboneError(
                f"{self.file}: its {part} does not fit {self.root.name}'s config ({why}); is it a "
                "checkpoint of this kind? choose another backbone, or set backbone.config_path"
            ) from error
        check_complete(f"{self.file}, {part}", [name for name, p in model.named_parameters() if p.is_meta])
        if part == "text_encoder_3":  # already in its dtype, except for layers that overflow in float16
            return model.eval()
        with silence_libraries():
            return model.to(dtype).eval()
