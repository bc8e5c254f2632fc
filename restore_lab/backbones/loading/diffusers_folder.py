"""A prior in diffusers format on disk, read part by part: configs, weights, tokenizers.

A part is a folder (`unet`, `text_encoder_3`, ...) with a `config.json` and its weights in safetensors: one file, or
shards with their index; plain, or the fp16 variant (`model.fp16-00001-of-00002.safetensors`), which is read if the
plain weights are incomplete. Pickles (`.bin`) are never opened. Other content of a repository (safety_checker,
feature_extractor, onnx, flax) is ignored. single_file.py reads a single file with all parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restore_lab.storage.foreign import check_model, json_of
from restore_lab.system.quiet import silence_libraries

if TYPE_CHECKING:
    import torch

STEMS = ("diffusion_pytorch_model", "model")  # of diffusers' and of transformers' weight files
WEIGHT_VARIANTS = (None, "fp16")  # in order of preference
SHIPPED = Path(__file__).resolve().parents[1] / "configs"
MERGES = SHIPPED / "clip_merges.txt"  # CLIP's vocabulary, which all these priors share


class BackboneError(ValueError):
    """A backbone that cannot be found or read; one line with the path and a remedy."""


class Folder:
    """A folder in diffusers format.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, part: str) -> bool:
        """Whether the folder has the part."""
        return (self.root / part).is_dir()

    def config(self, part: str) -> dict[str, Any]:
        """The part's config."""
        return read_json(self.root / part / "config.json")

    def files(self, part: str) -> list[Path]:
        """The part's weight files; none if they are missing or incomplete."""
        found = find_weights(self.root / part)
        return [self.root / part / name for name in found[1]] if found else []

    def encoders(self) -> list[Path]:
        """The files and folders of codec, text encoders and tokenizers."""
        return [place for name in ("vae", "text_encoder*", "tokenizer*") for place in sorted(self.root.glob(name))]

    def read(self, cls: Any, part: str, *, dtype: torch.dtype) -> Any:
        """The part with its weights.

        Raises:
            BackboneError: if the weights are missing, incomplete, or do not fit the config.
        """
        return read_part(cls, self.root / part, dtype=dtype)

    def tokenizer(self, part: str) -> Any:
        """The tokenizer of a text encoder: the folder's, or for a config in this package CLIP's vocabulary from it."""
        from transformers import AutoTokenizer, CLIPTokenizer

        t5 = part == "text_encoder_3"
        home = self.root / part.replace("text_encoder", "tokenizer")
        if self.root.parent == SHIPPED and t5:
            raise BackboneError(
                f"{home.name}: T5's tokenizer does not ship; set backbone.config_path to a diffusers folder that has "
                f"one (any SD3's), or leave T5 out: backbone.without=[{part}]"
            )
        if self.root.parent == SHIPPED:
            return shipped_tokenizer(read_json(home / "tokenizer_config.json"))
        check_folder(home)
        try:
            if t5:
                return AutoTokenizer.from_pretrained(home, local_files_only=True, trust_remote_code=False)
            tokenizer: Any = CLIPTokenizer.from_pretrained(home, local_files_only=True)
            most = self.config(part).get("max_position_embeddings", tokenizer.model_max_length)
            tokenizer.model_max_length = min(tokenizer.model_max_length, most)  # unbounded without a config entry
            return tokenizer
        except (OSError, ValueError, TypeError) as error:
            kind = "T5" if t5 else "CLIP"
            raise BackboneError(f"{home}: not a {kind} tokenizer that can be read ({first_line(error)})") from error


def shipped_tokenizer(settings: dict[str, Any]) -> Any:
    """CLIP's tokenizer from its merges, which determine the vocabulary (bytes, word-final bytes, merges)."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    lines = MERGES.read_text(encoding="utf-8").splitlines()[1:]  # the first line is the version
    merges: list[Any] = [tuple(line.split()) for line in lines]
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=merges, **settings)


def weight_files(names: Sequence[str], *, folder: Path | None = None) -> tuple[str | None, list[str]] | None:
    """The weight files of a part.

    Args:
        names: the files of the part's folder.
        folder: the part's folder, to read the shards from an index; None to identify shards by their names.

    Returns:
        The variant and the file names, plain before fp16; None without a complete set.
    """
    present = set(names)
    for variant in WEIGHT_VARIANTS:
        infix = f".{variant}" if variant else ""
        for stem in STEMS:
            single = f"{stem}{infix}.safetensors"
            if single in present:
                return variant, [single]
            indexes = [f"{stem}.safetensors.index{infix}.json"]
            indexes += [f"{stem}.safetensors{infix}.index.json"] if variant else []  # as diffusers once wrote it
            for index in present.intersection(indexes):
                found = _shards(index, stem=stem, infix=infix, names=names, folder=folder)
                if found and present.issuperset(found):
                    return variant, [index, *found]
    return None


def _shards(index: str, *, stem: str, infix: str, names: Sequence[str], folder: Path | None) -> list[str]:
    if folder is not None:
        shards = read_json(folder / index).get("weight_map")
        return sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    called = [name for name in names if name.startswith(stem) and "-of-" in name and name.endswith(".safetensors")]
    return [name for name in called if (".fp16" in name) == bool(infix)]


def find_weights(folder: Path) -> tuple[str | None, list[str]] | None:
    """`weight_files` of a part's folder."""
    return weight_files([file.name for file in folder.glob("*") if file.is_file()], folder=folder)


def read_part(cls: Any, folder: Path, *, dtype: torch.dtype) -> Any:
    """One part with its weights; missing weights and weights of another shape are errors."""
    from safetensors import SafetensorError

    found = find_weights(folder)
    if found is None:
        pickled = sorted(file.name for file in (*folder.glob("*.bin"), *folder.glob("*.ckpt")))
        if pickled:
            hint = f"{pickled[0]} is a pickle, which is not opened; save the model with safe_serialization"
        else:
            hint = "no safetensors, or not all the shards that their index names"
        raise BackboneError(f"{folder}: weights cannot be read ({hint})")
    check_folder(folder)
    try:
        with silence_libraries():
            model, info = cls.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                use_safetensors=True,
                variant=found[0],
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"{folder}: weights cannot be read ({first_line(error)})") from error
    check_complete(folder, (*info["missing_keys"], *info["mismatched_keys"]))
    return model


def check_folder(folder: Path) -> None:
    """Raise for a part whose files refer to code or weights elsewhere, or whose weights are quantised."""
    try:
        check_model(folder)
    except ValueError as error:
        raise BackboneError(str(error)) from error
    file = folder / "config.json"
    if file.is_file() and read_json(file).get("quantization_config") is not None:
        raise BackboneError(f"{file}: stored quantised; take the plain weights, which memory=int8 and others quantise")


def check_complete(place: Path | str, wrong: Sequence[Any]) -> None:
    """Raise if weights are missing or have another shape."""
    names = sorted(str(key) for key in wrong)
    if names:
        raise BackboneError(f"{place}: {len(names)} weights are missing or misshapen, the first is {names[0]}")


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        BackboneError: naming the file, if it is absent or not JSON.
    """
    try:
        found = json_of(file)
    except (OSError, ValueError) as error:
        why = str(error).removeprefix(f"{file}: ")
        raise BackboneError(f"{file}: cannot be read as JSON ({why})") from error
    if not isinstance(found, dict):
        raise BackboneError(f"{file}: cannot be read as JSON (expected settings, got {type(found).__name__})")
    return found


def first_line(error: Exception) -> str:
    """The first line of an error's message, or else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
