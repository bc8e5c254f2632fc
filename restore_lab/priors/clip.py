"""tiny_clip: image and text towers in CLIPModel format, trained contrastively on captioned images.

The loss is CLIP's symmetric InfoNCE (Radford et al. 2021, Fig. 3) with a learned temperature; images of a batch with
the same caption are not negatives of each other but equal targets. The tokenizer is a byte-level BPE in CLIPTokenizer's
format, trained on captions and restoration instructions; digits are never merged, so a number is a sequence of digits.
Selected by `experiment=priors/tiny_clip`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from restore_lab.methods.trainable import Trainable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import CLIPTokenizer

    from restore_lab.types import Batch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int) -> CLIPTokenizer:
    """A CLIPTokenizer with merges learned from texts; every byte is in the vocabulary, so no text has unknown tokens.

    Raises:
        ValueError: for a vocabulary too small for all bytes.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges_room = vocab_size - 2 * len(alphabet) - 2
    if merges_room < 0:
        raise ValueError(f"vocab_size={vocab_size} is too small; bytes, bytes at a word's end and two marks need 514")
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) * 2 + merges_room,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = _merges(learner)[:merges_room]
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(pair) for pair in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def _merges(learner: Tokenizer) -> list[Any]:
    """The merges of a trained tokenizer, in order, each a pair of strings."""
    import json

    raw = json.loads(learner.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in raw]


def sample_instructions(*, count: int, seed: int) -> list[str]:
    """Random restoration instructions in the wording of SPIRE, Table 2, to train the tokenizer."""
    from restore_lab.random import rng
    from restore_lab.types import REMOVE_ALL

    r = rng("instructions", seed)
    lines = [REMOVE_ALL] * (count // 20)
    for _ in range(count):
        lines.append(
            f"Deblur with sigma {r.uniform(0.2, 3.0):.1f}; Upsample to {r.uniform(1, 7):.1f}x; "
            f"Denoise with sigma {r.uniform(0, 0.12):.2f}; Dejpeg with quality {r.integers(30, 93)}"
        )
    return lines


def same_caption(captions: Sequence[str]) -> Tensor:
    """1 where two images have the same caption, 0 elsewhere, (B, B)."""
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    number_B = torch.tensor([numbers[caption] for caption in captions])
    return (number_B[:, None] == number_B).float()


class ClipPretraining(Trainable):
    """Trains a CLIPModel from scratch.

    Args:
        captions: texts for the tokenizer's merges, to which SPIRE's instructions are added.
        vocab_size: number of tokens, at least 514.
        context_length: tokens per text, 77 in CLIP.
        image_size: side of the input in pixels.
        patch_size: side of a patch in pixels.
        width, layers, heads: of the image tower.
        text_width, text_layers, text_heads: of the text tower.
        projection: width of the joint embedding.
    """

    divisible = False  # the other images of the batch are the negatives

    def __init__(
        self,
        *,
        captions: Sequence[str],
        vocab_size: int,
        context_length: int,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        text_width: int,
        text_layers: int,
        text_heads: int,
        projection: int,
    ) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        texts = [*captions, *sample_instructions(count=len(captions) // 2, seed=0)]
        self.tokenizer = train_tokenizer(texts, vocab_size=vocab_size, max_length=context_length)
        text = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_heads,
            "max_position_embeddings": context_length,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        vision = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": image_size,
            "patch_size": patch_size,
        }
        self.image_size = image_size
        self.clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))

    def loss(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        """The symmetric cross-entropy over the batch's images and captions, and the accuracy of image to caption."""
        if batch.hq_BCHW is None:
            raise ValueError("tiny_clip learns from clean images; this data source gave none")
        mean, std = (batch.hq_BCHW.new_tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
        tokens = self.tokenizer(list(batch.caption), padding="max_length", truncation=True, return_tensors="pt")
        output = self.clip(
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            pixel_values=(batch.hq_BCHW - mean) / std,
        )
        logits = output.logits_per_image.float()
        same = same_caption(batch.caption).to(logits.device)
        target = same / same.sum(dim=1, keepdim=True)
        # CLIP, Fig. 3
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return {"loss": loss, "accuracy": same.gather(1, logits.argmax(1, keepdim=True)).mean()}

    def export(self, folder: Path) -> None:
        """Write a CLIPModel folder in half precision: weights, tokenizer, and the image processor's settings."""
        from transformers import CLIPImageProcessor

        self.clip.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        CLIPImageProcessor(
            size={"shortest_edge": self.image_size}, crop_size=self.image_size, image_mean=CLIP_MEAN, image_std=CLIP_STD
        ).save_pretrained(folder)
