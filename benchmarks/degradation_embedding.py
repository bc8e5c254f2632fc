"""What Diff-Restorer's degradation branch tells apart (Fig. 10): accuracy over eight kinds, and both embeddings drawn.

    .venv/bin/python benchmarks/degradation_embedding.py --weights asset:diff_restorer_tiny_sd --sheet embedding.png

Each crop of the held-out photographs is degraded by each of the eight kinds alone. Printed: accuracy of the classifier,
by kind; and how well the kinds stand apart in CLIP's embedding and in P_D: accuracy of the nearest neighbour among the
other photographs' crops, and the silhouette score. The picture shows both by t-SNE, one colour a kind.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from configs import composed
from omegaconf import DictConfig

from restore_lab.config.build import build
from restore_lab.data.image_io import to_tensor
from restore_lab.degradation.diff_restorer import RandomKinds
from restore_lab.degradation.vocabulary import LABELS
from restore_lab.methods.weights import weights_file
from restore_lab.random import mix


def looked_at(cfg: DictConfig, *, weights: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """CLIP's embeddings, P_D, predicted kinds, true kinds, photographs; one row an image."""
    module, source, crops = build(cfg.module).eval(), build(cfg.eval_data), cfg.photos_crops
    module.load_weights(weights_file(weights))
    pictures = [source.read(index, epoch=0) for index in range(len(source))]
    hq_BCHW = torch.stack([to_tensor(picture.hq_HWC) for picture in pictures])
    clip, embedded, predicted, kinds, photos = [], [], [], [], []
    for number, kind in enumerate(LABELS):
        degrade = RandomKinds(name=kind, kinds=[kind])
        lq_BCHW, _ = degrade(hq_BCHW, [mix("embedding", kind, picture.key) for picture in pictures])
        with torch.no_grad():
            seen_BLD = module.visual(lq_BCHW)
            seen = module.processor(seen_BLD[:, 0])
        clip.append(seen_BLD[:, 0])
        embedded.append(seen.degradation_BD)
        predicted.append(seen.logits_BN.argmax(dim=1))
        kinds += [number] * len(pictures)
        photos += [index // crops for index in range(len(pictures))]
    joined = (torch.cat(parts).numpy() for parts in (clip, embedded, predicted))
    return (*joined, np.array(kinds), np.array(photos))


def neighbours(points_ND: np.ndarray, kinds_N: np.ndarray, photos_N: np.ndarray) -> float:
    """Share of images whose nearest neighbour among the other photographs has the same kind."""
    distance_NN = np.linalg.norm(points_ND[:, None] - points_ND[None], axis=2)
    distance_NN[photos_N[:, None] == photos_N[None]] = np.inf
    return float((kinds_N[distance_NN.argmin(axis=1)] == kinds_N).mean())


def draw(panels: dict[str, np.ndarray], kinds_N: np.ndarray, file: Path) -> None:
    """t-SNE of each embedding side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from sklearn.manifold import TSNE

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 5))
    colours = pyplot.get_cmap("tab10")
    for axis, (title, points_ND) in zip(axes, panels.items(), strict=True):
        flat_N2 = TSNE(random_state=0, perplexity=20, init="pca").fit_transform(points_ND)
        for number, kind in enumerate(LABELS):
            axis.scatter(*flat_N2[kinds_N == number].T, s=14, color=colours(number), label=kind.replace("_", " "))
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=8, frameon=False, markerscale=1.6)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(file, dpi=110)


def main() -> None:
    """Print the numbers as JSON and write the picture."""
    from sklearn.metrics import silhouette_score

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--crops", type=int, default=4)
    parser.add_argument("--sheet", type=Path)
    given, overrides = parser.parse_known_args()
    cfg = composed("evaluate", "method=diff_restorer", f"photos_crops={given.crops}", *overrides)
    clip_ND, embedded_ND, predicted_N, kinds_N, photos_N = looked_at(cfg, weights=given.weights)
    right = predicted_N == kinds_N
    facts = {
        "images": len(kinds_N),
        "accuracy": round(float(right.mean()), 3),
        "by kind": {kind: round(float(right[kinds_N == n].mean()), 3) for n, kind in enumerate(LABELS)},
        "nearest neighbour": {
            name: round(neighbours(points, kinds_N, photos_N), 3)
            for name, points in (("CLIP", clip_ND), ("P_D", embedded_ND))
        },
        "silhouette": {
            name: round(float(silhouette_score(points, kinds_N)), 3)
            for name, points in (("CLIP", clip_ND), ("P_D", embedded_ND))
        },
    }
    if given.sheet is not None:
        draw({"CLIP's image embedding": clip_ND, "degradation embedding P_D": embedded_ND}, kinds_N, given.sheet)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
