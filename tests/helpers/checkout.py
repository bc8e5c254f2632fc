"""The checkout's folders."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "restore_lab"
CONF = ROOT / "conf"
