"""Attributes on sliders: a web page, and its server on 127.0.0.1 only. Photos stay in memory."""

import contextlib
import io
import os
import secrets
import signal
import socket
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from smilevae.apps import photo
from smilevae.apps.model import Model
from smilevae.apps.options import AppOptions
from smilevae.data import images
from smilevae.editing.alignment import Face
from smilevae.errors import ConfigError, DataError
from smilevae.evaluation import grids

try:
    import anyio
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    missing = f"the slider needs {error.name}, which is not installed"
    raise ConfigError(f"{missing}: pip install -e '.[app]'") from None

PAGE = Path(__file__).with_name("slider.html")
STYLE = PAGE.with_name("style.css")
MAX_BYTES = 10_000_000  # of an upload
MAX_PIXELS = 25_000_000
PREVIEW = 900  # longest side of the photo on the page
KEPT = 4  # photos
NUM_NEW = 8
OTHER = "a."  # begins the name of an attribute in a request
TIMEOUT = 20  # seconds without a byte of an upload
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; connect-src 'self';"
    " script-src 'unsafe-inline'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# The answer to a picture or an attribute that cannot be used.
REFUSED: dict[type[Exception], tuple[int, str]] = {
    images.TooLarge: (413, "this picture is too large: {}; shrink it first"),
    images.Unreadable: (415, "not opened: {}; choose a picture"),
    DataError: (422, "{}"),
    ConfigError: (400, "{}"),
}


class View(NamedTuple):
    """A photo (H, W, 3), the face in it and its colour profile."""

    pixels: np.ndarray
    face: Face
    profile: bytes | None


class Studio:
    """The model and the photos of the page. One thread at a time uses the model."""

    def __init__(self, model: Model):
        self.model = model
        self.edits = model.edits
        self.lock = threading.Lock()
        self.photos: OrderedDict[str, tuple[View, View]] = OrderedDict()  # preview, full size

    def open(self, data: bytes, middle: bool) -> Response:
        """Keep a photo, with its face or its middle square. Answers its id and preview size."""
        picture = images.read(data, MAX_PIXELS)
        pixels = np.asarray(picture)
        side = min(picture.size)
        box = ((picture.width - side) / 2, (picture.height - side) / 2, side) if middle else None
        face = photo.locate(self.model, pixels, "this picture", box)[0]
        full = View(pixels, face, picture.info.get("icc_profile"))
        picture.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS, reducing_gap=None)
        height, width = pixels.shape[:2]
        matrix = face.matrix.copy()
        matrix[:, :2] /= [picture.width / width, picture.height / height]
        preview = View(np.asarray(picture), face._replace(matrix=matrix), full.profile)
        name = secrets.token_urlsafe(12)
        with self.lock:
            self.photos[name] = (preview, full)
            while len(self.photos) > KEPT:
                self.photos.popitem(last=False)
        return JSONResponse({"id": name, "width": picture.width, "height": picture.height})

    def edit(self, request: Request) -> Response:
        """A kept photo at the intensities of a request."""
        amounts = self._amounts(request)
        name = request.query_params.get("id", "")
        whole = "full" in request.query_params
        with self.lock:
            if name not in self.photos:
                limit = f"only the last {KEPT} pictures are kept"
                raise HTTPException(410, f"{limit}; drop yours again")
            self.photos.move_to_end(name)
            view = self.photos[name][whole]
            after = photo.edit(self.model, view.pixels, view.face, amounts)
        return _picture(after, "PNG" if whole else "JPEG", view.profile)

    def new(self, request: Request) -> Response:
        """New faces at the intensities of a request."""
        amounts = self._amounts(request)
        codes = self.model.draw(NUM_NEW, int(_number(request, "seed", 2**31)))
        with self.lock:
            faces = self.model.decode(self.edits.mix(codes, amounts))
        grid = grids.tile(faces.unflatten(0, (2, NUM_NEW // 2)))
        return _picture((grid * 255).round().byte().permute(1, 2, 0).numpy(), "JPEG", None)

    def _amounts(self, request: Request) -> dict[str, float]:
        """Intensities by attribute, the page's own first."""
        amounts = {self.edits.main.name: _number(request, "value", 10)}
        for name in request.query_params:
            if name.startswith(OTHER):
                amounts[name.removeprefix(OTHER)] = _number(request, name, 10)
        return amounts


def application(studio: Studio) -> TrustedHostMiddleware:
    """The pages. Starlette runs the plain functions in threads."""
    edits = studio.edits
    ranges = {one.name: [one.low, one.high] for one in edits.attributes}
    about = {"attribute": edits.main.name, "ranges": ranges}
    page = PAGE.read_text("utf-8").replace("{{ style }}", STYLE.read_text("utf-8"))

    async def upload(request: Request) -> Response:
        if request.headers.get("X-Smilevae") != "1":  # another site's page cannot set it
            raise HTTPException(403, "pictures come from this page only")
        data = await _body(request)
        return await anyio.to_thread.run_sync(studio.open, data, "middle" in request.query_params)

    def refused(request: Request, error: Exception) -> Response:
        status, words = REFUSED.get(type(error), (500, "that failed: {}"))
        reason = str(error)
        if isinstance(error, DataError):  # its remedy is an option of the command line
            reason = reason.partition(";")[0]
        return Response(words.format(reason), status, media_type="text/plain")

    routes = [
        Route("/", HTMLResponse(page), methods=["GET"]),
        Route("/about", JSONResponse(about), methods=["GET"]),
        Route("/edit", studio.edit),
        Route("/new", studio.new),
        Route("/photo", upload, methods=["POST"]),
    ]
    handlers = dict.fromkeys([*REFUSED, Exception], refused)
    pages = Starlette(routes=routes, exception_handlers=handlers)
    return TrustedHostMiddleware(pages, ["127.0.0.1", "localhost"])  # against DNS rebinding


def _picture(pixels: np.ndarray, form: str, profile: bytes | None) -> Response:
    file = io.BytesIO()
    # Pillow ignores the option of the other format
    Image.fromarray(pixels).save(file, form, icc_profile=profile, quality=92, compress_level=3)
    return Response(file.getvalue(), media_type=f"image/{form.lower()}")


async def _body(request: Request) -> bytes:
    """The raw body: Starlette's forms would write to the disk. Raises HTTPException."""
    data = bytearray()
    size = 0
    stream = request.stream()
    try:
        while size <= 10 * MAX_BYTES:
            with anyio.fail_after(TIMEOUT):
                chunk = await anext(stream, b"")
            if not chunk:
                break
            size += len(chunk)
            data += chunk if size <= MAX_BYTES else b""
    except TimeoutError:
        raise HTTPException(408, f"nothing arrived for {TIMEOUT} seconds; try again") from None
    if size > MAX_BYTES:
        limit = f"over the limit of {MAX_BYTES // 10**6} MB"
        raise HTTPException(413, f"this file is {limit}; choose a smaller one")
    return bytes(data)


def _number(request: Request, name: str, bound: float) -> float:
    with contextlib.suppress(ValueError):
        value = float(request.query_params.get(name, "0"))
        if -bound <= value <= bound:
            return value
    raise HTTPException(400, f"a number from {-bound:g} to {bound:g} is needed")


def main(options: AppOptions) -> None:
    """Serve the page until a signal. Raises CheckpointError, ConfigError."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `smilevae app &` ignores it
    app = application(Studio(photo.colour_model(options)))
    try:
        listener = socket.create_server(("127.0.0.1", options.port), backlog=128)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"port={options.port}: {reason}; choose another") from None
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_config=None, log_level="critical", access_log=False,
        headers=list(HEADERS.items()), server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    with listener, contextlib.suppress(KeyboardInterrupt):
        print(f"open http://127.0.0.1:{listener.getsockname()[1]}/ (Ctrl-C ends)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
