"""`restore-lab evaluate`: its rows, prompt sets, skipped images, record and picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restore_lab.cli import errors
from restore_lab.cli.evaluate import run
from restore_lab.config.build import build
from restore_lab.evaluation import evaluate as evaluate_module
from restore_lab.evaluation import parts as parts_module
from restore_lab.evaluation.contact_sheet import Panel, contact_sheet
from restore_lab.evaluation.evaluate import Evaluation, evaluate, plan_evaluation, through_codec
from restore_lab.evaluation.records import image_file, read_record
from restore_lab.types import REMOVE_ALL
from tests.helpers.configs import composed, small
from tests.helpers.prior_cache import read_once

WORDS = {
    "told": "{instruction: {_target_: restore_lab.prompts.instruction.FromRecipe, values: 1.0}}",
    "blind": "{instruction: {_target_: restore_lab.prompts.instruction.Blind},"
    " semantic: {_target_: restore_lab.prompts.semantic.NoText}}",
}


def config(toy_folder: Path, tmp_path: Path, *words: str):
    base = ("weights=null", "metrics=fidelity", "eval_degradation=parameterized", "device=cpu", "progress=false")
    return composed("evaluate", *small(toy_folder), *base, "name=toy", *words, runs_dir=str(tmp_path))


@pytest.fixture(scope="module", autouse=True)
def priors_read_once() -> Iterator[None]:
    with read_once():
        yield


@pytest.fixture(scope="module")
def done(toy_folder, tmp_path_factory) -> Evaluation:
    return evaluate(config(toy_folder, tmp_path_factory.mktemp("scores"), "eval_degradation.keep=1.0"))


def means(evaluation: Evaluation, metric: str) -> dict[str, float]:
    return {cell.row: cell.mean for cell in evaluation.results.cells if cell.metric == metric}


def test_a_record_has_three_rows_next_to_the_methods(done) -> None:
    rows = {"LQ", "D(E(LQ))", "D(E(HQ))", "toy"}
    assert {cell.row for cell in done.results.cells} == rows
    assert {cell.metric for cell in done.results.cells} == {"psnr", "ssim"}
    assert {cell.n for cell in done.results.cells} == {2}
    assert all(row in done.page() for row in rows)
    assert {image.key for image in done.results.images} == {"camera_0", "coffee_0"}


def test_the_numbers_are_those_of_the_images(done, toy_folder, tmp_path) -> None:
    """PSNR of the LQ and of D(E(HQ)), worked out again from the data module's own batch."""
    cfg = config(toy_folder, tmp_path, "eval_degradation.keep=1.0", "eval_batch_size=1")
    backbone, data = build(cfg.backbone), build(cfg.datamodule)
    lq, decoded = [], []
    for batch in data.test_dataloader():
        pair = data.degrade(batch, stage="test")
        for found, image in ((lq, pair.lq_BCHW), (decoded, through_codec(backbone, pair.hq_BCHW))):
            error = (image.mul(255).round() - pair.hq_BCHW.mul(255).round()).div(255).square().mean()
            found.append(-10 * math.log10(error))
    assert means(done, "psnr")["LQ"] == pytest.approx(sum(lq) / 2, abs=1e-3)
    assert means(done, "psnr")["D(E(HQ))"] == pytest.approx(sum(decoded) / 2, abs=1e-3)


def test_the_record_can_be_read(done) -> None:
    record = read_record(done.folder)
    assert record.results.cells and len(record.results.images) == 4 * 2 * 2
    assert record.settings["weights"] is None
    assert done.folder.name == f"scores-{record.identity}"
    told = {image.instruction for image in record.results.images if image.row == "toy"}
    assert all("with sigma" in words for words in told)
    assert all(image.recipe for image in record.results.images if image.row == "LQ")


def test_images_of_a_record_are_written_unless_keep_images_is_false(done, toy_folder, tmp_path) -> None:
    files = {row: image_file(done.folder, row, "coffee_0") for row in ("LQ", "toy", "original", "D(E(LQ))")}
    assert [row for row, file in files.items() if file.is_file()] == ["LQ", "toy", "original"]
    data = build(config(toy_folder, tmp_path, "eval_degradation.keep=1.0", "eval_batch_size=1").datamodule)
    original = next(batch for batch in data.test_dataloader() if batch.key == ("coffee_0",)).hq_BCHW[0]
    with Image.open(files["original"]) as image:
        kept = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert (kept - original).abs().mean() < 0.03  # lossy, but the same picture
    bare = evaluate(config(toy_folder, tmp_path, "eval_degradation.keep=1.0", "keep_images=false"))
    assert not (bare.folder / "images").exists()
    assert bare.folder.name == done.folder.name  # what is kept to look at is no part of what was measured


def test_names_of_kept_images_are_safe_and_distinct(tmp_path) -> None:
    names = ["a/b", "a_b", "a b", "..", "ok-1.x"]
    files = [image_file(tmp_path, "D(E(LQ))", name) for name in names]
    assert len(set(files)) == len(names) and files[-1].name == "ok-1.x.webp"
    assert all(file.parent.parent == tmp_path / "images" for file in files)


def test_a_work_size_restores_larger_and_scales_back(toy_folder, tmp_path) -> None:
    cfg = config(toy_folder, tmp_path, "work_size=96")
    assert plan_evaluation(cfg).identity != plan_evaluation(config(toy_folder, tmp_path)).identity
    seen = []

    class Module:
        def restore(self, batch):
            seen.append((batch.lq_BCHW.shape[-2:], batch.hq_BCHW.shape[-2:]))
            return batch.lq_BCHW

    data = build(cfg.datamodule)
    batch = data.degrade(next(iter(data.test_dataloader())), stage="test")
    same = evaluate_module._restored(Module(), batch, None)  # type: ignore[arg-type]
    there_and_back = evaluate_module._restored(Module(), batch, 96)  # type: ignore[arg-type]
    own = tuple(batch.lq_BCHW.shape[-2:])
    assert own != (96, 96) and seen == [(own, own), ((96, 96), (96, 96))]
    assert torch.equal(same, batch.lq_BCHW)
    assert there_and_back.shape == same.shape and (there_and_back - same).abs().mean() < 0.05


def test_the_contact_sheet_is_written(done) -> None:
    assert done.picture == done.folder / "pictures.png"
    with Image.open(done.picture) as picture:
        assert picture.width > 3 * 192 and picture.height > 192
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(64 * 64) or []) > 20


def test_variants_are_rows_of_one_record_from_the_same_noise(done, toy_folder, tmp_path, monkeypatch) -> None:
    shown: list[Panel] = []
    monkeypatch.setattr(parts_module, "contact_sheet", lambda panels, path: shown.extend(panels))
    cfg = config(
        toy_folder,
        tmp_path,
        "eval_degradation.keep=1.0",
        f"+prompt_sets.told={WORDS['told']}",
        f"+prompt_sets.blind={WORDS['blind']}",
        "pictures=1",
    )
    both = evaluate(cfg)
    assert {cell.row for cell in both.results.cells} == {"LQ", "D(E(LQ))", "D(E(HQ))", "told", "blind"}
    said = {row: {i.instruction for i in both.results.images if i.row == row} for row in ("told", "blind")}
    assert said["blind"] == {REMOVE_ALL}
    assert REMOVE_ALL not in said["told"]
    assert [panel.titles for panel in shown] == [("input", "told", "blind", "original")]
    assert "with sigma" in shown[0].instruction
    assert means(both, "psnr")["told"] == means(done, "psnr")["toy"]  # what the method says anyway
    assert both.folder.name != done.folder.name


def test_unknown_variant_slots_are_refused(toy_folder, tmp_path) -> None:
    with pytest.raises(ValueError, match="no prompt slot 'visual'; slots are semantic, instruction") as caught:
        evaluate(
            config(toy_folder, tmp_path, "+prompt_sets.odd={visual: {_target_: restore_lab.prompts.semantic.NoText}}")
        )
    assert errors.is_bad_input(caught.value)


def test_images_above_max_lq_psnr_are_skipped(done, toy_folder, tmp_path) -> None:
    values = {i.key: i.value for i in done.results.images if (i.row, i.metric) == ("LQ", "psnr")}
    worse, better = sorted(values, key=values.get)
    limit = (values[worse] + values[better]) / 2
    words = ("eval_degradation.keep=1.0", f"max_lq_psnr={limit}", "pictures=0")
    some = evaluate(config(toy_folder, tmp_path, *words))
    assert {image.key for image in some.results.images} == {worse}
    assert {cell.n for cell in some.results.cells} == {1}
    with pytest.raises(
        ValueError, match=r"no image was measured; none has an LQ of at most max_lq_psnr=1.0 dB"
    ) as caught:
        evaluate(config(toy_folder, tmp_path, "max_lq_psnr=1.0"))
    assert errors.is_bad_input(caught.value)


def test_the_identity_depends_on_what_is_measured(done, toy_folder, tmp_path) -> None:
    same = evaluate(
        config(
            toy_folder, tmp_path, "eval_degradation.keep=1.0", "pictures=1", "runs_dir=" + str(tmp_path), "max_steps=7"
        )
    )
    assert same.folder.name == done.folder.name
    assert means(same, "ssim") == means(done, "ssim")


def test_the_verb_prints_table_record_and_picture(toy_folder, tmp_path, capsys) -> None:
    run(config(toy_folder, tmp_path, f"run_dir={tmp_path}/here", "eval_data.names=[camera]"))
    out = capsys.readouterr().out
    assert "D(E(HQ))" in out and f"record:  {tmp_path}/here" in out and f"picture: {tmp_path}/here/pictures.png" in out
    assert read_record(tmp_path / "here").results.cells


@pytest.fixture
def no_originals(toy_folder, tmp_path):
    """A config over one bad image, followed by overrides."""
    Image.new("RGB", (16, 16), (90, 120, 30)).save(tmp_path / "a.png")
    words = ("eval_data=folder", f"eval_data.root={tmp_path}", "eval_data.role=lq", "weights=null")
    base = [w for w in small(toy_folder) if not w.startswith("eval_data.")]
    return lambda *more: composed("evaluate", *base, *words, f"runs_dir={tmp_path}/runs", "progress=false", *more)


def test_without_originals_only_metrics_that_need_none_have_values(no_originals) -> None:
    """RealPhoto60, RTTS: two rows next to the method's, and a blind instruction."""
    done = evaluate(no_originals("metrics=offline"))
    assert {cell.row for cell in done.results.cells} == {"LQ", "D(E(LQ))", "spire"}
    assert {cell.metric for cell in done.results.cells} == {"piqe"}
    assert any("psnr: needs a reference" in note for note in done.results.notes)
    assert {image.instruction for image in done.results.images if image.row == "spire"} == {REMOVE_ALL}


def test_without_originals_pixel_metrics_alone_measure_nothing(no_originals) -> None:
    with pytest.raises(ValueError, match=r"no image was measured; psnr: needs a reference"):
        evaluate(no_originals("metrics=fidelity"))


def test_a_contact_sheet_shows_the_images_in_their_places(tmp_path) -> None:
    red, blue = (torch.tensor(c)[:, None, None].expand(3, 64, 64) for c in ([1.0, 0, 0], [0, 0, 1.0]))
    panels = [Panel(images=(red, blue), titles=("input", "original"), caption="a" * 300, instruction="")] * 3
    path = contact_sheet(panels, tmp_path / "sheet.png", columns=2)
    picture = Image.open(path).convert("RGB")
    colours = {colour: count for count, colour in picture.getcolors(10**6)}
    assert colours[255, 0, 0] == colours[0, 0, 255] == 3 * 192 * 192


def test_a_robust_encoder_adds_its_reconstruction_as_a_row(toy_folder, tmp_path) -> None:
    """Untrained it is the codec's own; the report compares both."""
    found = evaluate(config(toy_folder, tmp_path, "lq_encoder=robust"))
    psnr = means(found, "psnr")
    assert psnr["D(E_dr(LQ))"] == psnr["D(E(LQ))"]
    assert "psnr: D(E_dr(LQ)) - D(E(LQ)) = +0" in found.page() and "psnr: toy - D(E_dr(LQ))" in found.page()


def test_a_variant_changes_the_quality_words(toy_folder, tmp_path, monkeypatch) -> None:
    said = {}
    plain = evaluate_module._measure_batch

    def listen(module, suite, batch, prompt_sets, *rest):
        said.update({name: prompts(batch, training=False) for name, prompts in prompt_sets.items()})
        return plain(module, suite, batch, prompt_sets, *rest)

    monkeypatch.setattr(evaluate_module, "_measure_batch", listen)
    words = "prompt_sets={plain: {positive: '', negative: ''}, both: {positive: sharp, negative: blurred}}"
    evaluate(config(toy_folder, tmp_path, words))
    assert set(said["plain"].negative) == {""} and set(said["both"].negative) == {"blurred"}
    assert [f"{text} sharp" for text in said["plain"].semantic] == list(said["both"].semantic)
