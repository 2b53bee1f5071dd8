"""The page for people at `/`, and the text that Ollama's clients expect there.

Owns which of the two a request gets, and the page's files, which ship with the package. Must not
know models: the page asks the other routes, as any client does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastapi import Request, Response
from starlette.responses import PlainTextResponse
from starlette.staticfiles import StaticFiles

from api.http.routes import Routes

routes = Routes("Operations", "ollama")

_FILES = StaticFiles(directory=Path(__file__).parent / "page_files", check_dir=False)
_HTML = "index.html"
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@routes.look(
    "/",
    is_open=True,
    head=True,
    summary="A page for people; for other clients the text that Ollama's look for",
    response_class=Response,
    responses={
        200: {
            "description": "HTML when `Accept` names it, else text",
            "content": {
                "text/html": {},
                "text/plain": {"example": "Ollama is running"},
            },
        }
    },
)
async def get_root(request: Request) -> Response:
    """Answers while the model still loads, too; the page then says so."""
    if accepts_html(request.headers.getlist("accept")):
        response = await _file(request, _HTML)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
    else:
        response = PlainTextResponse("Ollama is running")
    response.headers["Vary"] = "Accept"
    return response


@routes.look("/page/{name}", is_open=True, head=True, include_in_schema=False)
async def get_file(request: Request, name: str) -> Response:
    """Answers 404 for a name that is not a file of the page."""
    return await _file(request, name)


def accepts_html(accept: Iterable[str]) -> bool:
    """Whether the header's lines name `text/html` with a weight above 0.

    A wildcard does not: curl and Ollama's clients send one.
    """
    ranges = ",".join(accept).lower().split(",")
    return any(
        media.strip() == "text/html" and _weight(parameters) > 0
        for media, _, parameters in (part.partition(";") for part in ranges)
    )


def _weight(parameters: str) -> float:
    """The `q` among a media range's parameters; 1 when absent, 0 when it is not a number."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


async def _file(request: Request, name: str) -> Response:
    """304 when the client has it already: it asks each time, so that an update shows at once."""
    response = await _FILES.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
