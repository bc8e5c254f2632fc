"""`restore-lab import FILE`, then `restore` and `export` of the result, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from restore_lab.cli.main import main
from tests.helpers.import_priors import KL, SDXL, prior_folder
from tests.helpers.ldm_reference import Control, ControlledUNet, KLEncoder, randomised


def supir(file: Path) -> dict[str, torch.Tensor]:
    """SUPIR's layout at toy width, stored as its release is."""
    parts = {
        "model.control_model.": Control(**SDXL),
        "model.diffusion_model.project_modules.": ControlledUNet(**SDXL).project_modules,
        "first_stage_model.denoise_encoder.": KLEncoder(widths=KL["block_out_channels"], layers=1),
    }
    state = {p + key: value for p, module in parts.items() for key, value in randomised(module).state_dict().items()}
    torch.save({"state_dict": state}, file)
    return state


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["restore-lab", *words])
    main()


def test_a_checkpoint_becomes_weights_that_restore_and_export(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 32), 60).convert("RGB").save("photo.png")
    prior, state = prior_folder(tmp_path), supir(tmp_path / "some.ckpt")
    capsys.readouterr()
    own = ("scale=tiny", f"backbone.path={prior}")
    run(monkeypatch, "import", "some.ckpt", *own, "format=json")
    told = json.loads(capsys.readouterr().out)
    assert told["tensors"] == len(state) and told["words"][:2] == ["method=supir", "adaptor=supir_release"]

    method = ("method=supir", "adaptor=supir_release", *own, f"weights={told['folder']}")
    run(monkeypatch, "restore", *method, "input=photo.png", "sampler.steps=2", "device=cpu", "sampler.progress=false")
    with Image.open("restored/photo.png") as image:
        assert image.size == (40, 32)

    run(monkeypatch, "export", *method, "output=out", "dtype=bfloat16")
    assert "no format of diffusers' holds fusion, lq_encoder, trunk" in capsys.readouterr().out
    stored = load_file("out/adaptor.safetensors")
    assert len(stored) == len(state)
    assert torch.equal(
        stored["trunk.conv_hint.bias"], state["model.control_model.input_hint_block.0.bias"].to(torch.bfloat16)
    )

    del state["model.control_model.time_embed.0.bias"]
    torch.save(state, "bad.ckpt")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "import", "bad.ckpt", *own)
    assert stopped.value.code == 2
    assert "1 missing: model.control_model.time_embed.0.bias" in capsys.readouterr().err
