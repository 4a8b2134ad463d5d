"""``fcdeploy review``: the page of a run, served to this machine alone, where a person decides what is wrong.

Whoever has the token may see the page and the faces of the run, and nothing else: there is no path in any address. A
page of another site can neither read (the cookie is SameSite=Strict, the host is checked) nor decide (the origin is).
"""

import secrets
import tempfile
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fcdeploy.data.checked_pairs import DIFFERENT, NOT_A_FACE, SAME, read_pairs
from fcdeploy.data.images import import_pillow
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.packages import import_package
from fcdeploy.report import corrections
from fcdeploy.report.decisions import Decision, DecisionLog, Said, StaleError
from fcdeploy.report.opened import OpenedRun, open_run
from fcdeploy.report.overview import Clusters
from fcdeploy.report.regrouping import regrouped
from fcdeploy.report.thumbnails import jpeg_of
from fcdeploy.report.writing import INDEX, RECORD, SERVED_POLICY, Reviewing, check_installed, write_page

if TYPE_CHECKING:
    from starlette.requests import Request

INSTALL = "pip install 'fcdeploy[cpu,review]'"
HOST = "127.0.0.1"
FACE_EDGE = 192  # pixels
LARGEST_BODY = 1 << 20
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".jpg": "image/jpeg",
}
HEADERS = {
    "Content-Security-Policy": SERVED_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
KEYS = (
    ("j / k", "next or previous cluster or pair"),
    ("← / →", "next or previous face in a cluster"),
    ("space", "choose the face, or leave it"),
    ("s / d", "the two faces of a pair are the same, or different persons"),
    ("n", "chosen faces are no faces"),
    ("p", "chosen faces are another person: split them off"),
    ("m", "move chosen faces to another cluster"),
    ("g", "merge the cluster with another one"),
    ("e", "name the person"),
    ("u", "undo the last decision"),
    ("r", "regroup: show clusters as the next run makes them of all decisions"),
    ("/", "search"),
    ("?", "these keys"),
)

Scope = MutableMapping[str, object]
Message = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass
class Desk:
    """What decisions are made on: the run, its clusters as they are shown, the log, and the files of the page by name.

    grouped: the revision of the log up to which clusters respect it, see ``regroup``. seed: of the random sample.
    writing: held where the log is added to or read whole, and where other clusters are shown.
    """

    run: OpenedRun
    clusters: Clusters
    log: DecisionLog
    files: dict[str, bytes]
    grouped: int = 0
    seed: int = 0
    writing: threading.Lock = field(default_factory=threading.Lock)

    def state(self) -> dict[str, object]:
        """What a page has to know of decisions."""
        decisions = [one.plain for one in self.log.live()]
        return {"revision": self.log.revision, "grouped": self.grouped, "decisions": decisions}

    def check_shown(self, grouped: object) -> None:
        """Raise StaleError unless a page shows the clusters that are shown now, as whose numbers it means others."""
        if whole_number(grouped) != self.grouped:
            raise StaleError("the clusters were regrouped in the meantime; reload the page, and repeat it.")

    def regroup(self, revision: int) -> None:
        """Show the clusters that the next run makes of all decisions; raises StaleError and what ``regrouped`` does."""
        with self.writing:  # what another tab decides meanwhile is not in these clusters
            self.log.check_seen(revision)
            pairs = read_pairs(self.log.path, self.run.n, self.run.ids)
        run = regrouped(self.run, pairs)
        files = files_of_page(run, self.log.path, self.seed, revision)
        with self.writing:
            self.clusters, self.files, self.grouped = run.clusters, files, revision

    def decide(self, asked: dict[str, object]) -> Decision:
        """Write a decision that a page asks for; raises InputError for what is none, and StaleError."""
        with self.writing:
            return self._decide(asked)

    def _decide(self, asked: dict[str, object]) -> Decision:
        self.check_shown(asked.get("grouped", 0))
        kind, revision = asked.get("kind"), whole_number(asked.get("revision"))
        given = asked.get("faces") or []
        if not isinstance(given, list) or len(given) > self.run.n:
            raise InputError("faces: expected a list of numbers.")
        faces = [whole_number(one) for one in given]
        if any(not 0 <= one < self.run.n for one in faces):
            raise InputError(f"there is no such face; faces go from 0 to {self.run.n - 1:,}.")
        said: list[Said] = []
        name = ""
        if kind in (SAME, DIFFERENT):
            if len(faces) != 2:
                raise InputError("choose two faces.")
            said = corrections.of_pair(faces[0], faces[1], kind)
        elif kind == NOT_A_FACE:
            said = corrections.of_not_faces(faces)
        elif kind == "split":
            said = corrections.of_split(self.clusters, faces)
        elif kind == "move":
            said = corrections.of_move(self.clusters, faces, whole_number(asked.get("other")))
        elif kind == "merge":
            said, faces = corrections.of_merge(
                self.clusters, whole_number(asked.get("cluster")), whole_number(asked.get("other"))
            )
        elif kind == "name":
            cluster, name = whole_number(asked.get("cluster")), str(asked.get("name") or "")
            corrections.check_cluster(self.clusters, cluster)
            faces = [corrections.most_typical(self.clusters, self.clusters.rows(cluster))]
        return self.log.append(revision, str(kind), said, faces, name)

    def undo(self, revision: int) -> None:
        """Take the last decision back; raises StaleError."""
        with self.writing:
            self.log.undo(revision)


def whole_number(value: object) -> int:
    """Return a whole number out of JSON; raises InputError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 53:
        raise InputError("expected a whole number.")
    return value


def open_desk(
    run_dir: Path | str,
    images: Path | str | None,
    decisions: Path | str,
    path_column: str | None = None,
    seed: int = 0,
) -> Desk:
    """Open a run, its images and its decisions, and make the page; see ``fcdeploy report`` for what is raised.

    images: by default the crops that a run over photos keeps.
    """
    check_installed()
    import_pillow()
    run = open_run(run_dir, images=images, path_column=path_column)
    if run.files is None:
        raise InputError(f"{run_dir}: holds no images of its faces; give the list of them with --images.")
    log = DecisionLog(decisions, run.n, run.ids)
    try:
        files = files_of_page(run, Path(decisions), seed, 0)
    except BaseException:
        log.close()
        raise
    return Desk(run, run.clusters, log, files, seed=seed)


def files_of_page(run: OpenedRun, decisions: Path, seed: int, grouped: int) -> dict[str, bytes]:
    """Make the page of a review; returns its files by name."""
    with tempfile.TemporaryDirectory(prefix="fcdeploy-review-") as folder:
        write_page(Path(folder), run, seed=seed, reviewing=Reviewing(str(decisions), KEYS, grouped))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != RECORD}


def application(desk: Desk, token: str, port: int) -> App:
    """Return the ASGI application of a review."""
    import_package("starlette", "Starlette", INSTALL)
    import anyio
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    regrouping = anyio.Lock()

    def page_file(request: Request) -> Response:
        name = request.path_params.get("name", INDEX)
        found = desk.files.get(name)
        if found is None:
            return Response("not found", 404)
        return Response(found, media_type=TYPES[Path(name).suffix])

    def face(request: Request) -> Response:
        row = request.path_params["row"]
        files = desk.run.files
        found = jpeg_of(files, row, FACE_EDGE) if files is not None and 0 <= row < desk.run.n else None
        return Response("not found", 404) if found is None else Response(found, media_type="image/jpeg")

    async def state(request: Request) -> Response:
        return JSONResponse(desk.state())

    async def changed(request: Request) -> Response:
        try:
            asked = await body_of(request)
            if request.url.path == "/undo":
                desk.undo(whole_number(asked.get("revision")))
            elif request.url.path == "/regroup":
                async with regrouping:
                    await run_in_threadpool(desk.regroup, whole_number(asked.get("revision")))
            else:
                desk.decide(asked)
        except FcdeployError as error:
            code = 409 if isinstance(error, StaleError) else 422 if isinstance(error, InputError) else 500
            return JSONResponse({**desk.state(), "error": str(error)}, code)
        return JSONResponse(desk.state())

    routes = [
        Route("/", page_file),
        Route("/state", state),
        Route("/decide", changed, methods=["POST"]),
        Route("/undo", changed, methods=["POST"]),
        Route("/regroup", changed, methods=["POST"]),
        Route("/face/{row:int}", face),
        Route("/{name}", page_file),
    ]
    return guarded(Starlette(routes=routes), token, port)


async def body_of(request: "Request") -> dict[str, object]:
    """Return the JSON object that a request holds; raises InputError for anything else, and for a large one."""
    import json

    data = b""
    async for part in request.stream():
        data += part
        if len(data) > LARGEST_BODY:
            raise InputError("the request is too large.")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError("expected a JSON object.")
    return found


def guarded(app: App, token: str, port: int) -> App:
    """Let only requests with the token through, to this host under its own name, with headers that forbid the rest."""
    from starlette.datastructures import MutableHeaders
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, RedirectResponse, Response

    hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
    cookie = f"fcdeploy-review-{port}"

    def refused(request: Request) -> Response | None:
        if request.headers.get("host") not in hosts:
            return PlainTextResponse("this is not the host of the review", 421)
        if request.url.path == "/" and (given := request.query_params.get("token")) is not None:
            if not secrets.compare_digest(given.encode(), token.encode()):
                return PlainTextResponse("the token is not that of this review", 403)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(cookie, token, httponly=True, samesite="strict", path="/")
            return answer
        given = request.cookies.get(cookie, "")
        if not secrets.compare_digest(given.encode(), token.encode()):
            return PlainTextResponse(
                "open the address that `fcdeploy review` has printed, with its token", 403
            )
        if request.method == "POST":
            origin = request.headers.get("origin")
            kind = request.headers.get("content-type", "").partition(";")[0].strip()
            if origin not in {f"http://{host}" for host in hosts} or kind != "application/json":
                return PlainTextResponse("decisions are accepted from the review page only", 403)
        return None

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = refused(Request(scope))
        await (answer or app)(scope, receive, send_with_headers)

    return guard


def serve(desk: Desk, port: int = 0, told: Callable[[str], None] = lambda address: None) -> None:
    """Serve a review on this machine until it is interrupted; port 0 takes a free one; told: is given the address."""
    import socket

    uvicorn = import_package("uvicorn", "Uvicorn", INSTALL)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"--port {port}: cannot be used ({error.strerror}); give another one, or leave it out for a free one."
            ) from None
        token, port = secrets.token_urlsafe(24), listening.getsockname()[1]
        config = uvicorn.Config(
            application(desk, token, port),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
        )
        listening.listen()
        told(f"http://{HOST}:{port}/?token={token}")
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()
        desk.log.close()
