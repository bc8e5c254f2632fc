"""The arguments of all parts in a composed config, each with the annotation in its constructor.

An argument that is only a reference (`rank: ${lora_rank}`) belongs to the setting that it refers to: so a setting that
parts share has the annotation of the constructors that read it, and its errors name the setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from restore_lab.config.kinds import Kind, Value
from restore_lab.config.signatures import HYDRA_KEYS, source_signature
from restore_lab.config.suggest import offer

Node = DictConfig | ListConfig
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?(?P<setting>[A-Za-z_][\w.]*)(?:,.*)?\}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument of a part.

    Attributes:
        place: its dotted key, "adaptor.lora.rank"; or that of the setting that it refers to, "lora_rank".
        is_reference: whether it refers to a setting.
        value: the resolved value.
        kind: the annotation.
    """

    place: str
    is_reference: bool = False
    value: Value
    kind: Kind


def arguments(cfg: DictConfig) -> Iterator[Argument]:
    """Each argument of each part in a config, without Hydra's node.

    Raises:
        ValueError: for an argument that a constructor lacks, or an interpolation that cannot be resolved.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    return _arguments(cfg, raw, "", settings=raw)


def _arguments(node: Node, raw: Value, place: str, *, settings: Value) -> Iterator[Argument]:
    """The arguments below a node; `raw` is the node as plain values, interpolations unresolved."""
    target = entry(node, "_target_", place) if isinstance(node, DictConfig) and "_target_" in raw else None
    signature = source_signature(target) if isinstance(target, str) else None
    for key, text in raw.items() if isinstance(raw, dict) else enumerate(raw):
        if text == MISSING or (not place and key == "hydra"):
            continue
        inner = f"{place}[{key}]" if isinstance(node, ListConfig) else f"{place}.{key}".lstrip(".")
        value = entry(node, key, inner)
        if key in HYDRA_KEYS:
            yield Argument(place=inner, value=value, kind=HYDRA_KEYS[str(key)])
        elif signature is not None:
            if key not in signature.kinds and signature.var_keyword is None:
                raise ValueError(f"{inner}: {target} takes no {key!r}{offer(str(key), signature.kinds)}")
            kind, setting = signature.kinds.get(str(key), signature.var_keyword), _reference(text, settings)
            yield Argument(place=setting or inner, is_reference=setting is not None, value=value, kind=kind)
        if isinstance(text, dict | list):
            yield from _arguments(value, text, inner, settings=settings)


def entry(node: Node, key: Value, place: str) -> Value:
    """An entry of a node.

    Raises:
        ValueError: if its interpolation cannot be resolved.
    """
    try:
        return node[key]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{place}: {reason}; a setting or part that it stands for was taken away") from error


def _reference(text: Value, settings: Value) -> str | None:
    """The existing setting that an entry refers to; None for any other entry."""
    match = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    for key in match["setting"].split("."):
        if not isinstance(settings, dict) or key not in settings:
            return None
        settings = settings[key]
    return match["setting"]
