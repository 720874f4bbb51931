"""Serves a page on this machine: match and heat map of a file, search, and a model's scores.

Examples:
  python -m cavmae_sync_jax.app --checkpoint=runs/sync
  python -m cavmae_sync_jax.app --checkpoint=runs/sync --index=runs/index --port=8000

Open the printed address in a browser. The first tab shows where in a video or a picture a sound
comes from. The second one searches in an index of python -m cavmae_sync_jax.embed. The third one
shows the training's curves and the scores of evaluations, if the workdir has them.

Only this machine reaches the page, and the page reaches nothing else. Uploads are deleted when the
program ends; Ctrl-C ends it. A file may last ten minutes. It needs Gradio: pip install -e ".[app]".
"""

import argparse
import contextlib
import html
import mimetypes
import os
import pathlib
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

from cavmae_sync_jax import localize, search
from cavmae_sync_jax.checkpoints import hub
from cavmae_sync_jax.evals.report import overview
from cavmae_sync_jax.inference import model as models
from cavmae_sync_jax.inference import reading, workers
from cavmae_sync_jax.inference.index.store import Index
from cavmae_sync_jax.inference.model import Model
from cavmae_sync_jax.utils import cli, loopback
from cavmae_sync_jax.utils.errors import UserError

LONGEST = 600.0  # seconds of an uploaded file
DECODING_LIMIT = 60.0  # seconds that a worker may take for a piece of a file
HITS = 9
KEPT = 10  # results of the first tab that a browser may still show
CSS = """
.said p { font-size: 1.1em; margin: 0.3em 0; }
.said .mistake { color: #b00020; }
.hits ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem;
  list-style: none; padding: 0; }
.hits li { overflow-wrap: anywhere; }
.hits p { display: block; margin: 0.2rem 0; }
.hits video, .hits audio, .hits li img { display: block; width: 100%; height: 11rem;
  object-fit: contain; background: #8882; }
.known dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
.known td, .known th { padding: 0.1rem 0.8rem; text-align: left; }
.known img { display: inline-block; max-width: min(100%, 24rem); margin: 0.3rem; }
"""
Result = tuple[Any, ...]


class Handlers:
    """What the page's buttons do; every method returns what Gradio shows."""

    def __init__(self, model: Model, index: Index | None, decoders: workers.Workers | None):
        self.model = model
        self.index = index
        self.served: list[str] = []  # files of the index that were found, by their numbers
        self._decoders = decoders
        self._results: list[str] = []  # folders

    def localize(self, seen: str | None, heard: str | None, method: str) -> Result:
        """What was found, the MP4, the picture, the timeline, and the files to download."""
        if seen is None:
            raise UserError("give a video or a picture first")
        if _kind(seen, mute=True) in localize.SOUNDLESS and heard is None:
            raise UserError("this file has no sound of its own: give a sound, too")
        if heard is not None:
            _kind(heard)
        self._results.append(tempfile.mkdtemp())
        for folder in self._results[:-KEPT]:
            shutil.rmtree(folder, ignore_errors=True)
        del self._results[:-KEPT]
        output = pathlib.Path(self._results[-1])
        told = localize.run(self.model, seen, output, sound=heard, method=method)
        found = [output / name for name in ("localize.mp4", "localize.png", "timeline.png")]
        shown = [str(path) if path.exists() else None for path in found]
        said = "".join(map(_paragraph, localize.sentences(told)))
        return said, *shown, [str(path) for path in sorted(output.iterdir())]

    def search(self, file: str | None, sound: str | None) -> Result:
        """The query as text, and the hits as HTML."""
        if self.index is None:
            raise UserError("no index was given: start the page with --index")
        if (file is None) == (sound is None):
            raise UserError("give either a file or a sound")
        query = sound if file is None else file
        kind = _kind(query)
        kind = "sound" if file is None else kind
        names = {title: name for name, title in search.QUERIES.items()}
        found = search.find(self.model, self.index, names[kind], query, HITS)
        window = search.window_of(self.model)
        lists = []
        for title, hits in (("Files", found.clips), ("Moments", found.moments)):
            items = "".join(search.item(hit, self._address(hit.file), window) for hit in hits)
            lists.append(f"<h3>{title}</h3><ol>{items}</ol>")
        said = _paragraph(f"Nearest to the {kind}, best first.") + _paragraph(search.ABOUT)
        return said, "".join(lists)

    def _address(self, file: str) -> str:
        if file not in self.served:
            self.served.append(file)
        return f"/media/{self.served.index(file)}"

    def guarded(self, method: Callable[..., Result], width: int, *given: Any) -> Result:
        """Calls a method; a mistake becomes a sentence, beside `width` - 1 empty results."""
        try:
            with workers.within(self._decoders):
                return method(*given)
        except UserError as error:
            sentence = str(error)
        except Exception:
            traceback.print_exc()
            sentence = "the program made a mistake, which the terminal shows"
        for path in given:  # the visitor knows the names of files only
            if isinstance(path, str) and os.path.isabs(path):
                sentence = sentence.replace(path, os.path.basename(path))
        return _paragraph(sentence, "mistake"), *[None] * (width - 1)

    def known(self) -> str:
        """The model's sizes, curves and scores, as HTML."""
        model = self.model
        spec, sizes = model.pair_spec, model.config.model
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        workdir = overview.workdir_of(os.fspath(hub.local(model.directory)))
        pieces = [
            overview.facts(
                [
                    ("model", model.directory),
                    ("step", model.step),
                    ("parameters", f"{parameters / 1e6:.3g} M"),
                    ("picture", f"{spec.image_size} × {spec.image_size} pixels"),
                    ("window of sound", f"{search.window_of(model):.2f} s"),
                    ("blocks × width", f"{sizes.depth} × {sizes.width}"),
                ]
            )
        ]
        parts = [("Training", lambda: overview.training(workdir))]
        for folder in (workdir / overview.EVALS, workdir.parent / overview.EVALS):
            parts.append(
                ("Scores", lambda folder=folder: overview.scores(folder, workdir, model.step))
            )
        for title, part in parts:
            try:
                piece = part()
            except UserError as error:
                piece = _paragraph(str(error), "mistake")
            if piece is not None:
                pieces.append(f"<h2>{title}</h2>{piece}")
        if len(pieces) == 1:
            pieces.append(_paragraph("This folder has neither training curves nor scores."))
        return "".join(pieces)


def _kind(file: str, *, mute: bool = False) -> reading.Kind:
    """What a file is; refuses what would keep the page busy for long."""
    info = reading.file_info(file, mute=mute)
    if info.seconds > LONGEST:
        raise UserError(
            f"{file} is longer than {LONGEST / 60:.0f} minutes: use the commands localize and "
            "search instead"
        )
    return info.kind


def build(handlers: Handlers, largest: int) -> Any:
    """The page, as Gradio's blocks; uploads have at most `largest` MB."""
    gradio = _gradio()
    one_at_a_time = {"concurrency_id": "model", "api_visibility": "private"}
    sources = ["upload", "microphone"]
    keep = ["download"]  # and no button that shares a result with others

    # Gradio fills in `progress`, and shows the bars of `console.progress` by it.
    bars = gradio.Progress(track_tqdm=True)

    def show(seen: Any, heard: Any, method: Any, progress: Any = bars) -> Result:
        said, *shown = handlers.guarded(handlers.localize, 5, seen, heard, method)
        return said, *(gradio.update(value=each, visible=each is not None) for each in shown)

    def find(file: Any, sound: Any, progress: Any = bars) -> Result:
        return handlers.guarded(handlers.search, 2, file, sound)

    with gradio.Blocks(
        title="CAV-MAE Sync", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gradio.Markdown(f"# CAV-MAE Sync\nFiles have up to {largest} MB and stay on this machine.")
        with gradio.Tab("Match and heat map"), gradio.Row():
            with gradio.Column(scale=2):
                seen = gradio.File(label="Video or picture", elem_id="seen")
                heard = gradio.Audio(
                    label="Another sound (a picture needs one)",
                    sources=sources,
                    type="filepath",
                    buttons=keep,
                    elem_id="heard",
                )
                method = gradio.Radio(list(models.MAPS), value="evidence", label="Map")
                start = gradio.Button("Show where it sounds", variant="primary")
            with gradio.Column(scale=5):
                said = gradio.HTML(elem_classes="said", elem_id="matched")
                outputs = [
                    gradio.Video(
                        label="Heat map over the video", elem_id="film", height=448, buttons=keep
                    ),
                    gradio.Image(
                        label="Heat map over the picture", elem_id="still", height=448, buttons=keep
                    ),
                    gradio.Image(
                        label="Pictures, log-mel, match, segments",
                        show_label=False,  # it would cover the first of the pictures
                        elem_id="timeline",
                        buttons=keep,
                    ),
                    gradio.File(label="Files to keep", elem_id="files", interactive=False),
                ]
                for output in outputs:
                    output.visible = False
            start.click(show, [seen, heard, method], [said, *outputs], **one_at_a_time)
        with gradio.Tab("Search"):
            about = "There is no index: start the page with `--index`."
            if handlers.index is not None:
                about = f"Nearest files and moments in `{handlers.index.directory}`. Sounds find "
                about += "pictures, pictures find sounds, and videos find both."
            gradio.Markdown(about)
            with gradio.Row():
                file = gradio.File(label="Sound, picture or video", elem_id="query")
                sound = gradio.Audio(
                    label="Or record a sound",
                    sources=sources[::-1],
                    type="filepath",
                    buttons=keep,
                    elem_id="voice",
                )
            search_now = gradio.Button("Search", variant="primary")
            asked = gradio.HTML(elem_classes="said", elem_id="asked")
            hits = gradio.HTML(elem_classes="hits", elem_id="hits")
            search_now.click(find, [file, sound], [asked, hits], **one_at_a_time)
        with gradio.Tab("About the model"):
            known = gradio.HTML(elem_classes="known", elem_id="known")
            page.load(handlers.known, None, known, show_progress="hidden", **one_at_a_time)
    return page


def application(handlers: Handlers, largest: int) -> Any:
    """The page and the index's media as a web application; uploads have at most `largest` MB."""
    import fastapi
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/media/{number}")
    def media(number: int) -> fastapi.Response:
        if not 0 <= number < len(handlers.served):
            raise fastapi.HTTPException(404)
        file = handlers.served[number]
        if not os.path.isfile(file):
            raise fastapi.HTTPException(404, f"{os.path.basename(file)} is no longer there")
        kind = mimetypes.guess_type(file)[0] or ""
        if not kind.startswith(("video/", "audio/", "image/")):
            kind = "application/octet-stream"
        return fastapi.responses.FileResponse(file, media_type=kind)

    gradio = _gradio()
    gradio.mount_gradio_app(
        app,
        build(handlers, largest),
        path="/",
        server_name=loopback.HOST,
        max_file_size=f"{largest}mb",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        css=CSS,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"]),  # of the browser
    )
    app.add_middleware(loopback.Policy)
    # Another site's page may look the loopback address up under its own name.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[loopback.HOST, "localhost"])
    return app


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Gradio's settings while it is imported and used: silent, in a folder that is deleted."""
    with tempfile.TemporaryDirectory(prefix="cavmae_sync_app_") as folder:
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_TEMP_DIR": folder,
        }
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = None


def serve(model: Model, index: Index | None, port: int, largest: int) -> None:
    """Serves the page until a signal comes.

    Args:
      model: that is asked.
      index: where the second tab searches.
      port: 0 is any that is free.
      largest: MB of an upload.

    Raises:
      UserError: if Gradio is not installed, the port is taken or the index is another model's.
    """
    _gradio()
    import uvicorn

    if index is not None:
        index.check(model)
    with loopback.listening(port) as listening, workers.started(1, DECODING_LIMIT) as decoders:
        app = application(Handlers(model, index, decoders), largest)
        print(f"open {loopback.address(listening)}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        server.run(sockets=[listening])


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs gradio: pip install -e '.[app]'") from error
    return gradio


def _paragraph(text: str, kind: str = "") -> str:
    role = 'role="alert"' if kind else ""
    return f'<p class="{kind}" {role}>{html.escape(text)}</p>'


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--checkpoint", required=True, help="folder of a trained model")
    arguments.add_argument("--index", help="folder that embed wrote, to search in")
    arguments.add_argument(
        "--port", type=int, default=7860, help="port to listen on; 0 takes a free one"
    )
    arguments.add_argument("--largest", type=int, default=200, help="largest upload in MB")

    def start(args: argparse.Namespace) -> None:
        if args.largest < 1:
            raise UserError(f"--largest must be at least 1 MB, not {args.largest}")
        with _settings():
            index = None if args.index is None else Index(args.index)
            serve(models.load(args.checkpoint), index, args.port, args.largest)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
