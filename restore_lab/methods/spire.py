"""SPIRE (Qi et al., ECCV 2024): restoration with a semantic prompt (what the image shows) and a restoration prompt.

3.1 loss (Eq. 1): objectives/denoising.py, methods/module.py; guidance: samplers/guidance.py. 3.2 and 3.3 semantic and
restoration prompts (Eq. 2): prompts/semantic.py, prompts/instruction.py. 3.4 control: adaptors/control.py,
adaptors/hint_net.py, the modulation fusion in adaptors/fusion/modulation.py. 4.1 data: degradation/parameterized.py.
conf/method/spire.yaml selects the parts.
"""

from __future__ import annotations

from restore_lab.methods.module import RestorationModule


class SPIRE(RestorationModule):
    """A frozen prior that reads the semantic prompt, and a control trunk that reads restoration prompt and LQ."""
