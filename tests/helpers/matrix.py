"""The composition matrix: the axes of parts, which combinations are valid, and what each must do.

`pairwise()` gives few combinations in which every pair of options that may stand together does; `everything()` all.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from restore_lab.config import compatibility
from restore_lab.config.build import build
from restore_lab.methods.weights import weights_file
from tests.helpers.configs import composed
from tests.helpers.rounding import close
from tests.helpers.toy_methods import toy_batch
from tests.helpers.toy_priors import toy_dino, toy_unet_folder

Choice = Mapping[str, str]

STREAM = ("adaptor/stream=dcp", "resampler={hidden:16,depth:1,heads:2,dim_head:8,queries:4}")
AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "family": {
        "sd": ("backbone=tiny_sd",),
        "sdxl": ("backbone=tiny_sdxl",),
        "sd3": ("backbone=tiny_sd3",),
        "sd35": ("backbone=tiny_sd3",),
    },
    "trunk": {
        "concat": ("adaptor=spire", "adaptor.hint_widths=[4,4,8]", "adaptor.hint_channels=4"),
        "half": ("adaptor=supir",),
        "spatial": ("adaptor=instantir", "adaptor/lora=none", "adaptor/stream=none", "adaptor/reference=mean"),
        "chain": ("adaptor=dra",),
        "none": ("adaptor=dcp",),
    },
    "fusion": {
        name: (f"adaptor/fusion={name}",)
        for name in ("zero_conv", "modulation", "modulation_decoder", "zero_sft", "zero_sft_attention", "sft")
    }
    | {"-": ()},
    "lq_encoder": {"codec": ("lq_encoder=codec",), "robust": ("lq_encoder=robust",)},
    "prompt": {
        "caption": ("prompt/semantic=caption",),
        "wordless": ("prompt/semantic=none",),
        "clip": ("prompt/semantic=caption", "prompt/visual=clip", *STREAM),
        "dino": ("prompt/semantic=none", "prompt/visual=dino", *STREAM),
    },
    "fidelity": {name: (f"sampler/fidelity={name}",) for name in ("none", "restoration_guided", "rss", "adares")},
    "scheduler": {
        name: (f"sampler={name}",) for name in ("ddim", "ddpm", "unipc", "dpmpp", "euler_flow", "lcm", "edm")
    },
    "init": {name: (f"sampler/init={name}",) for name in ("noise", "lq_noised")},
}
MADE = ("family", "trunk", "fusion", "lq_encoder", "prompt")  # what a module is built and trained from
SAMPLED = ("fidelity", "scheduler", "init")


def meaningful(choice: Choice) -> bool:
    """Whether the options chosen so far may stand together (restore_lab.config.compatibility), and no axis twice."""
    trunk, fusion = choice.get("trunk"), choice.get("fusion")
    if trunk and fusion and (trunk in ("chain", "none")) != (fusion == "-"):
        return False
    if choice.get("family") in ("sd3", "sd35") and fusion in ("modulation_decoder", "zero_sft_attention"):
        return False
    if choice.get("fidelity") == "adares" and trunk not in (None, "spatial"):
        return False
    if choice.get("fidelity") == "adares" and fusion == "-":
        return False
    return not (trunk == "none" and choice.get("prompt") in ("caption", "wordless"))


def everything() -> Iterator[dict[str, str]]:
    """Every combination with a meaning."""
    for options in itertools.product(*AXES.values()):
        choice = dict(zip(AXES, options, strict=True))
        if meaningful(choice):
            yield choice


@cache
def pairwise() -> tuple[dict[str, str], ...]:
    """Combinations in which every pair of options that may stand together does; the same every time."""
    draw = random.Random(0)
    left = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(AXES, 2)
        for x, y in itertools.product(AXES[a], AXES[b])
        if meaningful({a: x, b: y})
    }
    found: list[dict[str, str]] = []
    while left:
        ordered = sorted(left)
        candidates = [_completed(dict(draw.choice(ordered)), draw) for _ in range(40)]
        best = max((c for c in candidates if c), key=lambda c: len(_pairs(c) & left), default=None)
        assert best is not None, f"no whole combination has {sorted(left)[0]}"
        found.append(best)
        left -= _pairs(best)
    return tuple(found)


def _completed(choice: dict[str, str], draw: random.Random) -> dict[str, str] | None:
    for axis in draw.sample(list(AXES), len(AXES)):
        if axis not in choice:
            options = [option for option in AXES[axis] if meaningful({**choice, axis: option})]
            if not options:
                return None
            choice[axis] = draw.choice(options)
    return {axis: choice[axis] for axis in AXES}


def _pairs(choice: Choice) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return {((a, choice[a]), (b, choice[b])) for a, b in itertools.combinations(AXES, 2)}


def name_of(choice: Choice) -> str:
    return "-".join(choice.values())


class Priors:
    """The toy priors and the toy image encoder, made once under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folders = {kind: toy_unet_folder(folder, kind) for kind in AXES["family"]}
        self.dino = toy_dino(folder / "dino")

    def words(self, choice: Choice) -> list[str]:
        """The command line of a choice; method=spire, whose parts are all replaced."""
        words = ["method=spire", "weights=null", "sampler.steps=2", f"backbone.path={self.folders[choice['family']]}"]
        words += ["encoder_weights=null", "lora_rank=2"]
        # A trunk says what stands beside it by default; a prompt may put a stream there.
        for axis in ("trunk", "fusion", "family", "lq_encoder", "scheduler", "fidelity", "init", "prompt"):
            words += AXES[axis][choice[axis]]
        if choice["prompt"] == "dino":
            words.append(f"prompt.visual.path={self.dino}")
        seen: dict[str, str] = {}
        for word in words:  # a later word for the same key replaces an earlier one
            seen[word.partition("=")[0]] = word
        return list(seen.values())

    def config(self, choice: Choice) -> Any:
        cfg = composed("evaluate", *(f"++{w}" if w.startswith(("encoder_weights", "lora_rank", "resampler")) else w
                                     for w in self.words(choice)))  # fmt: skip
        compatibility.check_compatibility(cfg)
        return cfg


def made(cfg: Any, *, seed: int = 0) -> Any:
    """The module, under a seed."""
    torch.manual_seed(seed)
    module = build(cfg.module)
    return module


def trained(module: Any) -> None:
    """One optimiser step of its own loss; something must have moved."""
    optimiser = torch.optim.AdamW(list(module.trainable().values()), lr=1e-2)
    before = [p.detach().clone() for p in module.trainable().values()]
    loss = module.loss(toy_batch(), step=0)["loss"]
    assert loss.isfinite()
    loss.backward()
    optimiser.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, module.trainable().values(), strict=True))


def restored(module: Any) -> torch.Tensor:
    """Two sampling steps."""
    image = module.restore(toy_batch())
    assert image.shape == (2, 3, 16, 16) and image.isfinite().all()
    return image


def comes_back(module: Any, cfg: Any, folder: Path, image: torch.Tensor) -> None:
    """Saved, loaded strictly into a module that started otherwise, it restores the same image."""
    module.export(folder)
    other = made(cfg, seed=1)
    other.load_weights(weights_file(str(folder)))
    assert close(restored(other), image)
