"""The shared nouns: what one part hands to the next.

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
    """One operation of a `Recipe`.

    `kind` names the operation ("blur", "resize", "noise", "jpeg", ...); `params` holds every number it needs to be
    repeated, noise seeds included; `says` is the instruction that undoes it, with its number ("Deblur with sigma
    2.4"), `says_type` the same without ("Deblur"); both are empty for a step that has no words.
    """

    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    says: str = ""
    says_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What was done to one image, in order, with the drawn numbers and the seed they were drawn from.

    A recipe replays (`restore_lab.degradation.apply.apply_recipe`), survives JSON, and speaks SPIRE's instruction.
    `blind` recipes (Real-ESRGAN's, whose steps have no words a person would use) say `REMOVE_ALL`.
    """

    pipeline: str
    seed: int
    steps: tuple[Step, ...] = ()
    blind: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of degradation present, in order, without repeats."""
        return tuple(dict.fromkeys(step.kind for step in self.steps))

    def instruction(self, *, values: bool = True) -> str:
        """The restoration prompt c_r of SPIRE, Table 2: "Deblur with sigma 2.4; Denoise with sigma 0.06".

        With `values=False` the kinds alone ("Deblur; Denoise"). The steps are named in the order in which they were
        applied (SPIRE, Algorithm 1). Nothing done gives the empty string.
        """
        if self.blind:
            return REMOVE_ALL
        words = (step.says if values else step.says_type for step in self.steps)
        return "; ".join(word for word in words if word)

    def to_json(self) -> str:
        """One line of JSON from which `from_json` makes an equal recipe."""
        steps = [
            {"kind": s.kind, "params": dict(s.params), "says": s.says, "says_type": s.says_type} for s in self.steps
        ]
        return json.dumps({"pipeline": self.pipeline, "seed": self.seed, "blind": self.blind, "steps": steps})

    @classmethod
    def from_json(cls, line: str) -> Recipe:
        """Read what `to_json` wrote.

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
    """One image as a source reads it: uint8 RGB, height x width x 3, with its caption and a key that names it.

    `recipe` says what was done to the LQ of a pair, where that is known.
    """

    hq_HWC: np.ndarray | None
    lq_HWC: np.ndarray | None = None
    caption: str = ""
    key: str = ""
    recipe: Recipe | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and what is known of each.

    `hq_BCHW` may be absent (a folder of bad photographs), `lq_BCHW` is absent only between the source and the
    degradation. Both are float32 in [0, 1] and of one size. The tuples hold one entry an image. `seed` is a function
    of (run seed, epoch, index) and feeds every random decision about its image: degradation, dropout, noise.
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
        """The batch of some of its images, None for none of them."""
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
    """What the prompt slots say for a batch. Nulls are explicit: an empty string, never a missing entry.

    `visual_BLD` is what an image encoder sees in the LQ, `visual_null_BLD` what it sees in a black image.
    """

    semantic: tuple[str, ...]
    negative: tuple[str, ...]
    instruction: tuple[str, ...]
    visual_BLD: Tensor | None = None
    visual_null_BLD: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Cond:
    """One guidance branch after the encoders: text tokens, pooled text, size conditioning, a visual stream's tokens.

    `visual_BND` is what the image encoder sees for this branch, from which the stream's tokens are made.
    """

    tokens_BLD: Tensor
    pooled_BD: Tensor | None = None
    size_BD: Tensor | None = None
    visual_BLD: Tensor | None = None
    visual_BND: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Hint:
    """What an adaptor may look at. `lq_BCHW` is in [0, 1], `lq_latent_BCHW` comes from the chosen LQ encoder.

    `reference_BCHW` is a clean latent that changes from step to step; from `visual_BND`, `visual_null_BND` (what an
    image encoder sees in the LQ and in a black image), `empty` (the condition of no words) and `hq_latent_BCHW`
    references are made. `features_BCHW` is what the adaptor's hint network makes of all this, where it was asked ahead.
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
    """One place in a backbone where an `Edit` is shown the features.

    `channels` counts what the edit is shown, `skip` how many of these (the last ones) are the skip connection at a
    `join`, 0 elsewhere; `stride` is the size of the latent over the size of the map.
    """

    name: str
    kind: TapKind
    channels: int
    stride: int
    skip: int = 0


class Edit(Protocol):
    """A pure function that a backbone calls at each tap; state is threaded through `carry`, never stored."""

    def __call__(self, tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]: ...


def identity(tap: Tap, h_BCHW: Tensor, temb_BD: Tensor, carry: Any) -> tuple[Tensor, Any]:
    """The edit that changes nothing: the backbone then equals diffusers' own forward."""
    return h_BCHW, carry
