"""Restore one image or a folder of images.

restore-lab restore input=photo.jpg
restore-lab restore input=photo.jpg instruction="Denoise with sigma 0.06; Deblur" caption="a cat, asleep"
restore-lab restore input=photos/ output=restored/ prompt/instruction=blind
"""

from __future__ import annotations

from typing import Any


def run(cfg: Any) -> None:
    """Restore, and print where each result was written."""
    from restore_lab.methods.restore import restore_folder

    done = restore_folder(cfg)
    print(f"{done.written} restored into {done.output}" + (f", {len(done.bad)} left out" if done.bad else ""))
