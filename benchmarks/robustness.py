"""What degradation leaves of an image encoder's representation, as InstantIR's Fig. 3a asks of DINOv2.

    .venv/bin/python benchmarks/robustness.py tiny_dino=asset:tiny_dino tiny_clip=asset:tiny_clip

Rows are encoders (folders of a DINOv2 or a CLIPModel), columns degradations of named strength. An encoder's class token
(CLIP: its projected image embedding) is read by a linear probe, fitted on CLEAN scenes and asked about held-out ones:
  kind    which of the 7 kinds of scene it is
  colour  which of the 13 colours its caption names first (where a scene mixes two colours, the caption's order is
          chance, so no reader reaches 100 %)
  scene   no probe: whether the nearest class token among all clean held-out scenes is that of the scene itself
Prints Markdown tables, percent right with half the width of a 95 % interval (Wilson's). All follows from the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from restore_lab.data.image_io import to_tensor
from restore_lab.data.sources.procedural import SCENE_COLOURS, SCENE_KINDS, ProceduralSource
from restore_lab.degradation.apply import Pipeline
from restore_lab.degradation.diff_restorer import RandomKinds
from restore_lab.degradation.fixed import FixedDegradation
from restore_lab.prompts.visual import ClipVision, DinoVision
from restore_lab.random import mix
from restore_lab.storage.paths import place_of

# Blur in pixels, noise in [0, 1], JPEG by quality; the mixture is SUPIR's (conf/degradation/mixture.yaml).
STAGES: dict[str, dict[str, float]] = {
    "clean": {},
    "noise 0.1": {"noise": 0.1},
    "noise 0.2": {"noise": 0.2},
    "blur 2": {"blur": 2.0},
    "blur 4": {"blur": 4.0},
    "JPEG 30": {"jpeg": 30},
    "JPEG 10": {"jpeg": 10},
    "x4": {"downsample": 4.0},
    "mixture": {"blur": 2.0, "downsample": 4.0, "noise": 20 / 255, "jpeg": 50},
}
UNSEEN = {"rain": "rain", "low light": "low_light"}  # nothing of the kind is in conf/degradation/robust.yaml
PROBE_SEED, HELD_OUT_SEED = 41, 42  # the shipped models learned from worlds 1 to 3
BATCH = 64


def degradations() -> dict[str, Pipeline]:
    """The columns."""
    fixed: dict[str, Pipeline] = {name: FixedDegradation(name=name, stages=stages) for name, stages in STAGES.items()}
    return fixed | {f"{name} (unseen)": RandomKinds(name=name, kinds=[kind]) for name, kind in UNSEEN.items()}


def scenes(*, seed: int, each: int) -> tuple[Tensor, dict[str, Tensor]]:
    """`each` scenes of every kind, (N, 3, 64, 64) in [0, 1], and their labels (N,) by target."""
    images, kinds, colours = [], [], []
    for number, kind in enumerate(SCENE_KINDS):
        source = ProceduralSource(seed=mix("robustness", seed, kind), size=64, length=each, kinds=[kind])
        for index in range(each):
            picture = source.read(index)
            assert picture.hq_HWC is not None  # a procedural scene is its own HQ
            images.append(to_tensor(picture.hq_HWC))
            kinds.append(number)
            colours.append(first_colour(picture.caption))
    return torch.stack(images), {"kind": torch.tensor(kinds), "colour": torch.tensor(colours)}


def first_colour(caption: str) -> int:
    """Which of `SCENE_COLOURS` a caption names first; printed words are in capitals and do not count."""
    named = re.search(rf"\b({'|'.join(SCENE_COLOURS)})\b", caption)
    if named is None:
        raise ValueError(f"caption {caption!r} names none of {', '.join(SCENE_COLOURS)}")
    return list(SCENE_COLOURS).index(named[1])


def encoder(path: str) -> Callable[[Tensor], Tensor]:
    """Images (N, 3, H, W) in [0, 1] to (N, D), by the classes that `prompt/visual` has."""
    config = json.loads((place_of(path) / "config.json").read_text(encoding="utf-8"))
    vision = ClipVision(path=path) if config["model_type"] == "clip" else DinoVision(path=path)
    return lambda image_NCHW: torch.cat([vision(part)[:, 0] for part in image_NCHW.split(BATCH)])


def probe(train_ND: Tensor, label_N: Tensor, *, l2: float = 1e-3) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression on standardised features, by L-BFGS; returns what predicts labels."""
    mean_D, std_D = train_ND.mean(dim=0), train_ND.std(dim=0).clamp(min=1e-6)
    x_ND = ((train_ND - mean_D) / std_D).double()
    weight_DC = torch.zeros(x_ND.shape[1], int(label_N.max()) + 1, dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(weight_DC.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight_DC, bias_C], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(x_ND @ weight_DC + bias_C, label_N) + l2 * weight_DC.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # pyright: ignore[reportArgumentType]  # L-BFGS takes the loss as a tensor
    weight_DC, bias_C = weight_DC.detach(), bias_C.detach()
    return lambda test_ND: (((test_ND - mean_D) / std_D).double() @ weight_DC + bias_C).argmax(dim=1)


def nearest(seen_ND: Tensor, clean_ND: Tensor) -> Tensor:
    """For each token the index of the clean one at the highest cosine, both centred on the clean mean."""
    centre_D = clean_ND.mean(dim=0)
    return (F.normalize(seen_ND - centre_D, dim=1) @ F.normalize(clean_ND - centre_D, dim=1).T).argmax(dim=1)


def half_width(right: float, count: int, *, z: float = 1.96) -> float:
    """Half of Wilson's 95 % interval for a share `right` of `count`."""
    return z / (1 + z * z / count) * math.sqrt(right * (1 - right) / count + z * z / (4 * count * count))


def measured(path: str, train: tuple[Tensor, Mapping[str, Tensor]], tests: Mapping[str, Tensor], labels) -> dict:
    """Share right by target and degradation, for one encoder."""
    encode = encoder(path)
    features = encode(train[0])
    readers = {target: probe(features, label_N) for target, label_N in train[1].items()}
    clean_ND = encode(tests["clean"])
    found: dict[str, dict[str, float]] = {target: {} for target in (*readers, "scene")}
    for name, image_NCHW in tests.items():
        seen_ND = encode(image_NCHW)
        for target, reader in readers.items():
            found[target][name] = (reader(seen_ND) == labels[target]).double().mean().item()
        found["scene"][name] = (nearest(seen_ND, clean_ND) == torch.arange(len(seen_ND))).double().mean().item()
    return found


def table(title: str, rows: Mapping[str, Mapping[str, float]], *, count: int) -> str:
    """Markdown: encoders down, degradations across, percent right."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, found in rows.items():
        cells = [f"{100 * found[c]:.1f} ± {100 * half_width(found[c], count):.1f}" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print one table a target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--probe", type=int, default=600, help="clean scenes of each kind that the probe is fitted on")
    parser.add_argument("--held-out", type=int, default=300, help="scenes of each kind that it is asked about")
    given = parser.parse_args()
    train = scenes(seed=PROBE_SEED, each=given.probe)
    hq_NCHW, labels = scenes(seed=HELD_OUT_SEED, each=given.held_out)
    tests = {
        name: degrade(hq_NCHW, [mix("robustness", name, index) for index in range(len(hq_NCHW))])[0]
        for name, degrade in degradations().items()
    }
    named = dict(entry.split("=", maxsplit=1) for entry in given.encoders)
    found = {name: measured(path, train, tests, labels) for name, path in named.items()}
    print(
        f"n = {len(hq_NCHW)} held-out scenes, probes fitted on {len(train[0])} clean ones; percent right, 95 % interval"
    )
    chance = {"kind": 1 / len(SCENE_KINDS), "colour": 1 / len(SCENE_COLOURS), "scene": 1 / len(hq_NCHW)}
    for target, by_chance in chance.items():
        title = f"{target} ({100 * by_chance:.2g} by chance)"
        print("\n" + table(title, {name: rows[target] for name, rows in found.items()}, count=len(hq_NCHW)))


if __name__ == "__main__":
    main()
