"""Import public checkpoints: SUPIR, InstantIR, DiffBIR, diffusers' ControlNets and LoRAs.

restore-lab import SUPIR-v0Q.ckpt
restore-lab import adapter.pt aggregator.pt previewer_lora_weights.bin
restore-lab import controlnet_folder backbone.path=my_sd15
restore-lab import SUPIR-v0F_fp16.safetensors output=supir_v0f format=json
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

POSITIONAL = ("files...",)
IMPORT_SETTINGS = ("files", "output", "format", "runs_dir")  # settings of the import, not of the network


def run(cfg: DictConfig) -> None:
    """Recognise the checkpoints, compose their network, map every key, and print the path of the result."""
    from hydra.core.hydra_config import HydraConfig

    from restore_lab.importing.engine import import_checkpoints, report_import
    from restore_lab.importing.recognise import recognise, words_of
    from restore_lab.tables.job_config import job_config

    found = recognise([cfg.files] if isinstance(cfg.files, str) else list(cfg.files))
    typed = list(HydraConfig.get().overrides.task)
    chosen = {word.partition("=")[0] for word in typed}
    words = [word for word in words_of(found) if word.partition("=")[0] not in chosen]
    words += [word for word in typed if word.partition("=")[0] not in IMPORT_SETTINGS]
    own = [word for word in typed if word.partition("=")[0] in IMPORT_SETTINGS]
    with job_config("import", [*words, *own]) as network:
        done = import_checkpoints(network, found, words=words)
    print(json.dumps({"folder": str(done.folder), **done.facts}) if cfg.format == "json" else report_import(done))
