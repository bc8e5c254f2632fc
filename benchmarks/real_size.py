"""SUPIR at SDXL's size with random weights: a training step and sampling steps on the CPU, and the memory they take.

    .venv/bin/python -m benchmarks.real_size --folder FOLDER

Writes SDXL base 1.0 into the folder, its public repository's fp16 files by name, key, shape and type, with random
numbers in them, and one photograph. Then runs the commands that anyone would, train (the adaptor's stage; the encoder
stays as it starts) and restore, each a process of its own, watched from outside: ru_maxrss, with pages of mapped files,
which the kernel may drop, and the peak of RssAnon, which it may not. Beside it what `restore-lab doctor` expects. A
process that wants more than --limit GiB, or leaves the machine less than --spare, is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from restore_lab.backbones.loading.diffusers_folder import MERGES, SHIPPED, read_json, shipped_tokenizer
from restore_lab.data.sources.photos import photos_folder

if TYPE_CHECKING:
    from torch import Tensor

GIB = 2**30
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
PARTS |= {"text_encoder": "model", "text_encoder_2": "model"}
NUMPY = {"F16": np.float16, "I64": np.int64}


def write_sdxl(folder: Path) -> None:
    """The repository's fp16 variant; weights are drawn tensor by tensor, so that writing takes little memory."""
    from restore_lab.backbones.loading.load import load_backbone
    from tests.helpers.toy_repositories import public_keys

    shutil.copytree(SHIPPED / "sdxl", folder)
    backbone = load_backbone("config:sdxl", family="unet", meta=True)
    first, second = backbone.text.encoders
    modules = {"unet": backbone.denoiser, "vae": backbone.codec.vae, "text_encoder": first, "text_encoder_2": second}
    for seed, (part, stem) in enumerate(PARTS.items()):
        state = public_keys(part, modules[part], old=False)
        write_random(folder / part / f"{stem}.fp16.safetensors", state, np.random.default_rng(seed))
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = shipped_tokenizer(read_json(folder / name / "tokenizer_config.json"))
        (folder / name / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
        shutil.copy(MERGES, folder / name / "merges.txt")


def write_random(file: Path, state: Mapping[str, Tensor], rng: np.random.Generator) -> None:
    """A safetensors file of float16 numbers: weights of norms 1, biases 0, others normal with variance 1 / inputs."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in state.items():
        kind = "F16" if value.is_floating_point() else "I64"
        start, end = end, end + value.numel() * NUMPY[kind]().itemsize
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [start, end]}
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    with open(file, "wb") as out:
        out.write(len(said).to_bytes(8, "little") + said)
        for name, value in state.items():
            out.write(drawn(name, value, rng).tobytes())


def drawn(name: str, value: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Numbers in the place of a tensor of a module on the meta device."""
    if not value.is_meta:
        return value.numpy()
    if value.ndim < 2:
        return np.full(value.shape, float(name.endswith("weight")), dtype=np.float16)
    scale = (value.numel() / len(value)) ** -0.5
    return (scale * rng.standard_normal(value.shape, dtype=np.float32)).astype(np.float16)


def watched(verb: str, words: Sequence[str], *, limit: float, spare: float) -> dict[str, Any]:
    """Run a command and watch it.

    Args:
        verb, words: of `restore-lab`.
        limit: GiB that no file backs at which it is killed.
        spare: GiB of the machine's at less than which it is killed.

    Returns:
        Its peaks in GiB, its time in seconds, and when it grew: [seconds, GiB], a line a half GiB.
    """
    command = [sys.executable, "-m", "restore_lab.cli.main", verb, *words]
    start, anonymous, grown = time.monotonic(), 0.0, [[0.0, 0.0]]
    process = subprocess.Popen(command)
    Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")  # should the machine run short, this one goes first
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        now = own_memory(process.pid)
        anonymous = max(anonymous, now)
        if abs(now - grown[-1][1]) >= 0.5:
            grown.append([round(time.monotonic() - start, 1), round(now, 2)])
        if now > limit or available() < spare:
            process.kill()
        time.sleep(0.1)
    if status:
        raise SystemExit(f"{verb}: status {status} at {anonymous:.2f} GiB; {' '.join(command)}")
    return {
        "verb": verb,
        "anonymous": round(anonymous, 2),
        "maxrss": round(usage.ru_maxrss / 2**20, 2),
        "seconds": round(time.monotonic() - start),
        "cpu": round(usage.ru_utime + usage.ru_stime),
        "grown": grown,
    }


def own_memory(pid: int) -> float:
    """GiB of a process that no file backs."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 2**20 for line in lines if line.startswith("RssAnon"))


def available() -> float:
    """GiB that the machine could still give."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable"))


def expected(words: Sequence[str]) -> dict[str, dict[str, float]]:
    """What the doctor says that restoring and training take, in GiB by part."""
    command = [sys.executable, "-m", "restore_lab.cli.main", "doctor", *words, "format=json"]
    memory = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["memory"]
    return {doing: {part: round(count / GIB, 2) for part, count in found.items()} for doing, found in memory.items()}


def photograph(folder: Path, size: int) -> Path:
    """A folder with one photograph and its caption."""
    place = folder / f"photos_{size}"
    place.mkdir(parents=True, exist_ok=True)
    photo = Image.open(photos_folder() / "astronaut.png").convert("RGB")
    photo.resize((size, size), Image.Resampling.BICUBIC).save(place / "astronaut.png")
    (place / "astronaut.txt").write_text("an astronaut in front of a flag", encoding="utf-8")
    return place


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--limit", type=float, default=17.0)
    parser.add_argument("--spare", type=float, default=1.0)
    parser.add_argument("--only", choices=("train", "restore"))
    given = parser.parse_args()
    prior, photos = given.folder / "sdxl", photograph(given.folder, given.size)
    if not prior.exists():
        write_sdxl(prior.with_suffix(".part"))
        prior.with_suffix(".part").rename(prior)
    method = ("method=supir", "scale=full", f"backbone.path={prior}", "lq_encoder.weights=null")
    half = ("precision=bf16-true", "ema=null", "batch_size=1", f"crop={given.size}")
    method = (*method, *half, "speed.gradient_checkpointing=true", "module.weights_dtype=bfloat16")
    run = given.folder / f"run_{given.size}"
    train = (
        "stages.encoder=null",
        "data=folder",
        f"data.root={photos}",
        f"run_dir={run}",
        "max_steps=1",
        "log_every=1",
        "workers=0",
    )
    restore = (f"input={photos}", f"output={run / 'restored'}", f"weights={run}", "sampler.steps=2", "device=cpu")
    estimate = expected([*method, "data=folder", "data.root=.", f"size={given.size}", "device=cpu"])
    runs = {
        "train": ("training", [*train, "trainer.accelerator=cpu", "progress=false"]),
        "restore": ("restoring", [*restore, "sampler.progress=false"]),
    }
    for verb in [given.only] if given.only else runs:
        doing, words = runs[verb]
        found = watched(verb, [*method, *words], limit=given.limit, spare=given.spare)
        print(json.dumps({"expected": estimate[doing], **found}), flush=True)


if __name__ == "__main__":
    main()
