"""A ControlNet of the LQ (Zhang et al. 2023): the baseline that SPIRE, SUPIR and DRA compare with.

Trunk: adaptors/trunk. Zero convolutions: adaptors/fusion/zero_conv.py. conf/method/controlnet.yaml chooses these parts.
"""

from __future__ import annotations

from restore_lab.methods.module import RestorationModule


class ControlNet(RestorationModule):
    """A control trunk that reads the LQ, joined to the prior by zero convolutions."""
