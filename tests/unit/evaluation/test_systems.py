"""External systems: folders of their outputs and weights of pixel models, measured as methods are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from restore_lab.cli.evaluate import run
from restore_lab.config.build import build
from restore_lab.evaluation.evaluate import evaluate
from restore_lab.evaluation.systems import find_system
from tests.helpers.configs import composed, few_photos


def config(tmp_path: Path, *words: str):
    base = ("metrics=fidelity", "eval_degradation=noise", f"runs_dir={tmp_path}/runs", "progress=false", "device=cpu")
    return composed("evaluate", *few_photos(), *base, "name=theirs", *words)


def cells(evaluation) -> dict[str, float]:
    return {cell.row: cell.mean for cell in evaluation.results.cells if cell.metric == "psnr"}


def test_inputs_are_written_and_outputs_measured(tmp_path, capsys) -> None:
    """A system that does nothing has the LQ's numbers, one that makes everything black those of black images."""
    run(config(tmp_path, f"inputs_dir={tmp_path}/lq"))
    assert capsys.readouterr().out.startswith("2 images")
    assert sorted(file.name for file in (tmp_path / "lq").glob("[!.]*")) == ["camera_0.png", "coffee_0.png"]
    same = evaluate(config(tmp_path, f"system={tmp_path}/lq"))
    assert set(cells(same)) == {"LQ", "theirs"}
    assert cells(same)["theirs"] == pytest.approx(cells(same)["LQ"], abs=1e-4)
    black = tmp_path / "black"
    black.mkdir()
    for file in (tmp_path / "lq").glob("[!.]*"):
        Image.new("RGB", (16, 16)).save(black / file.name)
    data = build(config(tmp_path).datamodule)
    errors = [b.hq_BCHW.mul(255).round().div(255).square().mean(dim=(1, 2, 3)) for b in data.test_dataloader()]
    expected = torch.cat(errors).log10().mul(-10).mean()
    found = evaluate(config(tmp_path, f"system={black}"))
    assert cells(found)["theirs"] == pytest.approx(float(expected), abs=1e-3)
    assert found.folder != same.folder


def test_changed_outputs_make_another_record(tmp_path) -> None:
    run(config(tmp_path, f"inputs_dir={tmp_path}/lq"))
    before = evaluate(config(tmp_path, f"system={tmp_path}/lq"))
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "lq" / "camera_0.png")
    after = evaluate(config(tmp_path, f"system={tmp_path}/lq"))
    assert after.folder != before.folder and cells(after)["theirs"] < cells(before)["theirs"]


def test_outputs_that_do_not_fit_are_named(tmp_path) -> None:
    run(config(tmp_path, f"inputs_dir={tmp_path}/lq"))
    Image.new("RGB", (8, 16)).save(tmp_path / "lq" / "camera_0.png")
    with pytest.raises(ValueError, match=r"camera_0.png has 8x16 pixels, its original 16x16"):
        evaluate(config(tmp_path, f"system={tmp_path}/lq"))
    (tmp_path / "lq" / "camera_0.png").unlink()
    with pytest.raises(ValueError, match="no output for image 'camera_0'; inputs_dir=DIR writes"):
        evaluate(config(tmp_path, f"system={tmp_path}/lq"))
    with pytest.raises(ValueError, match=r"system=.*nowhere: neither a folder of outputs nor a file of weights"):
        evaluate(config(tmp_path, f"system={tmp_path}/nowhere"))


def test_a_system_is_found_by_condition_folder_or_file(tmp_path) -> None:
    def place(system: str, condition: str = "real") -> Path | None:
        return find_system(tmp_path, system, condition, conditions=["real", "synthetic"])

    (tmp_path / "stablesr" / "real").mkdir(parents=True)
    (tmp_path / "bsrgan").mkdir()
    (tmp_path / "swinir.pth").touch()
    assert place("stablesr") == tmp_path / "stablesr" / "real" and place("stablesr", "synthetic") is None
    assert place("bsrgan") == place("bsrgan", "synthetic") == tmp_path / "bsrgan"
    assert place("swinir") == tmp_path / "swinir.pth"
    assert place("pasd") is None and find_system(None, "pasd", "real", conditions=[]) is None
    with pytest.raises(ValueError, match=r"systems_dir=.*nowhere: no such folder"):
        find_system(tmp_path / "nowhere", "pasd", "real", conditions=[])


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_pixel_model_gets_images_of_the_size_that_it_expects(tmp_path, ending) -> None:
    """A network of random weights for x4: spandrel's output for the images shrunk to a quarter."""
    pytest.importorskip("spandrel", reason="the extra `systems` is not installed")
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    network = ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4).eval()
    file = tmp_path / f"real_esrgan.{ending}"
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, file) if ending == "safetensors" else torch.save({"params_ema": state}, file)
    found = evaluate(config(tmp_path, f"system={file}"))
    cfg = config(tmp_path)
    data, values = build(cfg.datamodule), []
    for batch in data.test_dataloader():
        pair = data.degrade(batch, stage="test")
        small = torch.nn.functional.interpolate(pair.lq_BCHW, size=(4, 4), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.inference_mode():
            large = network(small).clamp(0, 1).mul(255).round()
        error = (large - pair.hq_BCHW.mul(255).round()).div(255).square().mean(dim=(1, 2, 3))
        values += [-10 * math.log10(value) for value in error.tolist()]
    assert cells(found)["theirs"] == pytest.approx(sum(values) / len(values), abs=0.02)


def test_weights_of_no_known_network_are_named(tmp_path) -> None:
    pytest.importorskip("spandrel", reason="the extra `systems` is not installed")
    save_file({"odd": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"odd.safetensors: spandrel knows no architecture with these weights"):
        evaluate(config(tmp_path, f"system={tmp_path}/odd.safetensors"))
