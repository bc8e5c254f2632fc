"""One large photograph restored in this process: its peak memory above the loaded model, and its seams, as JSON.

python -m tests.helpers.big_image WIDTH HEIGHT FOLDER [overrides]

Memory is what no file backs (RssAnon, looked at a hundred times a second): where memory is short the kernel drops and
rereads pages of libraries, by which getrusage's ru_maxrss, printed too, moves by hundreds of MiB.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path

import torch
from PIL import Image

import restore_lab.inference.restorer as restorer
from restore_lab.data.image_io import read_image, to_tensor
from restore_lab.data.sources.photos import photos_folder
from restore_lab.evaluation.metrics.seams import Seams, seams
from restore_lab.inference.folder import restore_folder
from restore_lab.types import Batch
from tests.helpers.configs import composed

METRIC = Seams(tile=512, overlap=64, compression=4, multiple=16)


def held() -> float:
    """MiB of this process that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status does not say RssAnon")


class Peak(threading.Thread):
    """The most that this process ever holds, from the start on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0

    def run(self) -> None:
        while True:
            self.most = max(self.most, held())
            time.sleep(0.01)


def main(width: int, height: int, folder: Path, *words: str) -> None:
    """Write the photograph, restore it, print."""
    source = folder / f"{width}x{height}.png"
    photo = Image.open(photos_folder() / "rocket.jpg").convert("RGB")
    photo.resize((width, height), Image.Resampling.BICUBIC).save(source)
    del photo
    cfg = composed(
        "restore", f"input={source}", f"output={folder / 'out'}", "device=cpu", "sampler.progress=false", *words
    )
    module = restorer.load_method(cfg)
    small = torch.rand(1, 3, 64, 64)  # what is imported and built on first use counts as loaded
    module.restore(Batch(hq_BCHW=None, lq_BCHW=small, caption=("",), key=("",), seed=(0,), recipe=(None,)))
    restorer.load_method = lambda cfg: module
    loaded, peak, start = held(), Peak(), time.process_time()
    peak.start()
    restore_folder(cfg)
    took = {"loaded": loaded, "above": peak.most - loaded, "cpu": time.process_time() - start}
    took["maxrss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, after = (to_tensor(read_image(path))[None] for path in (source, folder / "out" / source.name))
    rows, columns = (METRIC.lines(side) for side in (height, width))
    changed = seams(after - before, rows=rows, columns=columns, reach=METRIC.compression).item()
    print(json.dumps({**took, "seams_of_the_change": changed}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
