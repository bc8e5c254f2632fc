"""Where the configs are: `restore_lab/conf` in an installed wheel, `conf/` beside the package in a checkout."""

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
