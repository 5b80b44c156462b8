"""A smile on a slider, in a browser on this machine: python -m smilevae.apps.slider ckpt=RUN [port=7860]

Drop a photograph, choose a direction, move the smile, compare, draw new faces. It listens on 127.0.0.1 alone and
connects to nowhere. Photographs stay in memory, the last KEPT of them, and are gone when it ends.
"""

import html
import io
import json
import secrets
import sys
import threading
from collections import OrderedDict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
from PIL import Image

from smilevae.apps import photo
from smilevae.data import images
from smilevae.errors import ConfigError, DataError
from smilevae.evaluation import grids
from smilevae.evaluation.samplers import draw_codes

PAGE = Path(__file__).with_name("app.html")
MAX_BYTES = 10_000_000  # of an upload
MAX_PIXELS = 25_000_000
SHOWN = 900  # longest side of what the slider moves; a download has the photograph's own
KEPT = 4
NUM_NEW = 8
TIMEOUT = 20  # seconds for a request to arrive


class Refused(Exception):
    """Why a request is not answered, in a sentence, and the HTTP status."""

    def __init__(self, status: HTTPStatus, text: str):
        super().__init__(text)
        self.status = status


class Opened(NamedTuple):
    """A photograph as it is and as the slider shows it, with where the face is in both (photograph to crop)."""

    whole: np.ndarray
    shown: np.ndarray
    matrix: np.ndarray
    shown_matrix: np.ndarray
    profile: bytes | None


class Studio:
    """The model behind the page; one thread at a time may use it."""

    def __init__(self, ckpt: str):
        self.editor = photo.Editor(ckpt)
        self.opened: OrderedDict[str, Opened] = OrderedDict()
        self.lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        found = self.editor.dials
        return {"best": found.best, "dials": {name: [dial.low, dial.high] for name, dial in found.dials.items()}}

    def open(self, data: bytes, middle: bool) -> dict[str, Any]:
        """Keep a photograph and find its face, or take its middle square; gives its name."""
        try:
            with Image.open(io.BytesIO(data)) as lazy:  # the header alone
                if lazy.width * lazy.height > MAX_PIXELS:
                    many = f"{lazy.width}x{lazy.height} pixels, over the limit of {MAX_PIXELS // 10**6} million"
                    raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"this picture has {many}; shrink it first")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            pass  # the reader below says why
        try:
            picture = images.read(data)
        except images.Unreadable as reason:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"not opened: {reason}; choose a picture") from None
        whole = np.asarray(picture)
        options = {"box": "frame"} if middle else {}
        try:
            matrix = photo.where(whole, Path("this picture"), options, self.editor)[0]
        except DataError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error).partition(";")[0]) from None
        shrink = min(1.0, SHOWN / max(whole.shape[:2]))
        size = (max(1, round(whole.shape[1] * shrink)), max(1, round(whole.shape[0] * shrink)))
        shown = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
        smaller = matrix.copy()
        smaller[:, :2] /= [size[0] / whole.shape[1], size[1] / whole.shape[0]]
        name = secrets.token_urlsafe(12)
        with self.lock:
            self.opened[name] = Opened(whole, shown, matrix, smaller, picture.info.get("icc_profile"))
            while len(self.opened) > KEPT:
                self.opened.popitem(last=False)
        return {"id": name, "width": size[0], "height": size[1]}

    def smile(self, name: str, direction: str, value: float, full: bool) -> tuple[str, bytes]:
        """An opened photograph with its face at an intensity: its kind and bytes."""
        with self.lock:
            if name not in self.opened:
                raise Refused(HTTPStatus.GONE, f"only the last {KEPT} pictures are kept; drop yours again")
            self.opened.move_to_end(name)
            found = self.opened[name]
            before, matrix = (found.whole, found.matrix) if full else (found.shown, found.shown_matrix)
            after = self.editor.edit(before, matrix, [value], self._known(direction))[0]
        return _encoded(after, "PNG" if full else "JPEG", found.profile)

    def new(self, direction: str, value: float, seed: int) -> tuple[str, bytes]:
        """Faces drawn from noise, at an intensity."""
        with self.lock, torch.no_grad():
            vae = self.editor.vae
            nobody = torch.zeros(1, vae.latent_dim)
            codes = draw_codes(NUM_NEW, torch.Generator().manual_seed(seed), mu=nobody, logvar=nobody)
            turned = self.editor.turn(codes, [value], self._known(direction))[:, 0]
            picture = grids.tile(vae.decode(turned).clamp(0, 1).unflatten(0, (2, NUM_NEW // 2)))
        return _encoded((picture * 255).round().byte().permute(1, 2, 0).numpy(), "JPEG", None)

    def _known(self, direction: str) -> str:
        if direction not in self.editor.dials.dials:
            raise Refused(HTTPStatus.BAD_REQUEST, "there is no such direction")
        return direction


def _encoded(picture: np.ndarray, form: str, profile: bytes | None) -> tuple[str, bytes]:
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": 92} if form == "JPEG" else {"compress_level": 3}
    Image.fromarray(picture).save(file, form, icc_profile=profile, **options)
    return f"image/{form.lower()}", file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """GET / /about /smile /new, POST /photo; nothing is a path on the disk."""

    server_version, sys_version, protocol_version, timeout = "smilevae", "", "HTTP/1.1", TIMEOUT
    studio: Studio

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, act: Any) -> None:
        try:
            port = cast("tuple[str, int]", self.server.server_address)[1]
            if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):  # a page of another name
                raise Refused(HTTPStatus.FORBIDDEN, "this page answers to 127.0.0.1 only")
            kind, body = act(urlsplit(self.path))
            self._send(HTTPStatus.OK, kind, body)
        except Refused as refused:
            self.close_connection = True  # what was not read of an upload is not a request
            self._send(refused.status, "text/plain; charset=utf-8", str(refused).encode())
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # a mistake of ours: the page says so, and goes on
            self.close_connection = True
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", f"that failed: {error}".encode())

    def _get(self, url: Any) -> tuple[str, bytes]:
        words = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path == "/":
            return "text/html; charset=utf-8", PAGE.read_bytes()
        if url.path == "/about":
            return "application/json", json.dumps(self.studio.about()).encode()
        if url.path in ("/smile", "/new"):
            direction = words.get("direction", self.studio.editor.dials.best)
            value = self._number(words.get("value", "0"), 10)
            if url.path == "/new":
                return self.studio.new(direction, value, int(self._number(words.get("seed", "0"), 2**31)))
            return self.studio.smile(words.get("id", ""), direction, value, "full" in words)
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no {html.escape(url.path[:80])} here")

    def _post(self, url: Any) -> tuple[str, bytes]:
        if url.path != "/photo" or self.headers.get("X-Smilevae") != "1":  # no other site can set this header
            raise Refused(HTTPStatus.FORBIDDEN, "pictures come from this page only")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the upload does not say how long it is")
        if int(length) > MAX_BYTES:
            left = min(int(length), 10 * MAX_BYTES)
            while left > 0 and (chunk := self.rfile.read(min(left, 65536))):  # or its sender would not hear the answer
                left -= len(chunk)
            limit = f"over the limit of {MAX_BYTES // 10**6} MB"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"this file is {limit}; choose a smaller one")
        data = self.rfile.read(int(length))
        return "application/json", json.dumps(self.studio.open(data, url.query == "middle")).encode()

    @staticmethod
    def _number(text: str, bound: float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not -bound <= value <= bound:
            raise Refused(HTTPStatus.BAD_REQUEST, f"a number from {-bound:g} to {bound:g} is needed")
        return value

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        headers |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
        sources = "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'"
        headers["Content-Security-Policy"] = f"{sources}; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: names of pictures are nobody's business."""


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


def serve(ckpt: str, port: int) -> Server:
    """A server that is ready; port 0 chooses one. Raises CheckpointError, ConfigError."""
    handler = type("StudioHandler", (Handler,), {"studio": Studio(ckpt)})
    try:
        return Server(("127.0.0.1", port), handler)
    except OSError as error:
        raise ConfigError(f"port={port}: {error.strerror}; choose another") from None


def main(arguments: list[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    port = options.get("port", "7860")
    if not options.get("ckpt") or set(options) - {"ckpt", "port"} or len(options) != len(arguments):
        given = " ".join(arguments) or "nothing"
        raise ConfigError(f"python -m smilevae.apps.slider ckpt=RUN port=7860 takes these words, not {given}")
    if not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        raise ConfigError(f"port={port} must be a number from 0 to 65535")
    server = serve(options["ckpt"], int(port))
    print(f"open http://127.0.0.1:{server.server_address[1]}/ (Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


if __name__ == "__main__":
    from smilevae import console

    with console.one_sentence():
        main(sys.argv[1:])
