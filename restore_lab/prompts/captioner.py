"""Captions by a vision-language model: LLaVA (SUPIR's), InternVL, Qwen-VL, all of transformers' image-text-to-text.

The model is loaded for the first image that the cache does not know, and let go by `unload()`, so that it need not
share memory with a prior. The cache is a folder with a file a caption, named by image content, model, question and
settings. Words are drawn with noise from the image's own content, so that a caption does not depend on its batch.
Selected by `prompt/semantic=vlm` and `restore-lab caption`.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from restore_lab.random import generator
from restore_lab.storage.artefact import identity, place_of, write_json_atomic
from restore_lab.storage.foreign import check_model, json_of
from restore_lab.system.processes import device as chosen
from restore_lab.system.quiet import silence_libraries

if TYPE_CHECKING:
    from torch import Tensor

ADVICE = {  # for an error while the model is loaded; for others it is probably not there
    ImportError: "install what it needs (pip install restore-lab[quant] for captioner.bits)",
    ModuleNotFoundError: "install what it needs (pip install restore-lab[quant] for captioner.bits)",
    ValueError: "give another model",
    RuntimeError: "give it more memory (captioner.bits=4) or another device",
    SafetensorError: "copy its files again",
}


class Captioner:
    """Images in, captions out.

    Args:
        model: hub id or local folder of an image-text-to-text model with a chat template.
        question: what it is asked about each image.
        batch_size: images at a time.
        max_new_tokens: longest answer.
        temperature: of the draws; 0 takes the likeliest word each time.
        top_p: the draws are among the likeliest words that have this probability together.
        bits: 4 or 8 for weights quantised by bitsandbytes; null for bfloat16 on a GPU, float32 on a CPU.
        cache: folder of the captions made so far; null for none.
        device: auto, cpu, cuda, cuda:1, ...

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        *,
        model: str,
        question: str,
        batch_size: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        bits: int | None,
        cache: str | None,
        device: str,
    ) -> None:
        if bits not in (None, 4, 8):
            raise ValueError(f"captioner.bits={bits}: weights are quantised to 4 or 8 bits, or not (null)")
        if temperature < 0 or not 0 < top_p <= 1 or batch_size < 1:
            raise ValueError("captioner: temperature is 0 or more, top_p in (0, 1], batch_size 1 or more")
        self.model, self.question, self.batch_size, self.bits = model, question, batch_size, bits
        self.settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "bits": bits}
        self.cache = None if cache is None else Path(cache)
        self.device = chosen(device)
        self._loaded: tuple[Any, Any] | None = None

    def captions(self, images: Iterable[np.ndarray]) -> Iterator[str]:
        """One caption an image, in order; those that are not cached are made a batch at a time.

        Args:
            images: uint8 RGB, height x width x 3 each.

        Raises:
            ValueError: if the model is not there, or cannot do this.
        """
        waiting: list[tuple[str, np.ndarray | None, str]] = []
        for image_HWC in images:
            key = self._key(image_HWC)
            known = self._known(key)
            waiting.append((key, image_HWC if known is None else None, known or ""))
            if sum(image is not None for _, image, _ in waiting) == self.batch_size:
                yield from self._settle(waiting)
                waiting = []
        yield from self._settle(waiting)

    def find(self) -> None:
        """Look whether the model is there, before anything else is loaded; one may be gone whose captions are cached.

        Raises:
            ValueError: in one line, if it is not.
        """
        if self.cache is not None and any(self.cache.glob("*.json")):
            return
        try:
            AutoConfig.from_pretrained(self._source(), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise self._refusal(error) from error

    def unload(self) -> None:
        """Let go of the model and its memory."""
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def name_of(self, things: Any) -> str:
        """A name for what this captioner says of some things (plain values)."""
        return identity({"things": things, "who": self._who(), "question": self.question, "settings": self.settings})

    def _key(self, image_HWC: np.ndarray) -> str:
        said = json.dumps([image_HWC.shape, self._who(), self.question, self.settings])
        return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes() + said.encode()).hexdigest()[:32]

    def _who(self) -> list[Any]:
        """The model: its name, and of a local folder what its files are called and how large they are."""
        place = place_of(self.model)
        files = sorted(place.iterdir()) if place.is_dir() else []
        return [self.model, self.device.partition(":")[0], *((file.name, file.stat().st_size) for file in files)]

    def _known(self, key: str) -> str | None:
        """The cached caption; a damaged entry counts as none."""
        if self.cache is None:
            return None
        try:
            return str(json_of(self.cache / f"{key}.json")["caption"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _settle(self, waiting: Sequence[tuple[str, np.ndarray | None, str]]) -> Iterator[str]:
        """The captions of images in order, the unknown ones made together and cached."""
        unknown = [(key, image_HWC) for key, image_HWC, _ in waiting if image_HWC is not None]
        made = iter(self._ask(unknown) if unknown else ())
        for key, image_HWC, known in waiting:
            caption = known if image_HWC is None else next(made)
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
        drawing = LogitsProcessorList()
        if self.settings["temperature"]:
            drawing.append(Drawn([key for key, _ in images], self.settings["temperature"], self.settings["top_p"]))
        with torch.no_grad(), silence_libraries():
            answers = model.generate(
                **inputs.to(model.device, dtype=model.dtype),
                max_new_tokens=self.settings["max_new_tokens"],
                do_sample=False,
                num_beams=1,
                logits_processor=drawing,
            )
        new = answers[:, inputs["input_ids"].shape[1] :]
        return [" ".join(text.split()) for text in processor.batch_decode(new, skip_special_tokens=True)]

    def _load(self) -> tuple[Any, Any]:
        """Processor and model.

        Raises:
            ValueError: in one line, if they are not there or lack something.
        """
        if self._loaded is None:
            try:
                self._loaded = load(self._source(), bits=self.bits, device=self.device)
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


class Drawn(LogitsProcessor):
    """Makes the likeliest word a draw: adds Gumbel noise from each image's own generator to logits / temperature.

    Args:
        keys: one an image.
        temperature: above 0.
        top_p: share of the probability that may be drawn.
    """

    def __init__(self, keys: Sequence[str], temperature: float, top_p: float) -> None:
        self.generators = [generator("caption", key) for key in keys]
        self.temperature, self.nucleus = temperature, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores (B, vocabulary) whose largest is the drawn word."""
        warped: Tensor = self.nucleus(input_ids, scores.float() / self.temperature)
        drawn = torch.stack([torch.rand(scores.shape[1], generator=one) for one in self.generators])
        return warped - torch.log(-torch.log(drawn.to(warped)))


def load(source: str, *, bits: int | None, device: str) -> tuple[Any, Any]:
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
        model = AutoModelForImageTextToText.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, **settings
        ).eval()
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"  # answers start where the questions end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor, model if bits is not None else model.to(device)
