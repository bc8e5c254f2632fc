"""The frozen text encoders of a UNet prior.

SD 1.5, SD 2.1 and tiny_sd: the last hidden state of one CLIP text model, after the final norm. SDXL: the concatenated
penultimate hidden states of two, and the second's pooled projection (Podell et al., arXiv 2307.01952, section 2.1).
Shapes: tokens (B, L, D), pooled (B, D) or None. Equal to diffusers' `encode_prompt` on the same text.
Selected by the `text_encoder*` and `tokenizer*` folders of `backbone.path`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from restore_lab.backbones.disk_cache import DiskCache
from restore_lab.backbones.lru import TensorLRU
from restore_lab.system.xla import to_host

log = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """Text embeddings with a cache.

    With a cache, texts are encoded one by one: the last bit of a matrix product can depend on the batch size, and
    cached embeddings must not depend on the batch, or a resumed run would differ from an uninterrupted one. Without a
    cache a batch is encoded together, which is faster for texts that do not repeat.

    Args:
        encoders: one or two CLIP text models.
        tokenizers: one tokenizer per encoder, or none on the meta device.
        penultimate: SDXL's embedding (penultimate states, pooled projection) instead of the last state after the norm.
        cache_bytes: maximum size of the cache in memory; 0 for none.
        disk: cache across runs; None for none.
    """

    def __init__(
        self,
        *,
        encoders: Sequence[CLIPTextModel | CLIPTextModelWithProjection],
        tokenizers: Sequence[PreTrainedTokenizerBase],
        penultimate: bool,
        cache_bytes: int = 256 * 2**20,
        disk: DiskCache | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.tokenizers = list(tokenizers)
        self.penultimate = penultimate
        self.uses_cache = cache_bytes > 0 or disk is not None
        self.disk = disk
        self.warned = False  # about a truncated text
        self.cache = TensorLRU(max_bytes=cache_bytes)
        self.home = torch.device("cpu")  # device of the encoders' outputs

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L, D) and, for SDXL, the pooled vector (B, D).

        An empty string is encoded like any other text, as in SDXL's training; its pipelines may use zeros instead.

        Raises:
            ValueError: for no texts, or one text given as a bare string.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts must be a non-empty sequence of strings, one per image; got {texts!r}")
        if not self.uses_cache:
            encoded = self._encode(texts)
            return encoded[0], encoded[1] if self.penultimate else None
        rows = {text: self._cached(text) for text in dict.fromkeys(texts)}
        tokens_BLD = torch.cat([rows[text][0] for text in texts]).to(self.home)
        pooled_BD = torch.cat([rows[text][1] for text in texts]).to(self.home) if self.penultimate else None
        return tokens_BLD, pooled_BD

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        """Clear the cache on a move to another device or dtype."""
        self.cache.clear()
        return super()._apply(fn, recurse)

    def _cached(self, text: str) -> tuple[Tensor, ...]:
        tensors = self.cache.get(text)
        if tensors is None:
            if self.disk is not None and next(self.parameters(), None) is not None:
                tensors = self.disk.get(["text", text, self._settings()], self, lambda: self._encode([text]))
            else:
                tensors = self._encode([text])
            self.home = tensors[0].device
            tensors = tuple(to_host(tensor) for tensor in tensors)
        self.cache.put(text, tensors)
        return tensors

    def _settings(self) -> list[int]:
        """The settings that an embedding depends on, besides text and encoders."""
        return [int(self.penultimate)]

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Tokens (B, L, D) and, for SDXL, the pooled vector (B, D), of texts encoded together."""
        states, pooled = [], None
        for index, encoder in enumerate(self.encoders):
            ids_BL, mask_BL = self._ids(texts, index)
            out = encoder(ids_BL, attention_mask=mask_BL, output_hidden_states=self.penultimate)
            states.append(out.hidden_states[-2] if self.penultimate else out.last_hidden_state)
            pooled = out.text_embeds if isinstance(encoder, CLIPTextModelWithProjection) else pooled
        tokens_BLD = torch.cat(states, dim=-1)
        if not self.penultimate:
            return (tokens_BLD,)
        if pooled is None:
            raise ValueError("an SDXL-like prior needs a CLIPTextModelWithProjection among its text encoders")
        return tokens_BLD, pooled

    def _ids(self, texts: Sequence[str], index: int, *, warn: bool = True) -> tuple[Tensor, Tensor | None]:
        """Token ids padded to the tokenizer's length, and the attention mask if the config requires one."""
        encoder: Any = self.encoders[index]
        config, device = encoder.config, device_of(encoder)
        if not self.tokenizers:
            shape = (len(texts), config.max_position_embeddings)
            return torch.zeros(shape, dtype=torch.long, device=device), None
        tokenizer = self.tokenizers[index]
        out = self._tokenize(tokenizer, texts, tokenizer.model_max_length, warn=warn and index == 0)
        mask_BL = out.attention_mask.to(device) if getattr(config, "use_attention_mask", False) else None
        return out.input_ids.to(device), mask_BL

    def _tokenize(self, tokenizer: Any, texts: Sequence[str], length: int, *, warn: bool) -> Any:
        """The texts' tokens, padded or truncated to `length`; with `warn`, the first truncated text is logged."""
        if warn and not self.warned:
            whole = tokenizer(list(texts), verbose=False).input_ids
            long = next((text for text, ids in zip(texts, whole, strict=True) if len(ids) > length), None)
            if long is not None:
                self.warned = True
                log.warning(
                    "text is longer than the encoder's %d tokens, its end is ignored: %r (more like it are not named)",
                    length,
                    long,
                )
        return tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def device_of(module: nn.Module) -> torch.device:
    """The device for a module's inputs: its weights', or accelerate's execution device for offloaded weights."""
    for part in module.modules():
        place = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if place is not None:
            return torch.device(place)
    return next(module.parameters()).device
