"""A table in wandb: a workspace and a report over the runs of its jobs.

A wandb run's id is its artefact's identity, so the table's plan gives the runs of each row, including those that other
tables share. Needs the package wandb-workspaces; the JSON that would be sent needs no account.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.evaluation.record_tracking import SCORE
from restore_lab.launch.job import config_flags, config_folders
from restore_lab.storage.outputs import write_output
from restore_lab.tables import file
from restore_lab.tables.grid import grid
from restore_lab.tables.jobs import Plan, with_dependencies
from restore_lab.tables.numbers import read_numbers
from restore_lab.tables.plan import plan_tables
from restore_lab.tables.render import render_table
from restore_lab.tables.spec import Spec
from restore_lab.tracking import has_wandb_account

if TYPE_CHECKING:
    from omegaconf import DictConfig

CURVES = ("train/loss", "val/psnr_restored", "train/images_per_second", "train/grad_norm")
STEP = "trainer/global_step"
# The colour-blind safe palette of Okabe and Ito.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


@dataclass(frozen=True, kw_only=True)
class RowRuns:
    """The wandb runs of one row: ids of its trainings, and of its records by condition."""

    name: str
    colour: str
    trainings: Sequence[str]
    records: Mapping[str, Sequence[str]]

    @property
    def ids(self) -> list[str]:
        """The ids of all runs."""
        return [*self.trainings, *(one for ids in self.records.values() for one in ids)]


def publish_dashboard(cfg: DictConfig) -> str:
    """Run `restore-lab dashboard`.

    Returns:
        The text to print: the addresses of workspace and report, their JSON, or the file that was written.

    Raises:
        ValueError: without a table, wandb-workspaces or an account, or if wandb rejects the request.
    """
    folders = config_folders()
    if not cfg.table:
        raise ValueError(f"name a table; there are: {', '.join(file.tables(folders))}")
    spec = file.read_spec(cfg.table, folders, scale=cfg.at_scale)
    store = Path(cfg.runs_dir) / cfg.name
    planned = plan_tables(
        [spec],
        store=store,
        seeds=int(cfg.seeds),
        words=list(cfg.overrides),
        flags=config_flags(),
        systems_dir=cfg.systems_dir,
        weights_dir=cfg.weights_dir,
    )
    markdown = render_table(grid(planned, read_numbers(planned, spec)), "markdown")
    if cfg.dry_run or cfg.output:
        made = dashboard(planned, spec, markdown, entity="", project=cfg.project)
        text = json.dumps({name: _plain(part) for name, part in made.items()}, indent=1)
        if not cfg.output:
            return text
        write_output(Path(cfg.output), text.encode())
        return f"dashboard: {cfg.output}"
    return _send(cfg, planned, spec, markdown)


def row_runs(plan: Plan, spec: Spec) -> list[RowRuns]:
    """The wandb runs of each row, including external systems that were measured here."""
    found = []
    for number, row in enumerate(spec.rows.values()):
        records = {
            name: [id_ for place, id_ in plan.scores.items() if (place.row, place.condition) == (row.name, name)]
            for name in spec.conditions
        }
        jobs = with_dependencies(plan, [one for ids in records.values() for one in ids])
        trainings = [job.artefact.identity for job in jobs if job.artefact.has_weights]
        found.append(
            RowRuns(name=row.name, colour=PALETTE[number % len(PALETTE)], trainings=trainings, records=records)
        )
    return found


def dashboard(plan: Plan, spec: Spec, markdown: str, *, entity: str, project: str) -> dict[str, Any]:
    """The workspace and the report of a table, as objects of wandb-workspaces.

    Args:
        plan: the table's plan.
        spec: the table.
        markdown: the rendered table.
        entity: the account; "" leaves out every field that only the server knows.
        project: wandb project of the runs.

    Raises:
        ValueError: without wandb-workspaces.
    """
    try:
        wr: Any = import_module("wandb_workspaces.reports.v2")  # its modules declare no exports
        ws: Any = import_module("wandb_workspaces.workspaces")
    except ModuleNotFoundError as error:
        raise ValueError(f"dashboard needs {error.name}: pip install 'restore-lab[wandb]'") from error
    rows = row_runs(plan, spec)

    def runset(one: RowRuns, ids: Sequence[str]) -> Any:
        where = {"entity": entity, "project": project} if entity else {}
        filters = [ws.Metric("ID").isin(list(ids))]
        return wr.Runset(name=one.name, filters=filters, custom_run_colors=dict.fromkeys(ids, one.colour), **where)

    def curves() -> list[Any]:
        plots = [wr.LinePlot(title=name, x=STEP, y=[name], layout=wr.Layout(w=12)) for name in CURVES]
        return [*plots, wr.MediaBrowser(title="validation", media_keys=["validation"], layout=wr.Layout(w=24, h=10))]

    def scores(condition: str) -> list[Any]:
        bars = []
        for title in spec.conditions[condition].columns:
            if metric := spec.columns[title].metric:
                key = f"{SCORE}/{metric}"
                names = {f"{id_}:{key}": one.name for one in rows for id_ in one.records[condition]}
                bars.append(wr.BarPlot(title=f"{title} ({metric})", metrics=[key], line_titles=names))
        images = wr.MediaBrowser(title="images", media_keys=["images"], layout=wr.Layout(w=24, h=12))
        return [*bars, images, wr.WeavePanelSummaryTable(table_name="per_image", layout=wr.Layout(w=24, h=12))]

    blocks = [wr.MarkdownBlock(text=markdown), wr.H2(text="Training")]
    blocks.append(wr.PanelGrid(runsets=[runset(one, one.trainings) for one in rows if one.trainings], panels=curves()))
    sections = [ws.Section(name="Training", panels=curves(), is_open=True)]
    for name, condition in spec.conditions.items():
        runsets = [runset(one, one.records[name]) for one in rows if one.records[name]]
        if runsets:
            heading = condition.title or "Scores"
            blocks += [wr.H2(text=heading), wr.PanelGrid(runsets=runsets, panels=scores(name))]
            sections.append(ws.Section(name=heading, panels=scores(name), is_open=True))
    colours = {id_: ws.RunSettings(color=one.colour) for one in rows for id_ in one.ids}
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=spec.name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("ID").isin(list(colours))], run_settings=colours),
    )
    title = f"{spec.name}: {spec.title}"[:128]
    report = wr.Report(entity=entity, project=project, title=title, description=spec.source, blocks=blocks)
    return {"workspace": workspace, "report": report}


def _send(cfg: DictConfig, plan: Plan, spec: Spec, markdown: str) -> str:
    """Save workspace and report to the account."""
    if not has_wandb_account():
        raise ValueError("dashboard: no wandb account is logged in here; run `wandb login`, or give output=FILE")
    import wandb

    try:
        entity = str(cfg.entity or wandb.Api().default_entity)
        made = dashboard(plan, spec, markdown, entity=entity, project=cfg.project)
        for part in made.values():
            part.save()
    except (wandb.Error, ValueError) as error:
        raise ValueError(f"dashboard: {' '.join(str(error).split())}") from error
    return "\n".join(f"{name}: {part.url}" for name, part in made.items())


def _plain(part: Any) -> Any:
    """The request as plain values; the package has no public API for it."""
    return part._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
