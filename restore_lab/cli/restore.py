"""Restore one image or a folder of images.

restore-lab restore input=photo.jpg
restore-lab restore input=photo.jpg instruction="Denoise with sigma 0.06; Deblur" caption="a cat, asleep"
restore-lab restore input=photos/ output=restored/ weights=runs/mine/adaptor-<id>
restore-lab restore input='photos/*.jpg' words=words.csv format=same seeds=4 --compare
restore-lab restore input=photos/ devices=4
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

FOLLOWS_WEIGHTS = True
FREE_TEXT = ("names",)


def run(cfg: DictConfig) -> None:
    """Restore, and print the number of written images and their folder.

    Raises:
        ValueError: if images were skipped; the log names them.
    """
    from restore_lab.inference.files import SUMMARY
    from restore_lab.inference.folder import restore_folder
    from restore_lab.system.processes import launch_ranks, rank_and_world

    if launch_ranks(cfg.devices):
        return
    done = restore_folder(cfg)
    share = f" (process {rank_and_world()[0]} of {rank_and_world()[1]})" if rank_and_world()[1] > 1 else ""
    already = f", {done.skipped} had been" if done.skipped else ""
    print(f"{done.written} restored into {done.output}{already}{share}")
    if done.bad:
        raise ValueError(f"{len(done.bad)} left out; they are named above and in {done.output / SUMMARY}")
