"""A ControlNet of the LQ (Zhang et al. 2023): the baseline of SPIRE, SUPIR and DRA.

Trunk: adaptors/trunk. Zero convolutions: adaptors/fusion/zero_conv.py. conf/method/controlnet.yaml selects the parts.
"""

from __future__ import annotations

from restore_lab.methods.module import RestorationModule


class ControlNet(RestorationModule):
    """A control trunk that reads the LQ, with zero convolutions into the prior."""
