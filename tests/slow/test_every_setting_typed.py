"""Typed settings: a seeded sample of the cases of tests/contract/test_every_setting.py through the command.

RESTORE_LAB_CASES is how many for each verb, "all" for all that the annotations take.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from restore_lab.cli.main import main
from restore_lab.config.kinds import Mismatch, coerce
from tests.helpers.configs import few_photos, small
from tests.helpers.settings import VALUES, VERBS, kinds

SECONDS = 120
CASES = os.environ.get("RESTORE_LAB_CASES", "12")
SKIPPED = ("demo", "dashboard")  # a server that waits, and an account
FAILED = {"diff": (1,), "doctor": (1,), "table": (1,)}  # what these found: a difference, something missing


def words(verb: str, prior: Path, folder: Path) -> list[str]:
    """The command at its smallest."""
    method = [word for word in small(prior) if word.partition(".")[0] in ("backbone", "adaptor", "sampler")]
    photos = [word for word in few_photos() if "eval_data" in word]
    quick = {
        "train": [*small(prior), "max_steps=1", "progress=false", "trainer.accelerator=cpu", "pictures=0"],
        "restore": [*method, "input=photo.png", "weights=null", "device=cpu", "sampler.progress=false"],
        "evaluate": [*method, *photos, "weights=null", "metrics=fidelity", "device=cpu", "progress=false"],
        "describe": [*method, "flops=false"],
        "diff": [*method, *photos, "weights=null", "b='sampler.steps=1'", "device=cpu"],
        "doctor": [*method, "method=spire", "weights=null"],
        "export": [*method, "method=controlnet"],
        "import": ["files=photo.png"],
        "caption": ["input=photo.png", "prompt.semantic.captioner.model=none/here"],
        "data": [f"backbone.path={prior}", "output=made", "count=1", "crop=16", "sampler.steps=1", "device=cpu"],
        "report": ["table=spire/table6"],
        "table": ["table=spire/table6", "plan=true"],
    }
    return [*quick[verb], *([f"runs_dir={folder}/runs"] if verb not in ("data",) else []), "seed=0"]


def cases(verb: str) -> list[tuple[str, str]]:
    """Settings and typed values that their annotations take, or whose parts say no more."""
    found = []
    for place, kind in kinds(verb).items():
        for typed, value in VALUES.items():
            try:
                coerce(value, Any if kind is None else kind)
            except Mismatch:
                continue
            found.append((place, typed))
    return found if CASES == "all" else random.Random(verb).sample(found, min(int(CASES), len(found)))


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in SKIPPED])
def test_a_typed_value_works_or_is_refused_in_one_line(verb, toy_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((24, 20), 60).convert("RGB").save("photo.png")
    signal.signal(signal.SIGALRM, _late)
    bugs = []
    for number, (place, typed) in enumerate(cases(verb)):
        own = [word for word in words(verb, toy_folder, tmp_path / str(number)) if not word.startswith(f"{place}=")]
        code = ended(["restore-lab", verb, *own, f"{place}={typed}"], monkeypatch)
        said = capsys.readouterr().err
        last = (said.strip().splitlines() or [""])[-1].split("\r")[-1].strip()
        if code not in (0, 2, *FAILED.get(verb, ())) or (code == 2 and not last.startswith("restore-lab: ")):
            bugs.append(f"{verb} {place}={typed}: {code}: {last[-300:]}")
    assert not bugs, "\n".join(bugs)


def ended(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """How a command ends: its exit code, or what it raised."""
    monkeypatch.setattr("sys.argv", typed)
    signal.alarm(SECONDS)
    try:
        main()
    except SystemExit as stop:
        return stop.code
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({_where(error)})"
    finally:
        signal.alarm(0)
    return 0


def _where(error: BaseException) -> str:
    """The last line of the package that an error went through."""
    places, trace = [""], error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        places += [f"{file.name}:{trace.tb_lineno}"] if "restore_lab" in file.parts else []
        trace = trace.tb_next
    return places[-1]


def _late(number: int, frame: object) -> None:
    raise TimeoutError(f"no end within {SECONDS} s")
