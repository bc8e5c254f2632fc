"""The config folder: inside the package in a wheel (restore_lab/conf), next to it in a checkout (conf/)."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The absolute path of the shipped configs, for any working directory.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no configs in {package / 'conf'} or {package.parent / 'conf'}; reinstall restore_lab")


def experiments_dir(folder: Path) -> Path:
    """The folder of the `experiment` options: next to the shipped configs, inside any other config folder."""
    return folder.parent / "experiments" if folder == conf_dir() else folder / "experiment"
