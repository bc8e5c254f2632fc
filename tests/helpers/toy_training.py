"""A training of eight steps on the toy prior, by the command line."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.helpers.checkout import ROOT
from tests.helpers.configs import small
from tests.helpers.forked import forked

# Two batches a step; validation after steps 3 and 6; checkpoints after steps 3 and 6.
WORDS = (
    "name=run",
    "max_steps=8",
    "checkpoint_every=3",
    "log_every=1",
    "ema=0.9",
    "stages.adaptor.trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=6",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "optimisation.lr=1e-3",
    "optimisation.warmup_steps=4",
    "optimisation.decay=cosine",
    "eval_degradation=noise",
)


def train(toy_folder: Path, runs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`restore-lab train` in a process of its own."""
    typed = ("train", *small(toy_folder), *WORDS, f"runs_dir={runs}", *words)
    return forked(*typed, cwd=runs.parent, env={"CUDA_VISIBLE_DEVICES": ""}, paths=(ROOT,))
