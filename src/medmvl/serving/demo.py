"""The demo page: upload an image or a CT, look through it, ask, and read the answer as it is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as PILImage

from medmvl.errors import MedMVLError, require
from medmvl.imaging import WINDOWS
from medmvl.inference import Predictor
from medmvl.serving.study import PLANES, Plane, Study, load_study

#: Pictures are brought to this height in pixels; a browser would show a coarse scan as a stamp.
_VIEW_HEIGHT = 460

_NOTICE = "Research software. Its answers are not a diagnosis and must not be used as one."
_EXAMPLES = ("Is there a pleural effusion?", "Which side is the pacemaker on?", "Write the report of this examination.")


class Session:
    """What one visitor has open; kept on the server, so pixels travel as pictures only."""

    def __init__(self) -> None:
        self.study: Study | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return Session()  # every visitor begins with nothing


class Demo:
    """The page's behaviour, apart from its looks.

    Args:
        predictor: the model that answers; one question at a time.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._one_at_a_time = threading.Lock()

    @property
    def prefers(self) -> Literal["image", "volume"]:
        """How files that can be both are read: a volume if the model looks at nothing else."""
        return "volume" if "image" not in self.predictor.model.towers else "image"

    def open(self, session: Session, paths: list[str] | None) -> str:
        """Read uploaded files into the session; returns a line that describes them."""
        session.study = load_study(paths or [], self.prefers)
        return session.study.describe()

    def picture(self, session: Session, plane: Plane, index: float, window: str) -> np.ndarray | None:
        """Return the slice to show, or None if nothing is open."""
        if session.study is None:
            return None
        picture = PILImage.fromarray(session.study.picture(plane, int(index), window))
        scale = _VIEW_HEIGHT / picture.height
        size = (max(1, round(picture.width * scale)), _VIEW_HEIGHT)
        return np.asarray(picture.resize(size, PILImage.Resampling.BICUBIC))

    def ask(self, session: Session, text: str, max_new_tokens: float) -> Iterator[str]:
        """Yield the answer as it grows."""
        if not text.strip():
            yield "Type a question first."
            return
        study = session.study or Study()
        answer = ""
        with self._one_at_a_time:
            pieces = self.predictor.stream(
                text.strip(),
                images=[study.image] if study.image else [],
                volumes=[study.volume] if study.volume else [],
                max_new_tokens=int(max_new_tokens),
            )
            for piece in pieces:
                answer += piece
                yield answer
        yield answer.strip() or "(the model gave an empty answer)"


def build_page(predictor: Predictor, title: str) -> Any:
    """Return the Gradio page (`gradio.Blocks`).

    Raises:
        MissingExtraError: if gradio is not installed.
    """
    gr = require("gradio", "demo")
    demo = Demo(predictor)

    def shown(call: Any, *arguments: Any) -> Any:
        """Turn a user's mistake into a message on the page."""
        try:
            return call(*arguments)
        except MedMVLError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def opened(session: Session, paths: list[str] | None) -> tuple[Any, ...]:
        line = shown(demo.open, session, paths)
        assert session.study is not None
        count = session.study.slices["axial"]
        slider = gr.Slider(0, max(count - 1, 1), value=count // 2, step=1, visible=count > 1)
        controls = gr.Row(visible=count > 1)
        return session, line, slider, controls, "axial", demo.picture(session, "axial", count // 2, "full")

    def turned(session: Session, plane: Plane) -> Any:
        count = session.study.slices[plane] if session.study else 1
        return gr.Slider(0, max(count - 1, 1), value=count // 2, step=1)

    def asked(session: Session, text: str, limit: float) -> Iterator[str]:
        try:
            yield from demo.ask(session, text, limit)
        except MedMVLError as error:
            raise gr.Error(str(error), print_exception=False) from None

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\n{_NOTICE}")
        session = gr.State(Session())
        with gr.Row():
            with gr.Column(scale=3):
                files = gr.File(
                    label="Image, NIfTI, or all slices of a DICOM series", file_count="multiple", height=110
                )
                view = gr.Image(
                    label="View", interactive=False, format="png", height=_VIEW_HEIGHT, buttons=["fullscreen"]
                )
                with gr.Row(visible=False) as controls:
                    plane = gr.Radio(list(PLANES), value="axial", label="Plane")
                    window = gr.Dropdown(list(WINDOWS), value="full", label="Window")
                index = gr.Slider(0, 1, value=0, step=1, label="Slice", visible=False)
                facts = gr.Textbox(label="What was read", interactive=False, lines=2)
            with gr.Column(scale=2):
                text = gr.Textbox(label="Question", placeholder=_EXAMPLES[0], lines=2)
                gr.Examples(list(_EXAMPLES), text)
                limit = gr.Slider(8, 512, value=128, step=8, label="Longest answer (tokens)")
                ask = gr.Button("Ask", variant="primary")
                answer = gr.Textbox(label="Answer", lines=10, interactive=False, buttons=["copy"])
        files.upload(opened, [session, files], [session, facts, index, controls, plane, view])
        plane.input(turned, [session, plane], index)
        for control in (index, plane, window):
            control.change(demo.picture, [session, plane, index, window], view, show_progress="hidden")
        for trigger in (ask.click, text.submit):
            trigger(asked, [session, text, limit], answer)
    return page


def run_demo(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    on_ready: Callable[[], None] | None = None,
    **loading: Any,
) -> None:
    """Serve the page until interrupted; `loading` goes to `Predictor.from_pretrained`.

    Args:
        on_ready: called when the page answers.
    """
    gr = require("gradio", "demo")
    predictor = Predictor.from_pretrained(folder, **loading)
    page = build_page(predictor, f"MedM-VL: {folder.resolve().name}")
    # System fonts: the default theme would fetch its fonts from the network.
    theme = gr.themes.Default(font="sans-serif", font_mono="monospace")
    page.queue().launch(
        server_name=host,
        server_port=port,
        share=False,
        theme=theme,
        max_file_size="2gb",
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
    )
    if on_ready is not None:
        on_ready()
    page.block_thread()
