"""SPIRE's degradation parameters as sliders, and the instruction that they compose."""

from __future__ import annotations

from restore_lab.types import REMOVE_ALL

# Phrase and range of each slider; the range starts at "off".
NUMBERS = {
    "Deblur: sigma in pixels": ("Deblur with sigma {:.1f}", 0.0, 3.0, 0.1),
    "Upsample: factor": ("Upsample to {:.1f}x", 1.0, 7.0, 0.1),
    "Denoise: sigma of [0, 1]": ("Denoise with sigma {:.2f}", 0.0, 0.12, 0.01),
    "Dejpeg: quality": ("Dejpeg with quality {:.0f}", 100.0, 30.0, 1.0),
}


def instruction(values: list[float]) -> str:
    """The instruction for the sliders' values, in order; with all off, the blind instruction.

    >>> instruction([2.4, 1.0, 0.06, 100])
    'Deblur with sigma 2.4; Denoise with sigma 0.06'
    >>> instruction([0, 1, 0, 100])
    'Remove all degradation'
    """
    pairs = zip(NUMBERS.values(), values, strict=True)
    return "; ".join(form.format(value) for (form, off, _, _), value in pairs if value != off) or REMOVE_ALL
