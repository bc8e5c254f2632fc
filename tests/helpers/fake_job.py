"""A fake `restore-lab train` for the tests of tables: makes one artefact at once, with a child process.

    python tests/helpers/fake_job.py <folder> <identity> <seconds> [fail]

Appends "begun" and "made" to <folder>/../history; the process beside it sleeps long and ends with its group alone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from restore_lab.storage.artefact import Manifest, is_complete
from restore_lab.storage.locks import lock


def note(folder: Path, text: str) -> None:
    with open(folder.parent / "history", "a", encoding="utf-8") as file:
        file.write(f"{text} {folder.name}\n")


def main() -> None:
    folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    with lock(folder):
        if is_complete(folder, identity=name):
            return
        note(folder, "begun")
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", str(folder)])
        time.sleep(seconds)
        if "fail" in sys.argv:
            raise SystemExit("this job fails")
        Manifest(identity=name, kind="fake", code="").write(folder)
        note(folder, "made")


if __name__ == "__main__":
    main()
