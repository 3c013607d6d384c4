"""`efface serve`: the same pages for larger sets, on this machine alone; rows and features are read when they are looked at."""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ...base.errors import EffaceError, InputError, UnknownName
from ...base.files import first_line
from ...sae.evidence.query import Query
from .page import json_text, render_page
from .prompts import PromptReader
from .site import Site

LOOPBACK = "127.0.0.1"
LARGEST = 64 * 1024
"""Bytes of a question, at most."""
Answer = dict[str, Any]
log = logging.getLogger("efface")


class Pages:
    """Answers to what the page asks for, by path.

    Args:
        site: What is shown.
        reader: Makes the reader of prompts when the first one is typed (a model takes seconds to load); None: prompts are not read.
    """

    def __init__(self, site: Site, reader: Callable[[], PromptReader] | None = None) -> None:
        self.site, self._make, self._reader = site, reader, None
        self._loading = threading.Lock()
        self._head: bytes | None = None
        self.gets: dict[str, Callable[[Mapping[str, str]], Answer]] = {
            "/api/rows": self.rows,
            "/api/feature": self.feature,
            "/api/map": lambda q: self._view(q).map(),
            "/api/contexts": lambda q: self._view(q).containing(q.get("text", "")),
            "/api/pictures": self.pictures,
        }

    def page(self) -> bytes:
        """The page, made once."""
        if self._head is None:
            live = {"prompts": self._make is not None, "pictures": self.site.pictures is not None}
            self._head = render_page({**self.site.head(), "live": live, "words": []}).encode()
        return self._head

    def rows(self, q: Mapping[str, str]) -> Answer:
        """A page of the table."""
        where = {}
        for bound in filter(None, q.get("where", "").split(",")):
            name, _, ends = bound.partition(":")
            low, _, high = ends.partition(":")
            where[name] = (_number(low, name) if low else None, _number(high, name) if high else None)
        return self._view(q).rows(
            Query(
                text=q.get("text", ""),
                where=where,
                status=q.get("status", ""),
                column=q.get("sort", ""),
                descending=q.get("desc", "1") == "1",
                limit=_whole(q.get("limit", "50"), "limit"),
                offset=_whole(q.get("offset", "0"), "offset"),
            )
        )

    def feature(self, q: Mapping[str, str]) -> Answer:
        """A feature in full."""
        view = self._view(q)
        if view.store is None:
            raise InputError(f"{view.folder} has no evidence yet: efface features --sae {view.folder} --all")
        return view.feature(_whole(q.get("id", ""), "id"))

    def pictures(self, q: Mapping[str, str]) -> Answer:
        """Pictures with and without a feature, drawn now unless they are in the cache."""
        if self.site.pictures is None:
            raise InputError("no pictures: this host draws none")
        self._view(q)
        return {"pictures": self.site.pictures(_whole(q.get("sae", ""), "sae"), _whole(q.get("id", ""), "id"))}

    def prompt(self, body: Any) -> Answer:
        """A prompt as features and gates read it."""
        if self._make is None:
            raise InputError("prompts are not read: the server was started without a model")
        if not isinstance(body, dict) or not isinstance(body.get("text"), str):
            raise InputError('prompt: send {"text": "…"}')
        with self._loading:
            self._reader = self._reader or self._make()
        return self._reader.read(body["text"])

    def _view(self, q: Mapping[str, str]) -> Any:
        number = _whole(q.get("sae", "0"), "sae")
        if not 0 <= number < len(self.site.saes):
            raise UnknownName("SAE", str(number), map(str, range(len(self.site.saes))))
        return self.site.saes[number]


class Handler(BaseHTTPRequestHandler):
    """One request. Only this machine is answered, and only under its own name, so that no other page can ask through a browser."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def pages(self) -> Pages:
        """What answers."""
        assert isinstance(self.server, PageServer)
        return self.server.pages

    def do_GET(self) -> None:
        """The page, or a part of it."""
        parts = urlsplit(self.path)
        if not self._allowed():
            return
        if parts.path == "/":
            self._send(HTTPStatus.OK, self.pages.page(), "text/html; charset=utf-8")
        elif (answer := self.pages.gets.get(parts.path)) is None:
            self._json({"error": f"there is no {parts.path}"}, HTTPStatus.NOT_FOUND)
        else:
            asked = {k: v[-1] for k, v in parse_qs(parts.query).items()}
            self._answer(lambda: answer(asked))

    def do_POST(self) -> None:
        """A prompt to read."""
        if not self._allowed(own=True):
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/api/prompt" or not length.isdigit() or int(length) > LARGEST:
            self.close_connection = True
            self._json({"error": "a prompt of at most 64 KiB is taken at /api/prompt"}, HTTPStatus.BAD_REQUEST)
            return
        body = self.rfile.read(int(length))
        self._answer(lambda: self.pages.prompt(_parsed(body)))

    def _allowed(self, own: bool = False) -> bool:
        """Whether the request names this server (no other name that was pointed at it), and comes from its own page where that matters."""
        port = self.connection.getsockname()[1]
        names = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        foreign = origin is not None and origin not in {f"http://{n}" for n in names}
        typed = not own or self.headers.get_content_type() == "application/json"
        if self.headers.get("Host") in names and not foreign and typed:
            return True
        self.close_connection = True
        self._json({"error": "asked under another name or from another page"}, HTTPStatus.FORBIDDEN)
        return False

    def _answer(self, make: Callable[[], Answer]) -> None:
        try:
            answer = make()
        except InputError as e:
            self._json({"error": str(e)}, HTTPStatus.BAD_REQUEST)
        except EffaceError as e:
            self._json({"error": str(e)}, HTTPStatus.INTERNAL_SERVER_ERROR)
        except Exception as e:  # whatever it is, the page says it; a connection that ends without a word would look like a dead server
            log.debug("", exc_info=True)
            self._json({"error": f"{type(e).__name__}: {first_line(e)}"}, HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            self._json(answer)

    def _json(self, value: Answer, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, json_text(value).encode(), "application/json; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *HEADERS):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are told at debug level alone."""
        log.debug(format, *args)


HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
    ("Cache-Control", "no-store"),
)


class PageServer(ThreadingHTTPServer):
    """Serves `Pages` on the loopback interface."""

    daemon_threads = True

    def __init__(self, pages: Pages, port: int = 0) -> None:
        self.pages = pages
        super().__init__((LOOPBACK, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away, and whatever else ended one connection, is told at debug level alone."""
        log.debug("a connection from %s ended", client_address, exc_info=True)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{LOOPBACK}:{self.server_port}/"


def serve(pages: Pages, port: int = 0, ready: Callable[[str], None] = lambda address: None) -> None:
    """Answers until interrupted; `ready` is told the address once the first page is made.

    Raises:
        InputError: The port is taken or not allowed.
    """
    try:
        server = PageServer(pages, port)
    except (OSError, OverflowError) as e:
        raise InputError(f"--port {port} cannot be used ({e}); choose another, or 0 for any free one") from None
    with server:
        pages.page()
        ready(server.address)
        server.serve_forever()


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise InputError("prompt: the question is not JSON") from None


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} must be a whole number; found {text!r}") from None


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value:
        raise InputError(f"{name} must be a number; found {text!r}")
    return value
