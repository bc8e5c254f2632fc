"""Loggers: wandb's offline files, and what trainings and records log."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from restore_lab import tracking
from restore_lab.evaluation.evaluate import evaluate
from restore_lab.evaluation.protocol import ColumnLabel
from restore_lab.evaluation.record_tracking import log_record, metric_means, per_image, read_images
from restore_lab.evaluation.records import Cell, ImageValue, Results, image_file
from restore_lab.methods.trainable import Trainable
from restore_lab.storage.atomic import write_bytes_atomic
from restore_lab.tracking import track
from restore_lab.training import run as fit_module
from restore_lab.training.module import Optimisation, TrainingModule
from restore_lab.training.monitor import logger_callbacks
from restore_lab.training.run import fit, plan_training
from restore_lab.types import Batch
from tests.helpers.configs import composed, small
from tests.helpers.wandb_file import Page, pages

SETTINGS = {"module": {"backbone": {"path": "asset:tiny_sd"}}, "seed": 3}


class Told(Logger):
    """Keeps what it is told; can show images and tables, and is closed as wandb's is."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.images: dict[str, list[tuple[list[Any], list[str]]]] = {}
        self.tables: dict[str, tuple[list[str], list[list[Any]]]] = {}
        self.ended: list[str] = []
        self.params: dict[str, Any] = {}

    name, version = "told", "0"

    def log_metrics(self, metrics, step=None) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        self.params = dict(params)

    def log_image(self, key, images, step=None, *, caption) -> None:
        self.images.setdefault(key, []).append((images, caption))

    def log_table(self, key, columns, data, step=None) -> None:
        self.tables[key] = (columns, data)

    def finalize(self, status) -> None:
        self.ended.append(status)

    def of(self, name: str) -> dict[int | None, float]:
        return {step: values[name] for step, values in self.metrics if name in values}


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """wandb writes below this folder without a prompt; its process ends with the test."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_SILENT", "WANDB_DISABLE_GIT", "WANDB__DISABLE_STATS", "WANDB__DISABLE_MACHINE_INFO"):
        monkeypatch.setenv(name, "true")
    yield tmp_path
    wandb.teardown()


@pytest.fixture
def told(monkeypatch) -> Told:
    """Takes the place of any logger of a config."""
    logger = Told()
    monkeypatch.setattr(tracking, "_begun", lambda node: logger)
    return logger


def results() -> Results:
    """Two images, two rows, two metrics; the second image has no value of the second metric."""
    label = {"weights": "", "colour": "rgb", "border": 0, "size": "16x16", "rounding": "8bit"}
    cells = [
        Cell(row=row, metric=metric, mean=mean, std=None, n=n, higher_is_better=True,
             column=ColumnLabel(metric=metric, count=n, **label))
        for row, metric, mean, n in [("LQ", "psnr", 20.0, 2), ("LQ", "ssim", 0.5, 1), ("mine", "psnr", 25.0, 2),
                                     ("mine", "ssim", 0.75, 1)]
    ]  # fmt: skip
    images = [
        ImageValue(row=row, key=key, metric=metric, value=None if (key, metric) == ("b", "ssim") else 1.0,
                   caption=f"a picture of {key}", instruction="" if row == "LQ" else "Deblur", recipe="{}")
        for row in ("LQ", "mine") for metric in ("psnr", "ssim") for key in ("a", "b")
    ]  # fmt: skip
    return Results(cells=tuple(cells), images=tuple(images))


def colours(folder: Path, *rows: str) -> None:
    """Images of one colour per row next to a record."""
    for number, row in enumerate(rows):
        for key in ("a", "b"):
            file = image_file(folder, row, key)
            write_bytes_atomic(file, b"")
            Image.new("RGB", (16, 8), (80 * number, 0, 0)).save(file, lossless=True)


def test_each_artefact_is_a_wandb_run(offline) -> None:
    """Ids, groups and ends; what resumes continues its own page, what fails is marked so, and nothing is merged."""
    import wandb

    cfg = composed("train", "logger=wandb", f"runs_dir={offline}", "name=mine", "optimisation.lr=2e-3", "workers=3")

    def sitting(identity: str, step: int, error: BaseException | None = None) -> None:
        with track(cfg, identity=identity, kind="adaptor", settings=SETTINGS) as logger:
            assert logger is not None
            logger.log_metrics({"train/loss": 1.0}, step=step)
            if identity == "b" * 16:
                colours(offline, "LQ", "mine", "original")
                log_record(logger, offline, results(), pictures=1)
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        sitting("a" * 16, 4, KeyboardInterrupt())
    sitting("a" * 16, 9)
    with pytest.raises(RuntimeError):
        sitting("b" * 16, 0, RuntimeError("out of memory"))
    wandb.teardown()  # waits until all is on disk
    first, again, failed = pages(offline)

    assert [page.run.run_id for page in (first, again, failed)] == ["a" * 16, "a" * 16, "b" * 16]
    assert [page.exit_code for page in (first, again, failed)] == [255, 0, 1]
    assert [losses(page) for page in (first, again, failed)] == [[(4, 1.0)], [(9, 1.0)], [(0, 1.0)]]
    assert (first.run.run_group, first.run.job_type, first.run.project) == ("mine", "adaptor", "restore_lab")
    assert first.run.display_name == "mine adaptor optimisation.lr=2e-3"
    assert set(first.run.tags) == {"spire", "tiny_sd", "tiny"}
    assert first.config["seed"] == 3 and first.config["identity"] == "a" * 16

    shown = {key: value for line in failed.history for key, value in line.items()}
    assert shown["mine/psnr"] == 25.0
    assert shown["images/captions"] == ["a: LQ | mine | original\ninstruction: Deblur\ncaption: a picture of a"]
    with Image.open(failed.folder / shown["images/filenames"][0]) as picture:
        assert picture.size == (3 * 16 + 2 * 4, 8)
    table = json.loads((failed.folder / shown["per_image/path"]).read_text())
    assert len(table["data"]) == 4 and table["columns"][:4] == ["key", "row", "psnr", "ssim"]


def losses(page: Page) -> list[tuple[int, float]]:
    return [(line["trainer/global_step"], line["train/loss"]) for line in page.history if "train/loss" in line]


def test_without_an_account_one_line_and_no_prompt(offline, monkeypatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(offline / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(offline / "config"))
    cfg = composed("train", "logger=wandb", f"runs_dir={offline}")
    with (
        pytest.raises(ValueError, match="no wandb account is logged in here; run `wandb login`, or set WANDB_MODE=off"),
        track(cfg, identity="c" * 16, kind="adaptor", settings=SETTINGS),
    ):
        pass
    assert pages(offline) == []


def test_without_a_network_logging_continues_offline(monkeypatch, caplog) -> None:
    import wandb

    class Unreachable:
        @property
        def experiment(self) -> None:
            raise wandb.errors.CommError("no route\nto host")

    there, asked = SimpleNamespace(experiment=None), []
    monkeypatch.setattr(tracking, "build", lambda node, **words: asked.append(words) or there)
    assert tracking._wandb(Unreachable(), {"mode": "shared"}) is there
    assert asked == [{"mode": "offline"}]
    assert "wandb cannot be reached (no route to host)" in caplog.text


def test_a_refused_account_is_named_in_one_line() -> None:
    import wandb

    class Refused:
        @property
        def experiment(self) -> None:
            raise wandb.errors.AuthenticationError("invalid\nkey")

    with pytest.raises(ValueError, match="logger=wandb: invalid key"):
        tracking._wandb(Refused(), {"mode": "shared"})


def test_a_logger_changes_no_identity(tmp_path) -> None:
    plain = plan_training(composed("train", f"runs_dir={tmp_path}"))
    shown = plan_training(composed("train", f"runs_dir={tmp_path}", "logger=wandb", "run.group=mine", "pictures=9"))
    assert [stage.identity for stage in shown] == [stage.identity for stage in plain]


def test_runs_have_their_group_and_name(tmp_path) -> None:
    """An experiment's (a table's) name, or the one that is given; a score of a folder has no method's tags."""
    base = ("evaluate", "seed=2", f"runs_dir={tmp_path}", "logger=csv", "again=true")
    table = tracking._described(composed(*base, "experiment=spire/table6", "name=tables"), "scores", SETTINGS)
    assert table["group"] == "spire/table6" and table["name"] == "spire/table6 scores seed=2"
    given = tracking._described(composed(*base, "run.group='a, b'"), "scores", {})
    assert given == {"group": "a, b", "name": "a, b scores seed=2", "tags": []}


def test_a_record_logs_its_scores(tmp_path) -> None:
    own = {"psnr": 25.0, "ssim": 0.75}
    named = {f"{row}/{metric}": mean for row in ("mine", "score") for metric, mean in own.items()}
    assert metric_means(results()) == {"LQ/psnr": 20.0, "LQ/ssim": 0.5, **named}
    columns, lines = per_image(results())
    assert columns == ["key", "row", "psnr", "ssim", "caption", "instruction", "recipe"]
    assert lines[3] == ["b", "mine", 1.0, None, "a picture of b", "Deblur", "{}"] and len(lines) == 2 * 2
    assert read_images(tmp_path, results(), limit=5) == []  # a record whose images were not kept
    colours(tmp_path, "LQ", "mine")
    shown = read_images(tmp_path, results(), limit=5)
    assert [list(one.images) for one in shown] == [["LQ", "mine"]] * 2
    assert shown[1].images["mine"].getpixel((3, 3)) == (80, 0, 0)


def test_one_metric_in_two_columns_stays_two_numbers() -> None:
    cells = [Cell(row="LQ", metric="psnr", mean=mean, std=None, n=1, higher_is_better=True,
                  column=ColumnLabel(metric="psnr", weights="", colour="rgb", border=0, size=size, rounding="8bit",
                                     count=1))
             for mean, size in ((1.0, "8x8"), (2.0, "16x16"))]  # fmt: skip
    found = metric_means(Results(cells=tuple(cells), images=()))
    assert found == {f"LQ/psnr {cell.column.id}": cell.mean for cell in cells}


def test_an_evaluation_is_logged_with_its_state(toy_folder, tmp_path, told) -> None:
    words = (*small(toy_folder), "weights=null", "metrics=fidelity", "eval_degradation=noise", f"runs_dir={tmp_path}")
    words += ("device=cpu", "progress=false", "name=toy", "logger=wandb", "pictures=1")
    done = evaluate(composed("evaluate", *words))
    assert told.ended == ["success"] and done.folder.name == f"scores-{told.params['identity']}"
    assert told.of("toy/psnr") == {0: next(c.mean for c in done.results.cells if (c.row, c.metric) == ("toy", "psnr"))}
    assert len(told.tables["per_image"][1]) == 4 * 2  # LQ, D(E(LQ)), D(E(HQ)) and the method's, two images
    ((images, captions),) = told.images["images"]
    assert len(images) == 1 and captions[0].startswith("camera_0: LQ | toy | original\ninstruction: Denoise")
    with pytest.raises(ValueError, match="no image was measured"):
        evaluate(composed("evaluate", *words, "max_lq_psnr=0.1"))
    assert told.ended == ["success", "failed"]


def test_a_failing_stage_is_logged_as_failed(tmp_path, told, monkeypatch) -> None:
    def broken(cfg, node, folder, logger, **how) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fit_module, "_train", broken)
    with pytest.raises(RuntimeError):
        fit(composed("train", f"runs_dir={tmp_path}", "logger=csv"))
    assert told.ended == ["failed"] and told.params["optimisation"]["lr"] > 0


class Pull(Trainable):
    """A weight w in R^2 with loss 3 w_1 + 4 w_2: its gradient has norm 5 at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        return {"loss": (self.weight * torch.tensor([3.0, 4.0])).sum()}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        return {"restored": torch.full((len(batch), 3, 8, 8), 0.5)}

    @property
    def conditioner(self) -> Any:
        def prompts(batch: Batch, *, training: bool) -> Any:
            assert not training
            return SimpleNamespace(semantic=[f"a {key}" for key in batch.key], instruction=("Deblur", "") * len(batch))

        return SimpleNamespace(prompts=prompts)


class Batches(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader([batch("a", "b")] * 8, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([batch("c", "d"), batch("e", "f")], batch_size=None)


def batch(*keys: str) -> Batch:
    image_BCHW = torch.zeros(len(keys), 3, 8, 8)
    return Batch(
        key=keys, caption=("",) * len(keys), recipe=(None,) * len(keys), seed=(0,) * len(keys),
        hq_BCHW=image_BCHW, lq_BCHW=image_BCHW + 1,
    )  # fmt: skip


def test_a_training_logs_its_losses_and_images(tmp_path) -> None:
    logger = Told()
    trainer = L.Trainer(
        max_steps=8, accelerator="cpu", logger=logger, callbacks=logger_callbacks(every=2, pictures=3),
        log_every_n_steps=2, val_check_interval=4, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, gradient_clip_val=1.0, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(TrainingModule(Pull(), optimisation=Optimisation(lr=0.1, warmup_steps=4)), Batches())
    assert logger.of("train/grad_norm") == pytest.approx({1: 5.0, 3: 5.0, 5: 5.0, 7: 5.0})  # before clipping
    assert set(logger.of("train/images_per_second")) == {1, 3, 5, 7}
    assert logger.of("lr-AdamW") == pytest.approx({1: 0.05, 3: 0.1, 5: 0.1, 7: 0.1})
    first, second = logger.images["validation"]
    assert first[1] == second[1] and len(first[0]) == 3  # the same images each time
    assert first[1][0] == "c: input | restored | original\ninstruction: Deblur\ncaption: a c"
    assert first[1][1].splitlines()[1] == "instruction: (none)"
    assert [first[0][0].getpixel((x, 4))[0] for x in (3, 9, 15, 27)] == [255, 255, 128, 0]  # a white gap
