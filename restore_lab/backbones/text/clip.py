"""The frozen text encoders of a UNet prior.

SD 1.5, SD 2.1 and tiny_sd: one CLIP text model, its last hidden state after the final norm. SDXL: two, their
penultimate hidden states side by side, and the pooled projection of the second (Podell et al., arXiv 2307.01952,
section 2.1). Shapes: tokens (B, L, D), pooled (B, D) or None. Equal to diffusers' `encode_prompt` on the same text.
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
    """Texts in, tokens out, remembered.

    What is remembered is encoded text by text: a matrix product may differ in its last bit with the size of the batch,
    and a remembered value must not depend on which texts came together, or a resumed run would differ from an unbroken
    one. Without a memory (cache_bytes 0) a batch is encoded at once, which is faster where texts never come twice.

    Args:
        encoders: one or two CLIP text models.
        tokenizers: as many tokenizers, or none (on the meta device, where only shapes count).
        penultimate: SDXL's reading (penultimate states, pooled projection) instead of the last state after the norm.
        cache_bytes: memory that remembered texts may take; 0 remembers nothing.
        disk: where they are kept across runs; None for nowhere.
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
        self.remembers = cache_bytes > 0 or disk is not None
        self.disk = disk
        self.said = False  # that a text was too long
        self.cache = TensorLRU(max_bytes=cache_bytes)
        self.home = torch.device("cpu")  # where the encoders say what they say

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L, D) and, for SDXL, the pooled vector (B, D).

        An empty string is a text like any other (SDXL's pipelines may put zeros there; its training did not).

        Raises:
            ValueError: for no texts, or one text given as a bare string.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts must be a non-empty sequence of strings, one per image; got {texts!r}")
        if not self.remembers:
            encoded = self._encode(texts)
            return encoded[0], encoded[1] if self.penultimate else None
        rows = {text: self._remembered(text) for text in dict.fromkeys(texts)}
        tokens_BLD = torch.cat([rows[text][0] for text in texts]).to(self.home)
        pooled_BD = torch.cat([rows[text][1] for text in texts]).to(self.home) if self.penultimate else None
        return tokens_BLD, pooled_BD

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        """A move to another device or dtype makes what is remembered stale."""
        self.cache.clear()
        return super()._apply(fn, recurse)

    def _remembered(self, text: str) -> tuple[Tensor, ...]:
        found = self.cache.get(text)
        if found is None:
            if self.disk is not None and next(self.parameters(), None) is not None:
                found = self.disk.of(["text", text, self._settings()], self, lambda: self._encode([text]))
            else:
                found = self._encode([text])
            self.home = found[0].device
            found = tuple(to_host(tensor) for tensor in found)
        self.cache.put(text, found)
        return found

    def _settings(self) -> list[int]:
        """What an embedding depends on besides the text and the encoders."""
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

    def _ids(self, texts: Sequence[str], index: int, *, says: bool = True) -> tuple[Tensor, Tensor | None]:
        """Token numbers padded to the tokenizer's length, and the attention mask where the config asks for one."""
        config, device = self.encoders[index].config, device_of(self.encoders[index])
        if not self.tokenizers:
            shape = (len(texts), config.max_position_embeddings)
            return torch.zeros(shape, dtype=torch.long, device=device), None
        tokenizer = self.tokenizers[index]
        out = self._cut(tokenizer, texts, tokenizer.model_max_length, says=says and index == 0)
        mask_BL = out.attention_mask.to(device) if getattr(config, "use_attention_mask", False) else None
        return out.input_ids.to(device), mask_BL

    def _cut(self, tokenizer: Any, texts: Sequence[str], length: int, *, says: bool) -> Any:
        """Texts as tokens, all of one length; where it `says`, the first that is longer is named."""
        if says and not self.said:
            whole = tokenizer(list(texts), verbose=False).input_ids
            long = next((text for text, ids in zip(texts, whole, strict=True) if len(ids) > length), None)
            if long is not None:
                self.said = True
                log.warning(
                    "text is longer than the encoder's %d tokens, its end is ignored: %r (more like it are not named)",
                    length,
                    long,
                )
        return tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def device_of(module: nn.Module) -> torch.device:
    """Where a module's inputs belong: where its weights are or, offloaded by accelerate, where they come to."""
    for part in module.modules():
        place = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if place is not None:
            return torch.device(place)
    return next(module.parameters()).device
