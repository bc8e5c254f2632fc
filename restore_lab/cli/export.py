"""Write an adaptor as safetensors and, for a ControlNet or LoRA, in diffusers' own format.

restore-lab export method=controlnet weights=runs/mine/adaptor-<id> output=my_controlnet
restore-lab export method=dra weights=runs/dra/adaptor-<id> output=my_dra dtype=float16
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: DictConfig) -> None:
    """Write the folder and print its content."""
    from restore_lab.importing.exporting import export

    print("\n".join(export(cfg)))
