"""An evaluation in parts, one per batch: distributed over processes and resumable, with bit-identical results.

Batches depend on `eval_batch_size` only, and parts are assembled in the order of the batches, so that the record of
several processes, or of a run that was killed and resumed, is that of a single run. A part is a file
`<record>/parts-<key>/<number>.safetensors` (values and prompts as JSON, features and panels as tensors); the key hashes
the record's identity, the code and the batching, so that parts of another evaluation are never used. Parts are deleted
when the record is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from restore_lab.config.build import build
from restore_lab.evaluation.contact_sheet import Panel, contact_sheet
from restore_lab.evaluation.degraded import compute_results
from restore_lab.evaluation.records import PER_IMAGE, PICTURE, RECORD, ImageValue, write_record
from restore_lab.evaluation.suite import Measurements, MetricSuite, Tally
from restore_lab.storage.artefact import code_version
from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.storage.foreign import parse_json
from restore_lab.storage.identity import identity
from restore_lab.system.processes import merge_lock, own_parts

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from restore_lab.evaluation.plan import Scores

log = logging.getLogger(__name__)
PARTS_PREFIX = "parts-"


class Parts:
    """The parts of one record.

    Args:
        cfg: of the evaluation.
        scores: the record.
    """

    def __init__(self, cfg: DictConfig, scores: Scores) -> None:
        self.cfg, self.scores = cfg, scores
        data = build(cfg.datamodule)
        self.count = data.test_count()
        cut = {"batch": cfg.datamodule.eval_batch_size, "count": self.count, "pictures": cfg.pictures}
        self.folder = scores.folder / f"{PARTS_PREFIX}{identity({**cut, 'code': code_version()}, (scores.identity,))}"
        self._panels = 0

    def missing(self) -> list[int]:
        """The batches for this process to measure."""
        return own_parts(self.count, done=self._done)

    def write(self, number: int, measured: Measurements, panels: Sequence[Panel]) -> None:
        """Write the measurements of one batch.

        The contact sheet has the first images of all batches, which are among the first panels of each process.
        """
        panels = panels[: max(0, self.cfg.pictures - self._panels)]
        self._panels += len(panels)
        write_bytes_atomic(self._file(number), to_bytes(measured, panels))

    def close(self) -> bool:
        """Assemble the record if all parts are complete and no other process has; whether this process did."""
        with merge_lock(self.scores.folder):
            ready = all(self._done(number) for number in range(self.count))
            if not ready or (self.scores.is_complete() and not self.cfg.again):
                return False
            suite: MetricSuite = build(self.cfg.metrics, protocol=build(self.cfg.protocol))
            panels: list[Panel] = []
            for number in range(self.count):
                measured, more = self._read(number)
                suite.add(measured)
                panels += more
            results = compute_results(suite, self.cfg)
            if panels and self.cfg.pictures:
                contact_sheet(panels[: self.cfg.pictures], self.scores.folder / PICTURE)
            write_record(
                self.scores.folder,
                results=results,
                settings=self.scores.settings,
                identity=self.scores.identity,
                parents=self.scores.parents,
                code=code_version(),
            )
            log.info("record: %s", self.scores.folder / RECORD)
            clear(self.scores.folder)
            return True

    def _read(self, number: int) -> tuple[Measurements, list[Panel]]:
        """Read a part; a damaged one is deleted.

        Raises:
            ValueError: if it is damaged.
        """
        from safetensors import SafetensorError

        file = self._file(number)
        try:
            return from_bytes(file.read_bytes())
        except (SafetensorError, ValueError, KeyError) as error:
            file.unlink()
            raise ValueError(f"{file}: damaged, and taken away; the same command measures its images again") from error

    def _done(self, number: int) -> bool:
        return self._file(number).is_file()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def clear(folder: Path) -> None:
    """Remove all parts of a record."""
    for place in folder.glob(f"{PARTS_PREFIX}*"):
        shutil.rmtree(place, ignore_errors=True)


def delete_record(scores: Scores) -> None:
    """Delete a record and its parts, so that it is measured again."""
    clear(scores.folder)
    for name in (RECORD, PER_IMAGE):
        (scores.folder / name).unlink(missing_ok=True)


def to_bytes(measured: Measurements, panels: Sequence[Panel]) -> bytes:
    """A part as a safetensors file."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}

    def named(name: str, entries: Sequence[Tensor]) -> int:
        tensors.update({f"{name}.{index}": entry.cpu().contiguous().clone() for index, entry in enumerate(entries)})
        return len(entries)

    tallies = [
        {
            "row": row,
            "metric": metric,
            "values": tally.values,
            "sizes": sorted(tally.sizes),
            "restored": named(f"restored.{index}", tally.restored),
            "reference": named(f"reference.{index}", tally.reference),
        }
        for index, ((row, metric), tally) in enumerate(measured.tallies.items())
    ]
    sheet = [
        {
            "images": named(f"panel.{index}", [(i.clamp(0, 1) * 255).round().byte() for i in panel.images]),
            "titles": list(panel.titles),
            "words": [panel.caption, panel.instruction],
        }
        for index, panel in enumerate(panels)
    ]
    header = {
        "keys": measured.keys,
        "images": [list(asdict(image).values()) for image in measured.images],
        "notes": measured.notes,
        "weights": measured.weights,
        "tallies": tallies,
        "panels": sheet,
    }
    return save(tensors, metadata={"part": json.dumps(header, allow_nan=False)})


def from_bytes(data: bytes) -> tuple[Measurements, list[Panel]]:
    """Measurements and panels of a part; panels are rounded to 8 bits."""
    from safetensors.torch import load

    tensors = load(data)
    metadata = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], name="part")
    header = parse_json(metadata["__metadata__"]["part"], name="part")

    def named(name: str, count: int) -> list[Tensor]:
        return [tensors[f"{name}.{index}"] for index in range(count)]

    tallies = {
        (one["row"], one["metric"]): Tally(
            values=one["values"],
            sizes=set(one["sizes"]),
            restored=named(f"restored.{index}", one["restored"]),
            reference=named(f"reference.{index}", one["reference"]),
        )
        for index, one in enumerate(header["tallies"])
    }
    names = list(ImageValue.__dataclass_fields__)
    images = [ImageValue(**dict(zip(names, values, strict=True))) for values in header["images"]]
    panels = [
        Panel(
            images=tuple(image.float() / 255 for image in named(f"panel.{index}", one["images"])),
            titles=tuple(one["titles"]),
            caption=one["words"][0],
            instruction=one["words"][1],
        )
        for index, one in enumerate(header["panels"])
    ]
    return Measurements(
        keys=header["keys"], images=images, notes=header["notes"], weights=header["weights"], tallies=tallies
    ), panels
