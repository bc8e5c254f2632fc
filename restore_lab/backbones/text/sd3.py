"""The three frozen text encoders of SD3 and SD3.5, any of which may be absent (Esser et al., section 5.3 and App. B.3).

Two CLIP towers, their penultimate states side by side and filled with zeros to T5's width; behind them in the sequence
T5's tokens. The pooled vector is both towers' projections. An absent encoder says zeros, as in SD3's own training.
Shapes: tokens (B, L + L_t5, D), pooled (B, P). Equal to diffusers' StableDiffusion3Pipeline.encode_prompt on the same
text. Selected by the `text_encoder*` folders of `backbone.path`, less those of `backbone.without`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.backbones.text.clip import TextEncoder, device_of

CLIP_LENGTH = 77


class TripleTextEncoder(TextEncoder):
    """Texts in, tokens and pooled vectors out, remembered as in `TextEncoder`.

    Args:
        clips: the two CLIP towers with projection, None for an absent one.
        clip_tokenizers: theirs, None likewise (or all None on the meta device).
        t5: a T5 encoder, None if absent.
        t5_tokenizer: its tokenizer.
        width: of a token as the transformer reads it.
        pooled: width of the pooled vector as the transformer reads it.
        t5_length: T5's tokens; so many zeros if it is absent (diffusers' `max_sequence_length`).
        first_width: width of the first tower's tokens, which tells where the second's stand if it is absent.
        cache_bytes: memory that remembered texts may take.
        disk: where they are kept across runs; None for nowhere.
    """

    def __init__(
        self,
        *,
        clips: Sequence[Any],
        clip_tokenizers: Sequence[Any],
        t5: Any,
        t5_tokenizer: Any,
        width: int,
        pooled: int,
        t5_length: int,
        first_width: int,
        cache_bytes: int,
        disk: DiskCache | None = None,
    ) -> None:
        super().__init__(
            encoders=[clip for clip in clips if clip is not None],
            tokenizers=[one for one in clip_tokenizers if one is not None],
            penultimate=True,
            cache_bytes=cache_bytes,
            disk=disk,
        )
        self.present = [clip is not None for clip in clips]
        self.t5, self.t5_tokenizer = t5, t5_tokenizer
        self.width, self.pooled, self.t5_length, self.first_width = width, pooled, t5_length, first_width

    def _settings(self) -> list[int]:
        """Which encoders there are counts, and how long T5's part is."""
        present = [int(there) for there in (*self.present, self.t5 is not None)]
        return [*present, self.width, self.pooled, self.t5_length, self.first_width]

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Tokens and pooled vectors of texts encoded together."""
        states, pooled = [], []
        for index, encoder in enumerate(self.encoders):
            ids_BL, _ = self._ids(texts, index, says=not self._t5_reads_on)
            out = encoder(ids_BL, output_hidden_states=True)
            states.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        if not self.present[0]:  # zeros before the second
            like = states[0] if states else torch.zeros(len(texts), CLIP_LENGTH, 0, device=self._device())
            states.insert(0, like.new_zeros(*like.shape[:2], self.first_width))
            rest = self.pooled - sum(p.shape[-1] for p in pooled)
            pooled.insert(0, like.new_zeros(len(texts), rest))
        clip_BLD, pooled_BD = torch.cat(states, dim=-1), torch.cat(pooled, dim=-1)
        pooled_BD = F.pad(pooled_BD, (0, self.pooled - pooled_BD.shape[-1]))
        clip_BLD = F.pad(clip_BLD, (0, self.width - clip_BLD.shape[-1]))
        return torch.cat([clip_BLD, self._t5_tokens(texts, clip_BLD)], dim=1), pooled_BD

    def _t5_tokens(self, texts: Sequence[str], like_BLD: Tensor) -> Tensor:
        """T5's tokens, or zeros."""
        if self.t5 is None or self.t5_length == 0:
            return like_BLD.new_zeros(len(texts), self.t5_length, self.width)
        if self.t5_tokenizer is None:  # the meta device
            ids_BL = torch.zeros(len(texts), self.t5_length, dtype=torch.long, device=like_BLD.device)
        else:
            ids_BL = self._cut(self.t5_tokenizer, texts, self.t5_length, says=self._t5_reads_on).input_ids
            ids_BL = ids_BL.to(like_BLD.device)
        return self.t5(ids_BL)[0].to(like_BLD.dtype)

    @property
    def _t5_reads_on(self) -> bool:
        """Whether T5 reads what is beyond CLIP's tokens: then what T5 leaves out nobody reads."""
        return self.t5 is not None and self.t5_length > CLIP_LENGTH

    def _device(self) -> torch.device:
        held = self.t5 if self.t5 is not None else next(iter(self.encoders), None)
        return device_of(held) if held is not None else torch.device("cpu")
