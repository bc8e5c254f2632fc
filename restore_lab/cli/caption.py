"""Caption a folder of images for training with data=folder.

restore-lab caption input=photos
restore-lab caption input=photos devices=4
restore-lab caption data=lsdir datasets_dir=/data
restore-lab caption input=photos prompt.semantic.captioner.model=Qwen/Qwen2.5-VL-7B-Instruct
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Write the table of captions and print its path."""
    from restore_lab.inference.captioning import caption_folder
    from restore_lab.system.processes import launch_ranks, rank_and_world

    if launch_ranks(cfg.devices):
        return
    done = caption_folder(cfg)
    if done.written is None:
        print(f"process {rank_and_world()[0]} of {rank_and_world()[1]} has done its share")
        return
    print(f"{done.written} captions in {done.output}" + (f", {len(done.bad)} images left out" if done.bad else ""))
