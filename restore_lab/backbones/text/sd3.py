"""The three frozen text encoders of SD3 and SD3.5, any of which may be absent (Esser et al., section 5.3 and App. B.3).

The penultimate states of two CLIP encoders are concatenated and zero-padded to T5's width; T5's tokens follow in the
sequence. The pooled vector concatenates both CLIP projections. The outputs of an absent encoder are zeros, as in SD3's
training. Shapes: tokens (B, L + L_t5, D), pooled (B, P). Equal to diffusers' StableDiffusion3Pipeline.encode_prompt on
the same text. Selected by the `text_encoder*` folders of `backbone.path`, without those in `backbone.without`.
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
    """Token and pooled text embeddings, with the caches of `TextEncoder`.

    Args:
        clips: the two CLIP text models with projection; None for an absent one.
        clip_tokenizers: their tokenizers; None for an absent model, and all None on the meta device.
        t5: the T5 encoder; None if absent.
        t5_tokenizer: T5's tokenizer.
        width: width of the transformer's text tokens.
        pooled: width of the transformer's pooled text.
        t5_length: number of T5 tokens (diffusers' `max_sequence_length`); zeros without T5.
        first_width: width of the first CLIP model's tokens, zeros if it is absent.
        cache_bytes: maximum size of the cache in memory; 0 for none.
        disk: cache across runs; None for none.
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
        """The encoders present, the widths, and the number of T5 tokens."""
        present = [int(there) for there in (*self.present, self.t5 is not None)]
        return [*present, self.width, self.pooled, self.t5_length, self.first_width]

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Tokens and pooled vectors of texts encoded together."""
        states, pooled = [], []
        for index, encoder in enumerate(self.encoders):
            ids_BL, _ = self._ids(texts, index, warn=not self._t5_is_longer)
            out = encoder(ids_BL, output_hidden_states=True)
            states.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        if not self.present[0]:  # zeros before the second model's tokens
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
            ids_BL = self._tokenize(self.t5_tokenizer, texts, self.t5_length, warn=self._t5_is_longer).input_ids
            ids_BL = ids_BL.to(like_BLD.device)
        return self.t5(ids_BL)[0].to(like_BLD.dtype)

    @property
    def _t5_is_longer(self) -> bool:
        """Whether T5 reads more tokens than CLIP; then only text that T5 truncates is lost."""
        return self.t5 is not None and self.t5_length > CLIP_LENGTH

    def _device(self) -> torch.device:
        encoder = self.t5 if self.t5 is not None else next(iter(self.encoders), None)
        return device_of(encoder) if encoder is not None else torch.device("cpu")
