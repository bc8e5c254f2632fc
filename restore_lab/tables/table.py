"""`restore-lab table`: plans, runs and prints tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.evaluation.degraded import write_inputs
from restore_lab.launch.cost import estimate, shipped_facts
from restore_lab.launch.job import Job, config_flags, config_folders, finished_facts
from restore_lab.storage.outputs import require_free, write_output
from restore_lab.tables import file
from restore_lab.tables.figures.figure import draw_figure
from restore_lab.tables.grid import Grid, grid
from restore_lab.tables.job_config import job_config
from restore_lab.tables.jobs import Plan, with_dependencies
from restore_lab.tables.make import hydra_launcher, make_artefacts, write_jobs
from restore_lab.tables.numbers import TableNumbers, read_numbers
from restore_lab.tables.plan import plan_tables
from restore_lab.tables.power import powers
from restore_lab.tables.render import EXTENSIONS, render_table
from restore_lab.tables.spec import Spec, merge

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def make_tables(cfg: DictConfig) -> dict[str, str]:
    """Run `restore-lab table`.

    Returns:
        One line per failed job, by identity.

    Raises:
        ValueError: without a table, or for an unknown one.
    """
    folders = config_folders()
    if cfg.all and cfg.table:
        raise ValueError(f"--all and {', '.join(cfg.table)}: give one of them")
    names = list(file.tables(folders)) if cfg.all else list(cfg.table or ())
    if not names:
        raise ValueError(f"name a table, or --all; there are: {', '.join(file.tables(folders))}")
    store = Path(cfg.runs_dir) / cfg.name
    words = list(cfg.overrides) + ([] if cfg.datasets_dir is None else [f"datasets_dir='{cfg.datasets_dir}'"])
    if cfg.output and Path(cfg.output).exists() and not Path(cfg.output).is_dir():
        raise ValueError(f"output={cfg.output}: a file is in the way; name a folder")
    wanted = [file.read_spec(name, folders, scale=cfg.at_scale) for name in names]
    if cfg.inputs_dir:
        print("\n".join(line for spec in wanted for line in inputs(spec, Path(cfg.inputs_dir), words)))
        return {}
    if cfg.output:
        require_free(
            _file(spec.name, Path(cfg.output), ending) for spec in wanted for ending in (*EXTENSIONS.values(), "png")
        )
    planned = plan_tables(
        wanted,
        store=store,
        seeds=int(cfg.seeds),
        words=words,
        flags=config_flags(),
        systems_dir=cfg.systems_dir,
        weights_dir=cfg.weights_dir,
    )
    if cfg.plan:
        print(plan_text(planned, store))
        return {}
    failed: dict[str, str] = {}
    if cfg.make:
        write_jobs(planned, store)
        failed = make_artefacts(planned, launch=hydra_launcher(cfg))
    for spec in wanted:
        numbers = read_numbers(planned, spec)
        table = grid(planned, numbers)
        print(render_table(table, cfg.format))
        if cfg.output:
            _write(table, numbers, Path(cfg.output))
    if failed:
        print("\n".join(["failed:", *(f"  {line}" for line in failed.values())]))
    return failed


def inputs(spec: Spec, folder: Path, words: Sequence[str]) -> list[str]:
    """Write each condition's degraded images for external systems; one line per condition."""
    lines = []
    for condition in spec.conditions.values():
        own = merge([*spec.words.of("evaluate"), *condition.words.of("evaluate"), *words])
        with job_config("evaluate", [f"experiment={spec.name}", f"scale={spec.scale}", *own]) as cfg:
            place = folder / condition.name
            lines.append(f"{write_inputs(cfg, place)} images: {place}")
    return lines


def plan_text(plan: Plan, store: Path) -> str:
    """The plan as text: one line per job, whether it exists, and the estimated cost of the rest."""
    finished = finished_facts(store)
    missing = {job.artefact.identity for job in plan.missing()}
    lines = []
    for spec in plan.specs:
        own = [p for p in plan.scores if p.table == spec.name]
        described = [identity for (table, _), identity in plan.descriptions.items() if table == spec.name]
        reached = with_dependencies(plan, [*(plan.scores[p] for p in own), *described])
        absent = sum(job.artefact.identity in missing for job in reached)
        lines.append(f"{spec.name}  {spec.title} ({spec.source}; {len(spec.rows)} rows)")
        lines.append(f"  {len(reached)} artefacts, {len(reached) - absent} there, {absent} missing")
        lines += [_datum(name, paths) for name, paths in sorted(plan.data.get(spec.name, {}).items())]
        lines += [f"    power: {line}" for line in powers(read_numbers(plan, spec), seeds=plan.seeds)]
        for row in spec.rows.values():
            if row.system is not None and not any(p.row == row.name for p in own):
                lines.append(f"    {row.title}: published numbers (system {row.system}; see systems_dir)")
        lines += [f"    {row.title}: at scale={row.only} alone" for row in spec.rows.values()
                  if row.only not in (None, spec.scale)]  # fmt: skip
        lines += [f"    cannot be planned: {p.row}, {p.condition}: {why}" for p, why in plan.refusals.items()
                  if p.table == spec.name]  # fmt: skip
    lines.append("")
    lines += [_line(plan, job, identity in missing, finished) for identity, job in plan.jobs.items()]
    return "\n".join([*lines, "", _total(plan, finished)])


def _datum(name: str, paths: Sequence[str]) -> str:
    """A table's dataset, and whether its folders exist; `restore-lab doctor` checks their content."""
    gone = [path for path in paths if not Path(path).exists()]
    return f"    data {name}: " + (f"MISSING {gone[0]} (restore-lab doctor data={name})" if gone else "there")


def _line(plan: Plan, job: Job, missing: bool, finished: Sequence[Mapping[str, Any]]) -> str:
    artefact = job.artefact
    used = [f"{p.table}/{p.row}" for p, identity in plan.scores.items() if identity == artefact.identity]
    used += [f"{table}/{row}" for (table, row), identity in plan.descriptions.items() if identity == artefact.identity]
    used += [identity for identity, other in plan.jobs.items() if artefact.identity in other.needs]
    there = "there" if artefact.is_complete() else "not needed: what it is for is there"
    state = f"missing {_takes(job, finished)}" if missing else there
    what = f"weights ({artefact.kind}, {job.steps} steps)" if artefact.has_weights else artefact.kind
    return f"{artefact.identity}  {what}  {state}  for {', '.join(dict.fromkeys(used))}"


def _takes(job: Job, finished: Sequence[Mapping[str, Any]]) -> str:
    needed = estimate(job, finished, shipped_facts())
    if needed.seconds is None or needed.peak_bytes is None or needed.disk_bytes is None:
        return "(nothing like it was run here yet)"
    memory, disk = needed.peak_bytes / 1e9, needed.disk_bytes / 1e6
    where = " as on the machine that made the shipped tables" if needed.other_machine else ""
    return f"(about {needed.seconds / 60:.1f} min, {memory:.1f} GB memory, {disk:.1f} MB disk{where})"


def _total(plan: Plan, finished: Sequence[Mapping[str, Any]]) -> str:
    missing = plan.missing()
    needed = [estimate(job, finished, shipped_facts()) for job in missing]
    seconds = sum(e.seconds for e in needed if e.seconds is not None)
    unknown = sum(e.seconds is None for e in needed)
    rest = f", and {unknown} jobs of unknown length" if unknown else ""
    whole = f"about {seconds / 60:.0f} minutes one after the other{rest}"
    return f"{len(plan.jobs)} artefacts, {len(missing)} missing: {whole}"


def _write(table: Grid, numbers: TableNumbers, folder: Path) -> None:
    """Write every format, then the figure, for which matplotlib may be missing."""
    for written, ending in EXTENSIONS.items():
        write_output(_file(table.name, folder, ending), render_table(table, written).encode())
    picture = draw_figure(numbers)
    if picture is not None:
        write_output(_file(table.name, folder, "png"), picture)


def _file(table: str, folder: Path, ending: str) -> Path:
    return folder / f"{table.replace('/', '_')}.{ending}"
