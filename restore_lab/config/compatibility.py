"""Refuses incompatible combinations of parts, from the config only, before anything is built.

Each rule reads the composed config and yields one line with the reason and a working alternative if it applies. Without
torch; the command line runs the rules for every job of a verb that has a method.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping

from omegaconf import DictConfig, ListConfig, OmegaConf

from restore_lab.config.kinds import Value

log = logging.getLogger(__name__)


class IncompatibleParts(ValueError):
    """A combination of parts that cannot work together."""


def check_compatibility(cfg: DictConfig) -> None:
    """Apply every rule.

    Raises:
        IncompatibleParts: with the first rule's reason.
    """
    if "module" not in cfg or "backbone" not in cfg:
        return
    for rule in RULES:
        for reason in rule(_Read(cfg)):
            raise IncompatibleParts(reason)


def scale_mismatch(cfg: DictConfig, choices: Mapping[str, str | None]) -> str | None:
    """A warning for a toy prior with a paper's settings, or a full prior with toy settings; None where they agree.

    A named prior sets its scale (conf/backbone), so the two differ only where both were given, or where a user's own
    prior sets none. Whether a prior is a toy follows from its name and path; no file is read.

    Args:
        cfg: the composed config.
        choices: the chosen option of each config group.
    """
    scale, name, path = choices.get("scale"), choices.get("backbone"), OmegaConf.select(cfg, "backbone.path")
    if scale not in ("tiny", "full") or name is None or path is None:
        return None
    first = str(path[0] if isinstance(path, ListConfig) else path)
    toy = first.startswith("asset:") or str(name).startswith(("tiny/", "tiny_"))
    if toy == (scale == "tiny"):
        return None
    read = _Read(cfg)
    lr = read("optimisation.lr")
    numbers = {"crop": read("crop"), "max_steps": read("max_steps"), "lr": lr, "sampling steps": read("sampler.steps")}
    listed = ", ".join(f"{what} {value}" for what, value in numbers.items() if value is not None)
    named = first if "/" in str(name) else f"backbone={name}"
    what, other = ("a toy prior with a paper's numbers", "tiny") if toy else ("a full prior with the toy's", "full")
    return f"{named} with scale={scale} is {what} ({listed}); scale={other} goes with it"


@functools.cache
def log_once(line: str) -> None:
    """Log a warning once per process."""
    log.warning("%s", line)


class _Read:
    """A config's values by dotted key; None for an absent one."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def __call__(self, place: str) -> Value:
        return OmegaConf.select(self.cfg, place, default=None)


def _family(read: _Read) -> Iterator[str]:
    if read("backbone.family") != "mmdit":
        return
    if read("adaptor.fusion.decoder"):
        yield (
            "adaptor/fusion=modulation_decoder scales the features of a decoder half, and an MM-DiT has none; "
            "use adaptor/fusion=modulation"
        )
    if read("adaptor.fusion.attention"):
        yield ("adaptor.fusion.attention sits before upsamplers, and an MM-DiT has none; use adaptor/fusion=zero_sft")
    if str(read("decoder._target_")).endswith("ConsistencyDecoder"):
        yield "decoder=consistency decodes SD 1.x's latents, not an MM-DiT's of 16 channels; use decoder=codec"
    if OmegaConf.is_list(read("adaptor.trunk.depth")):
        yield (
            f"adaptor.trunk.depth={list(read('adaptor.trunk.depth'))} counts layers a level, and an MM-DiT has no "
            "levels; give whole, half or a number of blocks"
        )


def _unet_depth(read: _Read) -> Iterator[str]:
    depth = read("adaptor.trunk.depth")
    if read("backbone.family") == "unet" and isinstance(depth, int):
        yield f"adaptor.trunk.depth={depth} counts an MM-DiT's blocks; for a UNet give whole, half or a list of layers"


def _visual(read: _Read) -> Iterator[str]:
    if read("prompt.visual") is not None:
        return
    if read("adaptor.stream") is not None:
        yield "adaptor/stream=dcp reads an image encoder's features, and there is none; set prompt/visual=dino or clip"
    if read("module.processor") is not None:
        yield "method=diff_restorer reads CLIP features of the LQ, and there is no encoder; set prompt/visual=clip"


def _degradation(read: _Read) -> Iterator[str]:
    control_encoder = str(read("adaptor.encoder._target_")).endswith("ControlEncoder")
    if control_encoder and read("adaptor.encoder.embedding") and read("module.processor") is None:
        yield (
            "adaptor=diff_restorer is modulated by a degradation embedding, which method=diff_restorer alone makes; "
            "set adaptor.encoder.embedding=0"
        )
    if read("module.reconstruction_weight") and not control_encoder:
        yield (
            "module.reconstruction_weight rebuilds the image from the control encoder's features, and this adaptor "
            "has none; set module.reconstruction_weight=0, or adaptor=diff_restorer"
        )


def _reference(read: _Read) -> Iterator[str]:
    reads = read("adaptor.trunk.feed") == "spatial"
    if read("sampler.fidelity.preview_from") is not None and not reads:
        yield (
            "sampler/fidelity=adares steers an adaptor's reference by its previews, and this adaptor reads none; "
            "use adaptor=instantir"
        )
    if not reads:
        return
    if read("adaptor.hint_widths") is not None or read("adaptor.encoder") is not None or not read("adaptor.lq_latent"):
        yield (
            "adaptor.trunk.feed=spatial lays the LQ's latent above a reference; set adaptor.lq_latent=true and "
            "adaptor.hint_widths=null, or feed=concat"
        )
    if read("adaptor_reference.kind") != "preview":
        return
    if read("adaptor.lora") is None:
        yield (
            "a preview is the prior with LoRA, and this adaptor has none; set adaptor/lora=previewer, or "
            "adaptor/reference=mean for the prior as it is"
        )
    if read("adaptor_reference.dcp") and read("adaptor.stream") is None:
        yield (
            "adaptor/reference=preview shows the prior what an image encoder sees, and this adaptor has no stream for "
            "it; set adaptor/stream=dcp, or adaptor/reference=preview_unconditional"
        )


def _offset(read: _Read) -> Iterator[str]:
    for place in ("sampler", "sampler.scheduler"):
        offset, spacing = read(f"{place}.steps_offset"), read(f"{place}.timestep_spacing")
        ours = str(read(f"{place}._target_")).startswith("restore_lab.")
        if ours and offset and spacing not in (None, "leading"):
            yield f"{place}.steps_offset={offset} moves leading timesteps only; set {place}.timestep_spacing=leading"


RULES: tuple[Callable[[_Read], Iterator[str]], ...] = (
    _family,
    _unet_depth,
    _visual,
    _degradation,
    _reference,
    _offset,
)
