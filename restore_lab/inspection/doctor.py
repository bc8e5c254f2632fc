"""Check the requirements of a method: `restore-lab doctor method=supir backbone=sdxl metrics=paper`.

Without network access and without loading weights it lists the parts that a method needs, their paths or how to get
them, and their licences; the metrics' weights; and the memory and disk space for restoring and training, required and
available.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from restore_lab.backbones.loading.places import as_list
from restore_lab.config.build import build
from restore_lab.inspection.describe import on_meta
from restore_lab.inspection.memory_estimate import MemoryEstimate, estimate_memory
from restore_lab.inspection.needs import Need, access_to, backbone_needs, model_need, part_sizes
from restore_lab.storage.free_space import format_bytes

if TYPE_CHECKING:
    from omegaconf import DictConfig

MODELS = ("path", "model", "weights")  # keys of a part's config that name a model


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """A device's name and its free bytes."""

    name: str
    free: int


@dataclass(frozen=True, kw_only=True)
class DiskSpace:
    """Bytes to download to a folder, and bytes free on its disk."""

    at: str
    needed: int
    free: int


@dataclass(frozen=True, kw_only=True)
class MethodCheckup:
    """The report of `restore-lab doctor` on a method.

    Attributes:
        name: of the method.
        size: side of the image to restore, in pixels.
        crop: side of the training images, in pixels.
        batch_size: images per training step on one device.
        needs: the requirements, present or missing.
        memory: the estimates for "restoring" and "training".
        device: where it would run.
        disk: where missing files would go.
    """

    name: str
    size: int
    crop: int
    batch_size: int
    needs: Sequence[Need]
    memory: Mapping[str, MemoryEstimate]
    device: DeviceMemory
    disk: DiskSpace

    @property
    def missing(self) -> list[str]:
        """The names of the missing requirements, without the optional ones."""
        return [need.what for need in self.needs if need.missing]

    def as_json(self) -> str:
        """The report as JSON; each memory estimate has its total."""
        whole = {
            "name": self.name,
            "size": self.size,
            "crop": self.crop,
            "batch_size": self.batch_size,
            "needs": [asdict(need) for need in self.needs],
            "missing": self.missing,
            "memory": {name: {**asdict(found), "total": found.total} for name, found in self.memory.items()},
            "device": asdict(self.device),
            "disk": asdict(self.disk),
        }
        return json.dumps(whole)


def check_method(cfg: DictConfig) -> MethodCheckup:
    """The report of `restore-lab doctor` on a method.

    Args:
        cfg: the composed config: `module`, `backbone`, `metrics`, `weights`, `crop`, `batch_size`, `size`, `device`.
    """
    import torch

    settings: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    elsewhere = _models(OmegaConf.to_container(cfg.module, resolve=True), where="")
    # Without weights the shapes come from a shipped config.
    shapes = [settings["config_path"]] if settings.get("config_path") else []
    cfg.backbone.path = [*as_list(settings["path"]), *shapes]
    module = on_meta(cfg)
    needs = backbone_needs(settings, part_sizes(module.backbone))
    needs += [model_need(what, place) for what, place in elsewhere.items()]
    needs += _own_weights(cfg)
    needs += _metric_needs(cfg)
    with torch.no_grad():
        memory = estimate_memory(
            module,
            settings,
            size=cfg.size,
            crop=cfg.crop,
            batch=cfg.batch_size,
            ema=bool(cfg.ema),
            precision=str(cfg.precision),
        )
    return MethodCheckup(
        name=cfg.name,
        size=cfg.size,
        crop=cfg.crop,
        batch_size=cfg.batch_size,
        needs=needs,
        memory=memory,
        device=_device(cfg.device),
        disk=_disk(sum(need.size or 0 for need in needs if need.missing)),
    )


def _models(node: object, *, where: str) -> dict[str, str]:
    """The models of parts other than the backbone, by dotted key."""
    found: dict[str, str] = {}
    if not isinstance(node, Mapping):
        return found
    for key, value in node.items():
        place = f"{where}.{key}" if where else str(key)
        if key != "backbone" and isinstance(value, Mapping):
            found |= _models(value, where=place)
        elif key in MODELS and isinstance(value, str) and "_target_" in node:
            found[place] = value
    return found


def _own_weights(cfg: DictConfig) -> list[Need]:
    """The method's own weights; without them it has to be trained."""
    from restore_lab.methods.weights import weights_file

    if cfg.weights is None:
        return []
    shipped = cfg.weights == cfg.shipped
    try:
        file = weights_file(cfg.weights)
        return [Need(what="the method's weights", at=str(file), size=file.stat().st_size)]
    except (OSError, ValueError) as error:
        train = "train them (restore-lab train with the same words), then weights=FOLDER"
        gap = "none ship at this scale" if shipped else str(error)
        return [Need(what="the method's weights", at=None, gap=gap, access=train, optional=shipped)]


def _metric_needs(cfg: DictConfig) -> list[Need]:
    """The weights of the selected metrics."""
    if cfg.get("metrics") is None:
        return []
    found = []
    for node in cfg.metrics.metrics.values():
        metric = build(node)
        gap = metric.missing()
        where = "here" if not gap else None
        access = access_to([node.path]) if gap and "path" in node else ""
        found.append(Need(what=f"metric {metric.id}", at=where, gap=gap, access=access))
    return found


def _device(word: str) -> DeviceMemory:
    import os

    import torch

    if word == "cpu" or not torch.cuda.is_available():
        return DeviceMemory(name="cpu", free=os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    index = torch.device("cuda" if word == "auto" else word)
    return DeviceMemory(name=torch.cuda.get_device_name(index), free=torch.cuda.mem_get_info(index)[0])


def _disk(needed: int) -> DiskSpace:
    """The disk of the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    return DiskSpace(at=HF_HUB_CACHE, needed=needed, free=shutil.disk_usage(place).free)


def render_checkup(found: MethodCheckup) -> str:
    """The report as text."""
    width = max(len(need.what) for need in found.needs)
    lines = [f"{found.name}: {_verdict(found)}", ""]
    for need in found.needs:
        state = "there  " if need.at else ("to come" if need.optional else "MISSING")
        size = f"{format_bytes(need.size):>9}" if need.size is not None else " " * 9
        licence = f"  ({need.licence})" if need.licence else ""
        lines.append(f"  {need.what:<{width}}  {state} {size}  {need.at or need.gap}{licence}".rstrip())
        if need.access:
            lines.append(f"  {'':<{width}}  get it: {need.access}")
    lines += ["", "estimated memory on the device", ""]
    free = found.device.free
    doing = {
        "restoring": f"one image of {found.size} pixels a side",
        "training": f"{found.batch_size} images of {found.crop} pixels a side",
    }
    for name, memory in found.memory.items():
        parts = ", ".join(f"{part} {format_bytes(count)}" for part, count in asdict(memory).items() if count)
        enough = "" if memory.total <= free else "  NOT ENOUGH"
        lines += [f"  {name:<9} {format_bytes(memory.total):>9}{enough}  {doing[name]}: {parts}"]
    lines += ["", f"{found.device.name}: {format_bytes(free)} of memory free"]
    disk = found.disk
    short = "" if disk.needed <= disk.free else ", NOT ENOUGH"
    fetch = f"; {format_bytes(disk.needed)} to be fetched{short}" if disk.needed else ""
    return "\n".join([*lines, f"{disk.at}: {format_bytes(disk.free)} of disk free{fetch}"])


def _verdict(found: MethodCheckup) -> str:
    missing = found.missing
    return "all that it needs is there" if not missing else f"{len(missing)} of what it needs are MISSING"
