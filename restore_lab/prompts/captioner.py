"""Captions by a vision-language model: LLaVA (SUPIR's), InternVL, Qwen-VL, any image-text-to-text of transformers.

The model is loaded for the first image without a cached caption and freed by `unload()`, so that it need not share
memory with a prior. The cache is a folder with one file per caption, named by the hash of image, model, question and
settings. Tokens are sampled with noise seeded by the image's content, so that a caption does not depend on its batch.
Selected by `prompt/semantic=vlm` and `restore-lab caption`.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from restore_lab.config.kinds import BatchSize, Count, NonNegative, Range
from restore_lab.config.validate import check_arguments
from restore_lab.random import generator
from restore_lab.storage.atomic import write_json_atomic
from restore_lab.storage.foreign import check_model, json_of
from restore_lab.storage.identity import identity
from restore_lab.storage.paths import place_of
from restore_lab.system.processes import device as chosen
from restore_lab.system.quiet import silence_libraries

if TYPE_CHECKING:
    from torch import Tensor

ADVICE = {  # by the error that loading raised; for any other, the model is probably missing
    ImportError: "install what it needs (pip install restore-lab[quant] for captioner.bits)",
    ModuleNotFoundError: "install what it needs (pip install restore-lab[quant] for captioner.bits)",
    ValueError: "give another model",
    RuntimeError: "give it more memory (captioner.bits=4) or another device",
    SafetensorError: "copy its files again",
}


@check_arguments
class Captioner:
    """Captions images with a vision-language model, through a cache.

    Args:
        model: hub id or local folder of an image-text-to-text model with a chat template.
        question: the text prompt for each image.
        batch_size: images per generation.
        max_new_tokens: maximum length of a caption.
        temperature: of the sampling; 0 decodes greedily.
        top_p: nucleus sampling, from the likeliest tokens whose probabilities sum to this.
        bits: 4 or 8 for weights quantised by bitsandbytes; null for bfloat16 on a GPU, float32 on a CPU.
        cache: folder of cached captions; null for none.
        device: auto, cpu, cuda, cuda:1, ...
    """

    def __init__(
        self,
        *,
        model: str,
        question: str,
        batch_size: BatchSize,
        max_new_tokens: Count,
        temperature: NonNegative,
        top_p: Annotated[float, Range(0, 1, above=True)],
        bits: Literal[4, 8] | None,
        cache: str | None,
        device: str,
    ) -> None:
        self.model, self.question, self.batch_size, self.bits = model, question, batch_size, bits
        self.settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "bits": bits}
        self.cache = None if cache is None else Path(cache)
        self.device = chosen(device)
        self._loaded: tuple[Any, Any] | None = None

    def captions(self, images: Iterable[np.ndarray]) -> Iterator[str]:
        """One caption per image, in order; those not in the cache are generated in batches.

        Args:
            images: uint8 RGB, height x width x 3 each.

        Raises:
            ValueError: if the model is missing or does not caption images.
        """
        waiting: list[tuple[str, np.ndarray | None, str]] = []
        for image_HWC in images:
            key = self._key(image_HWC)
            cached = self._cached(key)
            waiting.append((key, image_HWC if cached is None else None, cached or ""))
            if sum(image is not None for _, image, _ in waiting) == self.batch_size:
                yield from self._settle(waiting)
                waiting = []
        yield from self._settle(waiting)

    def find(self) -> None:
        """Check that the model exists, before anything else is loaded; a cache that is not empty skips the check.

        Raises:
            ValueError: in one line, if it does not exist.
        """
        if self.cache is not None and any(self.cache.glob("*.json")):
            return
        try:
            AutoConfig.from_pretrained(self._source(), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise self._refusal(error) from error

    def unload(self) -> None:
        """Free the model and its memory."""
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def name_of(self, things: Any) -> str:
        """The identity of this captioner's captions of some inputs, given as plain values."""
        return identity(
            {"things": things, "who": self._model_identity(), "question": self.question, "settings": self.settings}
        )

    def _key(self, image_HWC: np.ndarray) -> str:
        settings = json.dumps([image_HWC.shape, self._model_identity(), self.question, self.settings])
        return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes() + settings.encode()).hexdigest()[:32]

    def _model_identity(self) -> list[Any]:
        """The model's name, the device type and, for a local folder, the names and sizes of its files."""
        place = place_of(self.model)
        files = sorted(place.iterdir()) if place.is_dir() else []
        return [self.model, self.device.partition(":")[0], *((file.name, file.stat().st_size) for file in files)]

    def _cached(self, key: str) -> str | None:
        """The cached caption; None if there is none, or its file is damaged."""
        if self.cache is None:
            return None
        try:
            return str(json_of(self.cache / f"{key}.json")["caption"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _settle(self, waiting: Sequence[tuple[str, np.ndarray | None, str]]) -> Iterator[str]:
        """The captions in order; those not in the cache are generated in one batch and cached."""
        missing = [(key, image_HWC) for key, image_HWC, _ in waiting if image_HWC is not None]
        new = iter(self._ask(missing) if missing else ())
        for key, image_HWC, cached in waiting:
            caption = cached if image_HWC is None else next(new)
            if image_HWC is not None and self.cache is not None:
                entry = {"caption": caption, "model": self.model, "question": self.question, **self.settings}
                write_json_atomic(self.cache / f"{key}.json", entry)
            yield caption

    def _ask(self, images: Sequence[tuple[str, np.ndarray]]) -> list[str]:
        """The model's answers to one batch."""
        processor, model = self._load()
        talks = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.fromarray(image_HWC)},
                        {"type": "text", "text": self.question},
                    ],
                }
            ]
            for _, image_HWC in images
        ]
        inputs = processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        processors = LogitsProcessorList()
        if self.settings["temperature"]:
            processors.append(
                GumbelSampling([key for key, _ in images], self.settings["temperature"], self.settings["top_p"])
            )
        with torch.no_grad(), silence_libraries():
            answers = model.generate(
                **inputs.to(model.device, dtype=model.dtype),
                max_new_tokens=self.settings["max_new_tokens"],
                do_sample=False,
                num_beams=1,
                logits_processor=processors,
            )
        new = answers[:, inputs["input_ids"].shape[1] :]
        return [" ".join(text.split()) for text in processor.batch_decode(new, skip_special_tokens=True)]

    def _load(self) -> tuple[Any, Any]:
        """Processor and model.

        Raises:
            ValueError: in one line, if they are missing or incomplete.
        """
        if self._loaded is None:
            try:
                self._loaded = load_captioner(self._source(), bits=self.bits, device=self.device)
            except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
                raise self._refusal(error) from error
        return self._loaded

    def _source(self) -> str:
        place = place_of(self.model)
        return str(place) if place.is_dir() else self.model

    def _refusal(self, error: Exception) -> ValueError:
        first = " ".join(str(error).split())[:160]
        advice = ADVICE.get(type(error), f"download it (hf download {self.model}) or give a local folder")
        return ValueError(
            f"captioner.model={self.model}: cannot be used ({first}); {advice}, or take other words: "
            "prompt/semantic=caption, file or none"
        )


class GumbelSampling(LogitsProcessor):
    """The Gumbel-max trick: greedy decoding of logits / temperature + Gumbel noise samples a token.

    The noise comes from a generator per image.

    Args:
        keys: seeds of the generators, one per image.
        temperature: above 0.
        top_p: of nucleus sampling.
    """

    def __init__(self, keys: Sequence[str], temperature: float, top_p: float) -> None:
        self.generators = [generator("caption", key) for key in keys]
        self.temperature, self.nucleus = temperature, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores (B, vocabulary) whose argmax is the sampled token."""
        warped: Tensor = self.nucleus(input_ids, scores.float() / self.temperature)
        drawn = torch.stack([torch.rand(scores.shape[1], generator=one) for one in self.generators])
        return warped - torch.log(-torch.log(drawn.to(warped)))


def load_captioner(source: str, *, bits: int | None, device: str) -> tuple[Any, Any]:
    """Processor and model of a hub id or folder, ready to generate.

    Raises:
        OSError, ValueError, ImportError: if something is missing.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    settings: dict[str, Any] = {"dtype": dtype}
    if bits is not None:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=dtype
        )
        settings["device_map"] = {"": device}
    check_model(Path(source))
    with silence_libraries():
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        if getattr(processor, "chat_template", None) is None:
            raise ValueError("it has no chat template; LLaVA, InternVL and Qwen-VL have")
        model: Any = AutoModelForImageTextToText.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, **settings
        ).eval()
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"  # so that answers start right after the questions
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor, model if bits is not None else model.to(device)
