"""Regression: the ControlNet's trunk and fusion, trained to predict x0 in one step, to measure what diffusion adds.

The objective is that of objectives/denoising.py at the last timestep. conf/method/regression.yaml selects the parts.
"""

from __future__ import annotations

from restore_lab.methods.module import RestorationModule


class Regression(RestorationModule):
    """A ControlNet that predicts the clean latent in one step from the last timestep."""
