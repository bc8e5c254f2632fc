"""SPIRE (Qi et al., ECCV 2024): restoration controlled by two prompts, what is in the picture and how to restore it.

3.2 text-driven restoration: methods/module.py (the loss), samplers/guidance.py. 3.3 semantic and restoration prompts:
prompts/semantic.py, prompts/instruction.py. 3.4 control: adaptors/control.py, adaptors/hint_net.py, the fusion in
adaptors/fusion/modulation.py. 4.1 data: degradation/parameterized.py. conf/method/spire.yaml chooses these parts.
"""

from __future__ import annotations

from restore_lab.methods.module import RestorationModule


class SPIRE(RestorationModule):
    """A frozen prior reads the semantic prompt, a control trunk the restoration prompt and the LQ."""
