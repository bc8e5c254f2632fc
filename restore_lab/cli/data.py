"""Prepare training data: negative-quality images (SUPIR), shards of a source, a latent cache, or tiles of photographs.

restore-lab data output=negatives count=1000
restore-lab data output=negatives data=folder data.root=photos backbone=sdxl count=100000
restore-lab data pack output=shards data=folder data.root=photos shard_size=1000 devices=4
restore-lab data cache backbone=sdxl backbone.cache_dir=cache data=shards data.root=shards crop=512 devices=4
restore-lab data photographs output=datasets/photographs_free
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

POSITIONAL = ("make",)


def run(cfg: DictConfig) -> None:
    """Make the missing data and print its path."""
    from restore_lab.system.processes import launch_ranks, rank_and_world

    if launch_ranks(cfg.devices):
        return
    if cfg.make == "photographs":
        from restore_lab.prepare.photographs import fetch

        count = fetch(cfg.output, packages=cfg.packages)
        print(f"{count['train']} tiles, {count['val']} held out, in {cfg.output}; train with data=photographs_free")
        return
    if cfg.make == "negatives":
        from restore_lab.prepare.negatives import fill_negatives

        folder = fill_negatives(cfg)
        print(f"{cfg.count} images in {folder}; train with data=mixed data.sources.negatives.root={cfg.output}")
        return
    if cfg.make == "cache":
        from restore_lab.prepare.encodings import fill_cache

        filled = fill_cache(cfg)
        share = f" (process {rank_and_world()[0]} of {rank_and_world()[1]})" if rank_and_world()[1] > 1 else ""
        print(f"{filled.samples} samples in {filled.folder}; train with backbone.cache_dir={filled.folder}{share}")
        return
    from restore_lab.prepare.pack import pack

    done = pack(cfg)
    if done.samples is None:
        print(f"process {rank_and_world()[0]} of {rank_and_world()[1]} has done its share of {done.shards} shards")
    else:
        print(f"{done.samples} samples in {done.shards} shards; train with data=shards data.root={done.output}")
