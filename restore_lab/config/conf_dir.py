"""Where the configs are: in the package in an installed wheel (restore_lab/conf), beside it in a checkout (conf/)."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The absolute folder of the shipped configs, whatever the working directory.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no configs in {package / 'conf'} or {package.parent / 'conf'}; reinstall restore_lab")


def experiments_dir(folder: Path) -> Path:
    """Where a config folder has the options of `experiment`: beside the shipped configs, inside any other folder."""
    return folder.parent / "experiments" if folder == conf_dir() else folder / "experiment"
