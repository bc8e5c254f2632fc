"""Evaluate a method on degraded test images, a folder of restored images (folders.py), or another system (systems.py).

A method's record has the rows LQ, D(E(LQ)), D(E(HQ)), and one per prompt set. The codec itself removes noise and bounds
every latent method, so its two rows are always measured with the method's. A prompt set replaces some prompt slots
(`prompt_sets: {wrong: {instruction: {...}}}`): right and wrong instructions, or true and shuffled captions, are rows of
one record, measured on the same images from the same initial noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from restore_lab.adaptors.lq_encoder import CodecEncoder
from restore_lab.config.build import build
from restore_lab.evaluation.comparisons import report_comparisons
from restore_lab.evaluation.contact_sheet import Panel, keep_images
from restore_lab.evaluation.degraded import degraded_batches, score_batch
from restore_lab.evaluation.folders import find_pairs, measure_folder, plan_folder
from restore_lab.evaluation.parts import Parts, clear
from restore_lab.evaluation.plan import Scores, load_or_measure, plan_scores
from restore_lab.evaluation.protocol import resize_bicubic, resize_shorter_side
from restore_lab.evaluation.records import (
    DECODED_HQ,
    DECODED_LQ,
    LQ,
    ORIGINAL,
    PICTURE,
    ROBUST_LQ,
    Results,
    method_rows,
    render_results,
)
from restore_lab.evaluation.systems import CROP_KEYS, measure_system, plan_system
from restore_lab.inference.captioning import caption_ahead, find_captioners
from restore_lab.inference.restorer import load_method
from restore_lab.methods.pipeline import captioning_batches, pad_to_multiple
from restore_lab.methods.weights import weights_file
from restore_lab.prompts.slots import PromptSources
from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.storage.foreign import leads_inside
from restore_lab.storage.identity import plain_settings
from restore_lab.storage.paths import place_of
from restore_lab.types import Prompt

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.backbones.base import Backbone
    from restore_lab.evaluation.suite import MetricSuite
    from restore_lab.methods.module import RestorationModule
    from restore_lab.types import Batch

# The keys of the config in a record's identity; the others affect training or presentation only.
METHOD_KEYS = (
    "module",
    "eval_data",
    "eval_degradation",
    "protocol",
    "metrics",
    "prompt_sets",
    "max_lq_psnr",
    "eval_crop",
    "seed",
)
OPTIONAL_KEYS = ("work_size", *CROP_KEYS)  # in the identity only if they are set


@dataclass(kw_only=True)
class Evaluation:
    """The results of an evaluation and its record's folder."""

    folder: Path
    results: Results
    picture: Path | None
    comparisons: list[str] = field(default_factory=list)

    def page(self) -> str:
        """The table as text, followed by the comparisons of the prompt sets."""
        return "\n".join([render_results(self.results), *([""] if self.comparisons else []), *self.comparisons])

    def mean(self, metric: str) -> float:
        """A metric's mean over the images of the method's row (of the first prompt set).

        Raises:
            ValueError: if it was not measured.
        """
        first = method_rows(self.results)[0]
        means = {cell.metric: cell.mean for cell in self.results.cells if cell.row == first}
        if metric not in means:
            raise ValueError(f"{metric!r} was not measured; there are: {', '.join(means)}")
        return means[metric]

    def as_json(self) -> str:
        """JSON of mean, std, n and protocol by row and metric, the comparisons and the notes."""
        rows: dict[str, dict[str, Any]] = {}
        for cell in self.results.cells:
            numbers = {"mean": cell.mean, "std": cell.std, "n": cell.n, "protocol": cell.column.text()}
            rows.setdefault(cell.row, {})[cell.metric] = {**numbers, "column": cell.column.id}
        whole = {"record": str(self.folder), "rows": rows, "comparisons": self.comparisons}
        return json.dumps({**whole, "notes": list(self.results.notes)}, indent=1, allow_nan=False)


def plan_evaluation(cfg: DictConfig, *, weights: str | None = None) -> Scores:
    """The record that `evaluate` makes: of a method, of a folder of restored images, or of another system.

    Args:
        cfg: the composed config of `restore-lab evaluate`.
        weights: identity of weights that are yet to be trained, instead of `cfg.weights`.
    """
    if cfg.restored is not None:
        return plan_folder(cfg)
    if cfg.system is not None:
        return plan_system(cfg)
    settings = plain_settings(cfg, [*METHOD_KEYS, *(key for key in OPTIONAL_KEYS if cfg[key] is not None)])
    if cfg.memory.weights is not None:  # offloading does not change results, quantised weights do
        settings["memory"] = {"weights": cfg.memory.weights}
    parents: tuple[str, ...] = ()
    if weights is not None:
        parents = (weights,)
    elif cfg.weights is not None and _is_trusted(place_of(cfg.weights), Path(cfg.runs_dir)):
        parents = (Manifest.read(place_of(cfg.weights)).identity,)
    else:  # also for a folder outside runs_dir, whose manifest is not trusted
        settings["weights"] = None if cfg.weights is None else str(weights_file(cfg.weights))
    return plan_scores(cfg, settings, parents)


def _is_trusted(place: Path, runs: Path) -> bool:
    """Whether weights are a complete run in `runs_dir`, so that the identity in its manifest can be trusted."""
    return leads_inside(place, runs) and is_complete(place)


def evaluate(cfg: DictConfig) -> Evaluation | None:
    """Run `restore-lab evaluate`, or read an existing record.

    Returns:
        With several processes (system/processes.py) None in all but the last to finish.

    Raises:
        ValueError: if no image can be measured, or those of a folder do not match.
    """
    scores = plan_evaluation(cfg)
    if cfg.restored is not None:
        pairs = find_pairs(cfg)  # before the record is looked for, since it does not report unmatched files
        results = load_or_measure(cfg, scores, lambda: measure_folder(cfg, scores, pairs))
        return None if results is None else Evaluation(folder=scores.folder, results=results, picture=None)
    measure = _measure_method if cfg.system is None else measure_system
    results = load_or_measure(cfg, scores, lambda: measure(cfg, scores))
    if results is None:
        return None
    picture = scores.folder / PICTURE
    ordered = list(cfg.ordered or ())
    compared = report_comparisons(results, prompt_sets=method_rows(results), ordered=ordered, settings=scores.settings)
    return Evaluation(
        folder=scores.folder, results=results, picture=picture if picture.is_file() else None, comparisons=compared
    )


def _measure_method(cfg: DictConfig, scores: Scores) -> bool:
    """Measure the batches of this process; the last process assembles the record and the contact sheet."""
    parts = Parts(cfg, scores)
    if cfg.again:
        clear(scores.folder)
    if missing := parts.missing():
        find_captioners(cfg.prompt, cfg.prompt_sets)
        module = load_method(cfg)
        suite: MetricSuite = build(cfg.metrics, protocol=build(cfg.protocol))
        words = cfg.prompt_sets or {cfg.name: None}
        prompt_sets = {name: _with_slots(module.conditioner.prompts, slots) for name, slots in words.items()}
        some = (batch for _, batch in degraded_batches(cfg, module.run_device, missing) if batch is not None)
        to_caption = (part for batch in some for part in captioning_batches(module, batch))
        caption_ahead(module, list(prompt_sets.values()), to_caption)
        for number, batch in degraded_batches(cfg, module.run_device, missing):
            panels: list[Panel] = []
            if batch is not None:
                images, panels = _measure_batch(module, suite, batch, prompt_sets, cfg.work_size)
                if cfg.keep_images:
                    keep_images(scores.folder, images, batch.key)
            parts.write(number, suite.take(), panels)
    return parts.close()


def _measure_batch(
    module: RestorationModule,
    suite: MetricSuite,
    batch: Batch,
    prompt_sets: Mapping[str, PromptSources],
    work_size: int | None,
) -> tuple[dict[str, Tensor], list[Panel]]:
    """Measure every row of one batch; without originals only no-reference metrics have values.

    Returns:
        The images_BCHW to save by row (LQ, the prompt sets, original), and the panels of the contact sheet.
    """
    if batch.lq_BCHW is None:
        raise ValueError("there is nothing to restore; give eval_data with HQ images an eval_degradation, or LQ images")
    wordless = Prompt(semantic=("",) * len(batch), negative=("",) * len(batch), instruction=("",) * len(batch))
    module.stage("codec")
    rows: dict[str, tuple[Tensor, Prompt]] = {
        LQ: (batch.lq_BCHW, wordless),
        DECODED_LQ: (through_codec(module.backbone, batch.lq_BCHW), wordless),
    }
    if batch.hq_BCHW is not None:
        rows[DECODED_HQ] = (through_codec(module.backbone, batch.hq_BCHW), wordless)
    if not isinstance(module.lq_encoder, CodecEncoder):
        rows[ROBUST_LQ] = (module.reconstruct(batch.lq_BCHW), wordless)
    for name, prompts in prompt_sets.items():
        module.conditioner.prompts = prompts
        restored_BCHW = _restored(module, batch, work_size)
        module.stage("words")
        rows[name] = (restored_BCHW, prompts(batch, training=False))
    for name, (image_BCHW, prompt) in rows.items():
        score_batch(suite, name, image_BCHW, batch, instructions=prompt.instruction)
    restored, first = [name for name in (ROBUST_LQ, *prompt_sets) if name in rows], next(iter(prompt_sets))
    ends = {} if batch.hq_BCHW is None else {ORIGINAL: batch.hq_BCHW}
    images = {LQ: batch.lq_BCHW, **{name: rows[name][0] for name in restored}, **ends}
    panels = [
        Panel(
            images=tuple(image_BCHW[i].cpu() for image_BCHW in images.values()),
            titles=("input", *tuple(images)[1:]),
            caption=rows[first][1].semantic[i],
            instruction=rows[first][1].instruction[i],
        )
        for i in range(len(batch))
    ]
    return images, panels


def _restored(module: RestorationModule, batch: Batch, work_size: int | None) -> Tensor:
    """The batch restored at a shorter side of `work_size` pixels and resized back."""
    if work_size is None or batch.lq_BCHW is None:
        return module.restore(batch)
    height, width = batch.lq_BCHW.shape[-2:]
    original_BCHW = None if batch.hq_BCHW is None else resize_shorter_side(batch.hq_BCHW, work_size)
    larger = replace(batch, lq_BCHW=resize_shorter_side(batch.lq_BCHW, work_size), hq_BCHW=original_BCHW)
    return resize_bicubic(module.restore(larger), height=height, width=width)


def _with_slots(own: PromptSources, slots: Any) -> PromptSources:
    """The method's prompts with some slots replaced."""
    new = build(slots) or {}
    slots = {name: getattr(own, name) for name in ("semantic", "instruction", "positive", "negative")}
    unknown = set(new) - set(slots)
    if unknown:
        raise ValueError(f"prompt_sets: there is no prompt slot {sorted(unknown)[0]!r}; slots are {', '.join(slots)}")
    return PromptSources(**{**slots, **new}, dropout=own.dropout, visual=own.visual)


@torch.no_grad()
def through_codec(backbone: Backbone, image_BCHW: Tensor) -> Tensor:
    """D(E(x)): the codec's reconstruction of images in [0, 1]."""
    height, width = image_BCHW.shape[-2:]
    padded_BCHW = pad_to_multiple(image_BCHW, backbone.multiple)
    return backbone.codec.decode(backbone.codec.encode(padded_BCHW))[..., :height, :width]
