"""LQ and HQ images of the same scenes in two folders (or one), paired by a rule.

A rule maps the LQ and HQ names (paths below their folders) to one `Pair` per LQ: `SameStem`, `RegexStem` (several LQ
may share an HQ, as in RESIDE: 0364_0.85_0.12 -> 0364), `SuffixStem` (a_rain -> a_clean; both may be in one folder) or
`PairManifest` (a CSV or JSONL with the columns lq, hq and optionally caption). The key is the LQ's path without suffix.
An LQ of another size is resized to its HQ (bicubic). Selected by `data=paired data.lq=... data.hq=...
data/rule=same_stem`.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from restore_lab.config.validate import check_arguments
from restore_lab.data.image_io import MAX_PIXELS, Header, read_header, read_image, resize_image
from restore_lab.data.sources.captions import FolderCaptions
from restore_lab.data.sources.folder import keys_of, list_images
from restore_lab.storage.foreign import bytes_of, json_lines
from restore_lab.storage.walk import head
from restore_lab.types import Picture

log = logging.getLogger(__name__)
Unmatched = Literal["skip", "keep", "error"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Names below the LQ and HQ folders; `hq` is None for an unmatched LQ, `hq_stem` the stem of the expected HQ."""

    lq: str
    hq: str | None
    caption: str = ""
    hq_stem: str = ""


class PairingRule(Protocol):
    """Maps names below the LQ and HQ folders to pairs, at most one per LQ, in the LQ's order."""

    def __call__(self, lq_names: Sequence[str], hq_names: Sequence[str]) -> list[Pair]: ...


class SameStem:
    """`a/001.jpg` with `a/001.png`."""

    def __call__(self, lq_names: Sequence[str], hq_names: Sequence[str]) -> list[Pair]:
        return pair_by_stem(lq_names, hq_names, hq_stem=lambda stem: stem)


class RegexStem:
    """The HQ's stem is the LQ's with `pattern` replaced (`re.sub` on the path below the folder, without suffix)."""

    def __init__(self, pattern: str, *, replacement: str) -> None:
        """Compile the pattern, such as `_[0-9.]+_[0-9.]+$` with the replacement "" for RESIDE.

        Raises:
            ValueError: it is not a regular expression.
        """
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern={pattern!r}: not a regular expression ({error})") from error
        self._replacement = replacement

    def __call__(self, lq_names: Sequence[str], hq_names: Sequence[str]) -> list[Pair]:
        return pair_by_stem(lq_names, hq_names, hq_stem=lambda stem: self._pattern.sub(self._replacement, stem))


class SuffixStem:
    """An LQ stem that ends in `lq` pairs with the stem that ends in `hq` instead; other LQ names are ignored."""

    def __init__(self, *, lq: str, hq: str) -> None:
        self._lq = lq
        self._hq = hq

    def __call__(self, lq_names: Sequence[str], hq_names: Sequence[str]) -> list[Pair]:
        matching = [name for name in lq_names if _stem(name).endswith(self._lq)]
        return pair_by_stem(matching, hq_names, hq_stem=lambda stem: stem.removesuffix(self._lq) + self._hq)


class PairManifest:
    """Pairs from a CSV (with a header) or JSONL file; names are relative to the LQ and HQ folders."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser()

    def __call__(self, lq_names: Sequence[str], hq_names: Sequence[str]) -> list[Pair]:
        """Read the file; the listed names are ignored, and a missing image is a bad file when it is read.

        Raises:
            ValueError: the file is missing, malformed, or a row has no lq.
        """
        pairs = []
        for number, row in enumerate(self._rows(), start=1):
            if not isinstance(row, dict) or not row.get("lq"):
                raise ValueError(
                    f"{self._path}: row {number} has no lq; expected the columns lq, hq and perhaps caption"
                )
            pairs.append(Pair(lq=row["lq"], hq=row.get("hq") or None, caption=row.get("caption") or ""))
        if not pairs:
            raise ValueError(f"{self._path}: lists no pairs; expected the columns lq, hq and perhaps caption")
        return pairs

    def _rows(self) -> list[dict[str, str]]:
        try:
            text = bytes_of(self._path).decode("utf-8-sig")
            if self._path.suffix == ".jsonl":
                return json_lines(text, name=self._path.name)
            return list(csv.DictReader(text.splitlines()))
        except (OSError, ValueError, csv.Error) as error:
            raise ValueError(f"{self._path}: not a readable manifest ({error}); expected CSV or JSONL") from error


@check_arguments
class PairedSource:
    """Pairs of LQ and HQ images."""

    def __init__(
        self,
        *,
        lq: str | Path,
        hq: str | Path | None,
        rule: PairingRule,
        recursive: bool = True,
        captions: str | Path | None = "auto",
        unmatched: Unmatched = "skip",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Pair the names, without decoding any image.

        Args:
            lq: folder of the degraded images.
            hq: folder of the clean images; None for LQ images only.
            rule: how names pair.
            recursive: whether to include subfolders.
            captions: "auto" (of the HQ, else of the LQ), None, or the path of a table.
            unmatched: whether to skip an LQ without HQ ("skip"), keep it without HQ ("keep"), or raise ("error").
            max_pixels: larger images count as bad files.

        Raises:
            ValueError: no names pair, or a folder or table is missing or malformed.
        """
        self._lq = Path(lq).expanduser()
        self._hq = Path(hq).expanduser() if hq is not None else None
        self._max_pixels = max_pixels
        lq_names = _listed(self._lq, recursive=recursive)
        hq_names = _listed(self._hq, recursive=recursive) if self._hq is not None else []
        pairs = rule(lq_names, hq_names) if self._hq is not None else [Pair(lq=name, hq=None) for name in lq_names]
        self._pairs = self._choose(pairs, hq_names=hq_names, unmatched=unmatched) if self._hq is not None else pairs
        self._keys = keys_of(pair.lq for pair in self._pairs)
        folders = [folder for folder in (self._hq, self._lq) if folder is not None]
        self._captions = [FolderCaptions(folder, table=captions) for folder in folders]

    def __len__(self) -> int:
        return len(self._pairs)

    def keys(self) -> list[str]:
        """One key per pair, from the LQ's name."""
        return list(self._keys)

    def header(self, index: int) -> Header:
        """The size of a pair's HQ (of its LQ if there is no HQ), without decoding it.

        Raises:
            BadImage: the file cannot be read.
        """
        pair = self._pairs[index]
        if self._hq is None or pair.hq is None:
            return read_header(self._lq / pair.lq)
        return read_header(self._hq / pair.hq)

    def read(self, index: int, *, epoch: int = 0) -> Picture:
        """Decode both images; `epoch` is ignored.

        Raises:
            BadImage: one of them cannot be read.
        """
        pair = self._pairs[index]
        lq_HWC = read_image(self._lq / pair.lq, max_pixels=self._max_pixels)
        hq_HWC = None
        if self._hq is not None and pair.hq is not None:
            hq_HWC = read_image(self._hq / pair.hq, max_pixels=self._max_pixels)
            lq_HWC = resize_image(lq_HWC, height=hq_HWC.shape[0], width=hq_HWC.shape[1])
        return Picture(hq_HWC=hq_HWC, lq_HWC=lq_HWC, caption=pair.caption or self._caption(pair), key=self._keys[index])

    def _caption(self, pair: Pair) -> str:
        names = [pair.hq, pair.lq] if self._hq is not None else [pair.lq]
        folders = [self._hq, self._lq] if self._hq is not None else [self._lq]
        for captions, folder, name in zip(self._captions, folders, names, strict=True):
            caption = captions.of(folder / name) if folder is not None and name is not None else ""
            if caption:
                return caption
        return ""

    def _choose(self, pairs: list[Pair], *, hq_names: Sequence[str], unmatched: Unmatched) -> list[Pair]:
        matched = [pair for pair in pairs if pair.hq is not None]
        alone = [pair for pair in pairs if pair.hq is None]
        wanted = [f"{pair.lq} (looked for {pair.hq_stem})" if pair.hq_stem else pair.lq for pair in alone]
        if not matched or (alone and unmatched == "error"):
            seen = f"the HQ folder has {head(hq_names)}" if wanted else "the rule took none of the LQ names"
            raise ValueError(
                f"{self._lq}: {len(alone)} LQ without a HQ in {self._hq}: {head(wanted)}; {seen}; check the rule"
            )
        if alone:
            verb = "kept without" if unmatched == "keep" else "left out for want of"
            log.warning("%s: %d of %d LQ %s a HQ: %s", self._lq, len(alone), len(pairs), verb, head(wanted))
        if self._hq is not None:
            _, idle = unmatched_names(matched, [], hq_names, lq=self._lq, hq=self._hq)
            if idle:
                log.warning("%s: %d of %d HQ without an LQ: %s", self._hq, len(idle), len(hq_names), head(idle))
        return pairs if unmatched == "keep" else matched


def pair_by_stem(lq_names: Sequence[str], hq_names: Sequence[str], *, hq_stem: Callable[[str], str]) -> list[Pair]:
    """Pair each LQ with the HQ whose path without suffix is `hq_stem` of its own.

    Raises:
        ValueError: two HQ files have the stem of an LQ's HQ.
    """
    by_stem: dict[str, list[str]] = {}
    whole = set(hq_names)  # restored from a.png and a.jpg: a.png.png and a.jpg.png
    for name in hq_names:
        by_stem.setdefault(_stem(name), []).append(name)
    pairs = []
    for name in lq_names:
        stem = hq_stem(_stem(name))
        found = by_stem.get(stem) or ([stem] if stem in whole else [])
        if len(found) > 1:
            raise ValueError(
                f"{name}: {len(found)} HQ files fit ({', '.join(found)}); keep one, or list pairs in a manifest"
            )
        pairs.append(Pair(lq=name, hq=found[0] if found else None, hq_stem=stem))
    return pairs


def unmatched_names(
    pairs: Sequence[Pair], lq_names: Sequence[str], hq_names: Sequence[str], *, lq: Path, hq: Path
) -> tuple[list[str], list[str]]:
    """The LQ names and the HQ names in no complete pair, on either side: both may be in one folder."""
    used = {
        os.path.abspath(folder / name) for pair in pairs if pair.hq for folder, name in ((lq, pair.lq), (hq, pair.hq))
    }
    return (
        [name for name in lq_names if os.path.abspath(lq / name) not in used],
        [name for name in hq_names if os.path.abspath(hq / name) not in used],
    )


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _listed(folder: Path, *, recursive: bool) -> list[str]:
    images = list_images(folder, recursive=recursive)
    images.report()
    return images.names
