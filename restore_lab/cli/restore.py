"""Restore one image or a folder of images.

restore-lab restore input=photo.jpg
restore-lab restore input=photo.jpg instruction="Denoise with sigma 0.06; Deblur" caption="a cat, asleep"
restore-lab restore input=photos/ output=restored/ prompt/instruction=blind
restore-lab restore input=photos/ devices=4
"""

from __future__ import annotations

from typing import Any


def run(cfg: Any) -> None:
    """Restore, and print where each result was written."""
    from restore_lab.methods.restore import restore_folder
    from restore_lab.shares import launched, place

    if launched(cfg.devices):
        return
    done = restore_folder(cfg)
    share = f" (process {place()[0]} of {place()[1]})" if place()[1] > 1 else ""
    print(f"{done.written} restored into {done.output}" + (f", {len(done.bad)} left out" if done.bad else "") + share)
