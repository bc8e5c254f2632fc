"""The net below a refactoring: losses, latents and counts that a change of names and places must not change.

    python -m tests.golden.net                  # against the committed figures, within 1e-4 relative
    python -m tests.golden.net --base COMMIT    # against a commit, on this machine, bit for bit
    python -m tests.golden.net --write          # write the committed figures

Figures are float32 in full precision, one per line: the losses of 20 training steps of each method and stage, the
latent of one restoration per method, and the parameters of each method on each prior. `make golden [base=COMMIT]`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = Path(__file__).parent / "net"
TOLERANCE = 1e-4  # relative to a file's largest figure: processors differ in last bits, and 20 steps carry these on
STEPS = 20
STAGES = {  # per run: the words that choose it, and the stages it trains with the setting of each one's length
    "spire": (["method=spire"], {"adaptor": "max_steps"}),
    "spire_sd3": (["method=spire", "backbone=tiny_sd3"], {"adaptor": "max_steps"}),
    "supir": (["method=supir"], {"encoder": "encoder_steps", "adaptor": "max_steps"}),
    "diff_restorer": (["method=diff_restorer"], {"adaptor": "max_steps", "decoder": "decoder_steps"}),
    "instantir": (
        ["method=instantir"],
        {"dcp": "dcp_steps", "previewer": "previewer_steps", "adaptor": "max_steps"},
    ),
    "dra": (["method=dra"], {"encoder": "encoder_steps", "adaptor": "max_steps"}),
    "dra_sd3": (["method=dra", "backbone=tiny_sd3"], {"encoder": "encoder_steps", "adaptor": "max_steps"}),
    "controlnet": (["method=controlnet"], {"adaptor": "max_steps"}),
    "regression": (["method=regression"], {"adaptor": "max_steps"}),
}
SMALL = ("crop=32", "batch_size=2", "workers=0", "progress=false", "precision=32-true", "trainer.accelerator=cpu")
QUIET = ("log_every=1", "keep_state=false", "logger=none")
METHODS = ("spire", "supir", "diff_restorer", "instantir", "dra", "controlnet", "regression")
PRIORS = ("tiny_sd", "tiny_sdxl", "tiny_sd3")
UNTRAINED = ("controlnet", "regression")  # no weights are shipped: restore with those of the 20 steps


def main(words: Sequence[str] | None = None) -> None:
    """The command line above; ends with exit code 1 and the files that differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.net", description=__doc__.partition("\n")[0])
    parser.add_argument("--base", metavar="COMMIT", help="compare with this commit bit for bit")
    parser.add_argument("--write", action="store_true", help="write the committed figures")
    parser.add_argument("--output", type=Path, help="only measure, into this folder")
    typed = parser.parse_args(words)
    if typed.output is not None:
        measure(typed.output)
        return
    if typed.write:
        measure(COMMITTED)
        return
    with tempfile.TemporaryDirectory() as folder:
        here, there, tolerance = Path(folder, "here"), COMMITTED, TOLERANCE
        run(ROOT, here)
        if typed.base is not None:
            there, tolerance = Path(folder, "there"), 0.0
            with checkout(typed.base) as tree:
                run(tree, there)
        wrong, count = differences(here, there, tolerance=tolerance), len(list(here.glob("*.txt")))
    if wrong:
        raise SystemExit("\n".join([*wrong, f"{len(wrong)} of {count} files differ"]))
    how = "the committed figures" if typed.base is None else f"{typed.base}, bit for bit"
    print(f"all {count} files are as those of {how}")


def measure(folder: Path) -> None:
    """Write all figures into a folder, `<kind>_<name>.txt`; in this process, on one thread."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        before = Path.cwd()
        os.chdir(work)
        try:
            last: dict[str, Path] = {}
            for name, (choice, stages) in STAGES.items():
                for stage, figures in losses(name, choice, stages).items():
                    write(folder / f"losses_{name}_{stage}.txt", figures)
                    last[name] = next(Path("runs", name).glob(f"{stage}-*")).resolve()
            for method in METHODS:
                weights = last[method] if method in UNTRAINED else None
                write(folder / f"latent_{method}.txt", latent(method, weights))
        finally:
            os.chdir(before)
    (folder / "parameters.txt").write_text("".join(f"{line}\n" for line in parameters()), encoding="utf-8")


def losses(name: str, choice: Sequence[str], stages: Mapping[str, str]) -> dict[str, list[float]]:
    """The losses of each step, by stage."""
    from restore_lab.cli import main as cli

    lengths = [f"{length}={STEPS}" for length in stages.values()]
    before = sys.argv
    sys.argv = ["restore-lab", "train", *choice, f"name={name}", *lengths, *SMALL, *QUIET]
    try:
        cli.main()
    finally:
        sys.argv = before
    found = {}
    for stage in stages:
        (run_folder,) = Path("runs", name).glob(f"{stage}-*")
        lines = [json.loads(line) for line in (run_folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
        found[stage] = [value for line in lines for key, value in sorted(line.items()) if key != "step"]
    return found


def latent(method: str, weights: Path | None) -> list[float]:
    """The restored latent, before it is decoded, of a 40x48 picture of waves and noise."""
    import numpy as np
    import torch

    from restore_lab import Restorer

    y_HW, x_HW = np.mgrid[0:40, 0:48] / 8
    rgb_HWC = 0.5 + 0.3 * np.stack([np.sin(x_HW + y_HW), np.sin(2 * x_HW), np.cos(y_HW)], axis=-1)
    rgb_HWC = (rgb_HWC + np.random.default_rng(0).normal(0, 0.05, rgb_HWC.shape)).clip(0, 1).astype(np.float32)
    restorer = Restorer.load(weights, overrides=[f"method={method}", "sampler.steps=4"], device="cpu")
    seen: list[torch.Tensor] = []
    hook = restorer.module.decoder.register_forward_pre_hook(lambda decoder, given: seen.append(given[0].clone()))
    restorer(rgb_HWC, instruction="Denoise with sigma 0.05", seed=0)
    hook.remove()
    (latent_BCHW,) = seen
    return latent_BCHW.flatten().tolist()


def parameters() -> Iterator[str]:
    """The parameters of each method on each prior, part by part."""
    import logging

    from tests.helpers.configs import composed

    logging.disable(logging.WARNING)
    from restore_lab.inspection.describe import describe

    for method in METHODS:
        for prior in PRIORS:
            facts = describe(composed("describe", f"method={method}", f"backbone={prior}", "flops=false"))
            parts = {"total": facts["total_parameters"], "trainable": facts["trainable_parameters"]}
            counted = " ".join(f"{part}={count}" for part, count in {**parts, **facts["parameters"]}.items())
            yield f"{method} {prior} {counted}"


def write(file: Path, figures: Sequence[float]) -> None:
    """Figures as text, one per line; nine digits hold a float32."""
    file.write_text("".join(f"{figure:.9g}\n" for figure in figures), encoding="utf-8")


def differences(here: Path, there: Path, *, tolerance: float) -> list[str]:
    """A line per file that differs by more than the tolerance, or is in one folder only."""
    wrong = []
    for name in sorted({file.name for folder in (here, there) for file in folder.glob("*.txt")}):
        files = [folder / name for folder in (here, there)]
        if not all(file.is_file() for file in files):
            wrong.append(f"{name}: only in {'this tree' if files[0].is_file() else 'the other'}")
            continue
        one, other = (file.read_text(encoding="utf-8").split() for file in files)
        if one == other:
            continue
        if tolerance == 0.0 or name == "parameters.txt" or len(one) != len(other):
            entries = enumerate(itertools.zip_longest(one, other, fillvalue="missing"), start=1)
            place, (new, old) = next((place, pair) for place, pair in entries if pair[0] != pair[1])
            wrong.append(f"{name}: entry {place} is {new}, was {old}")
            continue
        pairs = [(float(a), float(b)) for a, b in zip(one, other, strict=True)]
        apart = max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)
        if not apart <= tolerance:
            wrong.append(f"{name}: {apart:.1e} of the largest figure apart, at most {tolerance:.0e} allowed")
    return wrong


def run(tree: Path, folder: Path) -> None:
    """Measure a tree in a process of its own."""
    own = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.golden.net", "--output", str(folder)]
    done = subprocess.run(command, cwd=tree, env=own, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{tree}: the net could not be measured\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A commit's tree in a folder of its own."""
    git = functools.partial(subprocess.run, cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit])
        try:
            yield tree
        finally:
            git(["git", "worktree", "remove", "--force", str(tree)])


if __name__ == "__main__":
    main()
