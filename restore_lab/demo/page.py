"""The page of `restore-lab demo`, in Gradio: one photograph with all sliders, or several at once.

It listens on localhost by default, limits the size of uploads, serves only its own results, and makes no network
requests (fonts are the system's). Errors appear as one line. One image is restored at a time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from restore_lab.data.frames import take_frames
from restore_lab.data.sources.folder import keys_of
from restore_lab.demo.models import ModelCache, Slider
from restore_lab.demo.words import NUMBERS, instruction

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from PIL.Image import Image
    from torch import Tensor

    from restore_lab.inference.result import Restoration

R = TypeVar("R")
SEEDS = 8
BUTTONS = ["download", "fullscreen"]  # none that uploads a picture
RETENTION_SECONDS = 3600  # seconds that an upload or a result stays on disk
TITLE = "restore_lab"
ABOUT = (
    "Diffusion priors restore a photograph by drawing what it does not say. Make several seeds to see what they agree "
    "on. The shipped models are toys, trained on drawn scenes at 64 pixels."
)


def serve(cfg: DictConfig) -> None:
    """Serve the page until it is interrupted.

    Raises:
        ValueError: without Gradio, or where the port is taken.
    """
    try:
        import gradio
    except ImportError as error:
        raise ValueError("restore-lab demo needs the extra demo; pip install 'restore-lab[demo]'") from error
    assert gradio
    try:
        launch_page(cfg, wait=True, port=cfg.port)
    except OSError as error:
        raise ValueError(f"port={cfg.port}: {error}; choose another, port={cfg.port + 1}") from error


def launch_page(cfg: DictConfig, *, wait: bool, port: int | None) -> tuple[Any, str]:
    """Start the server; the page and its address.

    Args:
        cfg: the verb's config.
        wait: block until interrupted.
        port: None for any free port.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from gradio.themes import Default

    blocks = build_page(cfg).queue(max_size=20, api_open=False)
    _, address, _ = blocks.launch(
        server_name=cfg.host,
        server_port=port,
        prevent_thread_lock=not wait,
        share=False,
        max_file_size=f"{cfg.max_upload_mb}mb",
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css="footer {display: none !important}",
    )
    return blocks, address


def build_page(cfg: DictConfig) -> Any:
    """The Gradio page, not yet launched."""
    import gradio as gr

    shelf = ModelCache(cfg)
    first = next(iter(shelf.models))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(RETENTION_SECONDS, RETENTION_SECONDS)) as blocks:
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        with gr.Row():
            model = gr.Dropdown(list(shelf.models), value=first, label="Model", scale=2)
            caption = gr.Textbox(label="What it shows", placeholder="a cat, asleep", max_length=2000, scale=3)
        with gr.Accordion("Strengths", open=False):
            plain = shelf.config(first)
            with gr.Row():
                sliders = [_slider(gr, slider, slider.value(plain)) for slider in shelf.sliders]
        with gr.Group(visible=_listens(plain)) as group:
            words = gr.Textbox(label="What to undo", value=instruction(_off()), max_length=2000)
            with gr.Row():
                numbers = [
                    gr.Slider(min(off, end), max(off, end), off, step=step, label=says, min_width=120)
                    for says, (_, off, end, step) in NUMBERS.items()
                ]
        parts = [model, caption, words, *sliders]
        with gr.Tab("One photograph"):
            _one(gr, shelf, parts)
        with gr.Tab("Several"):
            _several(gr, cfg, shelf, parts)

        for number in numbers:
            number.release(lambda *values: instruction(list(values)), numbers, words, show_progress="hidden")
        model.change(lambda name: _shown(gr, shelf, name), model, [group, *sliders], show_progress="hidden")
    return blocks


def _one(gr: ModuleType, shelf: ModelCache, parts: Sequence[Any]) -> None:
    """The tab for one photograph."""
    with gr.Row():
        with gr.Column(scale=2):
            image = gr.Image(
                label="Photograph", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=320
            )
            with gr.Row():
                seed = gr.Number(0, label="First seed", precision=0, minimum=0, min_width=80)
                seeds = gr.Slider(1, SEEDS, 1, step=1, label="Seeds", min_width=120)
                upscale = gr.Slider(1, 4, 1, step=0.5, label="Enlarge", min_width=120)
            go = gr.Button("Restore", variant="primary")
        with gr.Column(scale=3):
            comparison = gr.ImageSlider(
                label="Before and after", type="pil", format="png", height=420, interactive=False
            )
            report = gr.Markdown()
            file = gr.DownloadButton("Download the restored file", visible=False)
    with gr.Row(visible=False) as spread:
        every = gr.Gallery(label="Seeds", columns=4, height=260, format="png", interactive=False, object_fit="contain")
        unsure = gr.Image(
            label="Where the seeds differ (white: they invent)",
            height=260,
            interactive=False,
            buttons=BUTTONS,
        )

    def restore(picture: str | None, seed: int, seeds: int, upscale: float, *fields: Any) -> tuple[object, ...]:
        if picture is None:
            raise ValueError("drop a photograph first")
        restored = _restored(shelf, picture, fields, seed=int(seed), seeds=int(seeds), upscale=float(upscale))
        name = Path(picture).stem[:60] or "photograph"
        kept = restored.save(_place(gr) / f"{name}_restored.png")
        before, several = _picture(_before(restored)), len(restored) > 1
        images = [(_picture(restored.images_NCHW[number]), f"seed {one}") for number, one in enumerate(restored.seeds)]
        return (
            (before, images[0][0]),
            _says(restored),
            gr.DownloadButton(value=str(kept), visible=True),
            gr.Row(visible=several),
            images if several else None,
            restored.uncertainty_map().rgb_HWC if several else None,
        )

    outputs = [comparison, report, file, spread, every, unsure]
    go.click(_clearly(gr, restore), [image, seed, seeds, upscale, *parts], outputs, concurrency_limit=1, api_name=False)


def _several(gr: ModuleType, cfg: DictConfig, shelf: ModelCache, parts: Sequence[Any]) -> None:
    """The tab for several photographs."""
    files = gr.File(
        label=f"Up to {cfg.max_files} photographs", file_count="multiple", file_types=["image"], type="filepath"
    )
    go = gr.Button("Restore all", variant="primary")
    report = gr.Markdown()
    gallery = gr.Gallery(label="Restored", columns=4, format="png", interactive=False, buttons=BUTTONS)
    archive = gr.DownloadButton("Download all (zip)", visible=False)

    def restore(pictures: list[str] | None, *fields: Any) -> tuple[object, ...]:
        if not pictures:
            raise ValueError("drop some photographs first")
        if len(pictures) > cfg.max_files:
            raise ValueError(
                f"{len(pictures)} files; at most {cfg.max_files} at once, or restore-lab restore for a folder"
            )
        folder = _place(gr)
        shown, failed, bar = [], [], gr.Progress()
        with zipfile.ZipFile(folder / "restored.zip", "w") as packed:
            names = keys_of([f"{n}/{Path(one).name}" for n, one in enumerate(pictures)])
            for picture, name in bar.tqdm(list(zip(pictures, names, strict=True)), unit="images"):
                label = name.partition("/")[2]
                try:
                    restored = _restored(shelf, picture, fields, seed=0, seeds=1, upscale=1.0)
                except ValueError as error:
                    failed.append(str(error).rpartition("/")[2])
                    continue
                packed.write(restored.save(folder / f"{len(shown)}.png"), f"{len(shown):03}_{label}.png")
                shown.append((_picture(restored.tensor), label))
        lines = [f"{len(shown)} restored, {len(failed)} left out", *(f"- {line}" for line in failed)]
        lines += [
            f"- {count} frames, of which the first is restored: {Path(f).name}" for f, count in take_frames().items()
        ]
        found = gr.DownloadButton(value=str(folder / "restored.zip"), visible=bool(shown))
        return shown, "\n".join(lines), found

    go.click(_clearly(gr, restore), [files, *parts], [gallery, report, archive], concurrency_limit=1, api_name=False)


def _restored(
    shelf: ModelCache, picture: str, fields: Sequence[Any], *, seed: int, seeds: int, upscale: float
) -> Restoration:
    """Restore with the values of the page's fields: model, caption, instruction, sliders.

    Raises:
        ValueError: for invalid values.
    """
    name, caption, words, *turned = fields
    if not 1 <= seeds <= SEEDS:
        raise ValueError(f"{seeds} seeds; from 1 to {SEEDS}")
    values = {slider.says: value for slider, value in zip(shelf.sliders, turned, strict=True) if value is not None}
    restorer = shelf.restorer(name, values)
    return restorer(picture, caption=caption or "", instruction=words or "", seed=seed, seeds=seeds, upscale=upscale)


def _shown(gr: ModuleType, shelf: ModelCache, name: str) -> list[Any]:
    """The visible fields of a model, and its sliders' values."""
    cfg = shelf.config(name)
    values = [slider.value(cfg) for slider in shelf.sliders]
    return [
        gr.Group(visible=_listens(cfg)),
        *(gr.Slider(visible=False) if value is None else gr.Slider(value=value, visible=True) for value in values),
    ]


def _slider(gr: ModuleType, slider: Slider, value: float | None) -> Any:
    """A slider at its value; hidden for a model that lacks its settings."""
    shown = {"step": slider.step, "label": slider.says, "visible": value is not None, "min_width": 360}
    return gr.Slider(slider.low, slider.high, slider.low if value is None else value, **shown)


def _listens(cfg: DictConfig) -> bool:
    """Whether a model reads an instruction."""
    return cfg.adaptor.get("text") == "instruction"


def _off() -> list[float]:
    return [off for _, off, _, _ in NUMBERS.values()]


def _place(gr: ModuleType) -> Path:
    """A new folder for results in Gradio's upload folder; old ones are deleted."""
    root = Path(gr.utils.get_upload_folder()) / "restored"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        if time.time() - old.stat().st_mtime > RETENTION_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=root))


def _says(restored: Restoration) -> str:
    """A restoration's details as one paragraph."""
    height, width = restored.tensor.shape[-2:]
    db, against = restored.consistency()
    known = f"{width} x {height} pixels, {restored.seconds:.1f} s. "
    known += f"Degraded again ({against}) it is {db:.1f} dB from the photograph."
    if len(restored) > 1:
        known += f" The seeds differ by {restored.uncertainty().mean():.3f} of the range on average."
    return known + "".join(f" Its first frame alone, of {count}." for count in take_frames().values())


def _before(restored: Restoration) -> Tensor:
    """The photograph as a tensor, CHW in [0, 1]."""
    import torch

    return torch.stack([torch.from_numpy(channel_HW) for channel_HW in restored.lq.planes()])


def _picture(image_CHW: Tensor) -> Image:
    """The image in 8 bits, for the browser."""
    from PIL.Image import fromarray

    from restore_lab.data.image_io import to_image

    return fromarray(to_image(image_CHW))


def _clearly(gr: ModuleType, work: Callable[..., R]) -> Callable[..., R]:
    """The function with user errors shown as one line on the page; other errors by name, with a logged traceback."""

    def checked(*args: object) -> R:
        began = time.monotonic()
        try:
            return work(*args)
        except ValueError as error:
            text = " ".join(str(error).split())
            raise gr.Error(text.replace(str(gr.utils.get_upload_folder()), "")[:400], print_exception=False) from error
        except (RuntimeError, MemoryError) as error:
            after = time.monotonic() - began
            raise gr.Error(f"failed after {after:.0f} s ({type(error).__name__}); the terminal says more") from error

    return checked
