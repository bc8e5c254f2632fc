"""The data types that parts exchange.

Frozen, keyword-only dataclasses. Images are float32 in [0, 1] outside the codec. Shape suffixes: B batch,
C channels, H height, W width, L tokens, D width of an embedding. This module imports torch for annotations only,
so that the command line can use it without loading torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from restore_lab.storage.foreign import parse_dataclass, parse_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

REMOVE_ALL = "Remove all degradation"
TapKind = Literal["encoder", "block", "middle", "join", "upsample"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One degradation step of a `Recipe`.

    `kind` names the operation ("blur", "resize", "noise", "jpeg", ...); `params` holds all numbers that reproduce it,
    noise seeds included; `says` is the instruction that reverts it, with its number ("Deblur with sigma 2.4"),
    `says_type` the same without it ("Deblur"); both are empty for a step without an instruction.
    """

    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    says: str = ""
    says_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The degradation of one image: its steps in order, with the sampled parameters and their seed.

    A recipe can be replayed (`restore_lab.degradation.apply.apply_recipe`), stored as JSON, and read as SPIRE's
    instruction. The instruction of a `blind` recipe (Real-ESRGAN's, whose steps have none) is `REMOVE_ALL`.
    """

    pipeline: str
    seed: int
    steps: tuple[Step, ...] = ()
    blind: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The unique kinds of degradation, in order."""
        return tuple(dict.fromkeys(step.kind for step in self.steps))

    def instruction(self, *, values: bool = True) -> str:
        """The restoration prompt c_r of SPIRE, Table 2: "Deblur with sigma 2.4; Denoise with sigma 0.06".

        With `values=False` the types only ("Deblur; Denoise"). The steps are in the order in which they were applied
        (SPIRE, Algorithm 1). Without steps it is the empty string.
        """
        if self.blind:
            return REMOVE_ALL
        words = (step.says if values else step.says_type for step in self.steps)
        return "; ".join(word for word in words if word)

    def to_json(self) -> str:
        """The recipe as one line of JSON, which `from_json` reads."""
        steps = [
            {"kind": s.kind, "params": dict(s.params), "says": s.says, "says_type": s.says_type} for s in self.steps
        ]
        return json.dumps({"pipeline": self.pipeline, "seed": self.seed, "blind": self.blind, "steps": steps})

    @classmethod
    def from_json(cls, line: str) -> Recipe:
        """The recipe of a line of `to_json`.

        Raises:
            ValueError: if the line is not a recipe.
        """
        try:
            raw = parse_json(line, name="recipe")
            known = {**raw, "steps": [parse_dataclass(Step, step, name="a step") for step in raw["steps"]]}
            return parse_dataclass(cls, known, name="recipe")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a recipe: {line[:80]!r} ({error}); expected what Recipe.to_json() writes") from error


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image as read by a source: uint8 RGB, height x width x 3, with its caption and its key.

    `recipe` is the degradation of a pair's LQ, if known.
    """

    hq_HWC: np.ndarray | None
    lq_HWC: np.ndarray | None = None
    caption: str = ""
    key: str = ""
    recipe: Recipe | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images with their captions, keys, seeds and recipes.

    `hq_BCHW` may be None (a folder of LQ photographs), `lq_BCHW` is None only between source and degradation. Both are
    float32 in [0, 1] and of one size. The tuples hold one entry per image. `seed` is a function of (run seed, epoch,
    index) and seeds every random decision about its image: degradation, dropout, noise.
    """

    hq_BCHW: Tensor | None
    lq_BCHW: Tensor | None
    caption: tuple[str, ...]
    key: tuple[str, ...]
    seed: tuple[int, ...]
    recipe: tuple[Recipe | None, ...]

    def __len__(self) -> int:
        return len(self.key)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with its images on another device; Lightning calls this."""
        moved = {
            name: None if image is None else image.to(device, non_blocking=non_blocking)
            for name, image in (("hq_BCHW", self.hq_BCHW), ("lq_BCHW", self.lq_BCHW))
        }
        return replace(self, **moved)

    def select(self, indices: Sequence[int]) -> Batch | None:
        """The batch of the images at `indices`; None if there are none."""
        if not indices:
            return None
        chosen = list(indices)
        return Batch(
            hq_BCHW=None if self.hq_BCHW is None else self.hq_BCHW[chosen],
            lq_BCHW=None if self.lq_BCHW is None else self.lq_BCHW[chosen],
            caption=tuple(self.caption[i] for i in chosen),
            key=tuple(self.key[i] for i in chosen),
            seed=tuple(self.seed[i] for i in chosen),
            recipe=tuple(self.recipe[i] for i in chosen),
        )


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompts of a batch. A null prompt is an empty string, never a missing entry.

    `visual_BLD` are an image encoder's features of the LQ, `visual_null_BLD` those of a black image.
    """

    semantic: tuple[str, ...]
    negative: tuple[str, ...]
    instruction: tuple[str, ...]
    visual_BLD: Tensor | None = None
    visual_null_BLD: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Cond:
    """One guidance branch after the encoders: text tokens, pooled text, size conditioning, a visual stream's tokens.

    `visual_BND` are the image encoder's features for this branch, the input of the visual stream.
    """

    tokens_BLD: Tensor
    pooled_BD: Tensor | None = None
    size_BD: Tensor | None = None
    visual_BLD: Tensor | None = None
    visual_BND: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Hint:
    """The inputs of an adaptor. `lq_BCHW` is in [0, 1], `lq_latent_BCHW` comes from the configured LQ encoder.

    `reference_BCHW` is a clean latent that changes with each step, computed from `visual_BND`, `visual_null_BND` (an
    image encoder's features of the LQ and of a black image), `empty` (the condition of the empty prompt) and
    `hq_latent_BCHW`. `features_BCHW` is the output of the adaptor's hint network, if precomputed.
    """

    lq_BCHW: Tensor
    lq_latent_BCHW: Tensor | None = None
    instruction_BLD: Tensor | None = None
    degradation_BD: Tensor | None = None
    reference_BCHW: Tensor | None = None
    visual_BND: Tensor | None = None
    visual_null_BND: Tensor | None = None
    empty: Cond | None = None
    hq_latent_BCHW: Tensor | None = None
    features_BCHW: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One place in a backbone where an `Edit` receives the features.

    `channels` is the number of channels that the edit receives, `skip` how many of these (the last ones) are the skip
    connection at a `join`, 0 elsewhere; `stride` is the size of the latent over the size of the map.
    """

    name: str
    kind: TapKind
    channels: int
    stride: int
    skip: int = 0


class Edit(Protocol):
    """A pure function that a backbone calls at each tap; state is threaded through `carry`, never stored."""

    def __call__(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]: ...


def identity_edit(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
    """The identity edit, with which the backbone equals diffusers' own forward."""
    return h_BCHW, carry
