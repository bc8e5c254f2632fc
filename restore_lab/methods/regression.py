"""Regression: the ControlNet's trunk and fusion trained to predict x0 in one step, for what diffusion adds.

The objective is objectives/denoising.py's at the last timestep only. conf/method/regression.yaml chooses these parts.
"""

from __future__ import annotations

from restore_lab.methods.module import RestorationModule


class Regression(RestorationModule):
    """A ControlNet whose one step from the last timestep gives the clean latent."""
