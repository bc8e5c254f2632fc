"""Training states on disk: each written beside its place and moved there whole.

Lightning's own writer builds the file in memory and then in the system's folder for temporary files; from there it
reaches another disk by copying, which a kill may cut short.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

PART = ".part"


class Moved(TorchCheckpointIO):
    """A state is there whole, or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(place.name + PART)
        with open(part, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, place)
