"""A server on loopback that speaks the APIs of the hubs, as far as their clients ask."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

from checkpoints import uploads

SHA = {"main": "1" * 40, "v1": "2" * 40}
VERSIONS = {"1": "v1", "2": "main"}
LARGE = (".safetensors", ".h5", ".pt", ".bin")  # what Hugging Face keeps in LFS


class Hub:
    """What the server holds, and how it misbehaves.

    Attributes:
        name: str, of the one repository.
        files: dict of a revision ("main", "v1") to a dict of a file's name to its bytes.
        is_gated: bool, whether a token is asked for.
        damaged: name of a file of which one byte is sent wrong, or None.
        cut: name of a file of which the connection is lost after half, or None.
        forbidden: name of a file that no token may read, or None.
        sent: list of the names of the files that were asked for.
        uploaded: dict of a hash to the bytes of a large file that was sent here.
        others: list of `Hub`s, the other repositories on the server.
    """

    def __init__(self, **files):
        self.name = "someone/model"
        self.files = files
        self.is_gated = False
        self.damaged = self.cut = self.forbidden = None
        self.sent = []
        self.uploaded = {}
        self.others = []


@contextlib.contextmanager
def serve(hub):
    """Serves a `Hub`; yields the address."""

    class Handler(_Handler):
        hub_of_all = hub

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(uploads.Uploads, http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Quiet."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        path = urllib.parse.unquote(url.path).strip("/")
        self.holds = self._hub_named(lambda name: f"/{name}/" in f"/{path}/")
        described, files = f"api/models/{self.holds.name}/", f"{self.holds.name}/resolve/"
        model_scope = f"api/v1/models/{self.holds.name}/"
        if path.startswith(described):
            what, _, revision = path.removeprefix(described).partition("/")
            self._describe(what, self._revision(revision))
        elif path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            self._send_file(self._revision(revision), name)
        elif path.startswith(model_scope):
            query = dict(urllib.parse.parse_qsl(url.query))
            self._answer_model_scope(path.removeprefix(model_scope), query)
        elif path.startswith("kaggle/"):
            self._send_stored(*path.removeprefix("kaggle/").split("/", 1))
        else:
            self._refuse(404, "RepoNotFound")

    def _hub_named(self, is_name):
        """The repository with a name that is meant, or the first."""
        hubs = [self.hub_of_all, *self.hub_of_all.others]
        return next((hub for hub in hubs if is_name(hub.name)), hubs[0])

    def _revision(self, given):
        return next((name for name, sha in SHA.items() if given in (name, sha)), None)

    def _refuse(self, status, code):
        self._answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def _answer(self, contents, status=200, headers=()):
        body = json.dumps(contents).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _is_let_in(self):
        shown = any(name in self.headers for name in ("Authorization", "Cookie"))
        return shown or not self.holds.is_gated

    # === Hugging Face ===

    def _describe(self, what, revision):
        if revision not in self.holds.files:
            return self._refuse(404, "RevisionNotFound")
        if not self._is_let_in():
            return self._refuse(401, "GatedRepo")
        files = self.holds.files[revision]
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            about = {"id": self.holds.name, "sha": SHA[revision], "siblings": siblings}
            return self._answer(about)
        return self._answer([_tree_entry(*item) for item in files.items()])

    def _send_file(self, revision, name):
        if not self._is_let_in():
            return self._refuse(401, "GatedRepo")
        if name == self.holds.forbidden:
            return self._refuse(403, "Forbidden")
        contents = self.holds.files.get(revision, {}).get(name)
        if contents is None:
            return self._refuse(404, "EntryNotFound")
        entry = _tree_entry(name, contents)
        etag = entry.get("lfs", entry)["oid"]
        headers = {"X-Repo-Commit": SHA[revision], "ETag": f'"{etag}"'}
        return self._send(name, contents, headers)

    def _send(self, name, contents, headers):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(contents) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.holds.sent.append(name)
        if name == self.holds.damaged:
            contents = contents[:-1] + bytes([contents[-1] ^ 1])
        if name == self.holds.cut:
            contents = contents[: start + (len(contents) - start) // 2]
            self.close_connection = True
        self.wfile.write(contents[start:])

    # === ModelScope ===

    def _answer_model_scope(self, what, query):
        if what == "revisions":
            branches = [{"Revision": name} for name in ("master", *self.holds.files)]
            return self._answer({"Code": 200, "Data": {"RevisionMap": {"Branches": branches}}})
        revision = query.get("Revision")
        files = self.holds.files.get("main" if revision == "master" else revision)
        if not self._is_let_in():
            return self._refuse(403, "Forbidden")
        if files is None:
            return self._refuse(404, "Not found")
        if what == "repo/files":
            entries = [_listed(*item) for item in files.items()]
            return self._answer({"Code": 200, "Data": {"Files": entries}})
        return self._send(query["FilePath"], files[query["FilePath"]], {})

    # === Kaggle, and uploads to Hugging Face ===

    def do_POST(self):
        path = urllib.parse.urlparse(self.path).path.strip("/")
        self.holds = self._hub_named(lambda name: f"/{name}" in f"/{path}/")
        if self.takes_upload(path, LARGE):
            return None
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method = self.path.rsplit("/", 1)[1]
        asked_for = f"{asked['ownerSlug']}/{asked['modelSlug']}"
        self.holds = self._hub_named(asked_for.__eq__)
        if asked_for != self.holds.name:
            return self._refuse(404, "Not found")
        if method == "GetModelInstance":
            return self._answer({"versionNumber": 2})
        files = self.holds.files.get(VERSIONS.get(str(asked["versionNumber"])))
        if files is None:
            return self._refuse(404, "Not found")
        if method == "ListModelInstanceVersionFiles":
            return self._answer({"files": [{"name": name} for name in files], "nextPageToken": ""})
        if not self._is_let_in():
            return self._refuse(403, "Permission denied")
        if asked.get("path") not in files:
            return self._refuse(404, "Not found")
        self.send_response(302)  # as Kaggle does, to where files can be asked for in parts
        self.send_header("Location", f"/kaggle/{asked['versionNumber']}/{asked['path']}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_stored(self, version, name):
        contents = self.holds.files[VERSIONS[version]][name]
        md5 = base64.b64encode(hashlib.md5(contents).digest()).decode()
        self._send(name, contents, {"Accept-Ranges": "bytes", "x-goog-hash": f"md5={md5}"})


def _tree_entry(name, contents):
    blob = hashlib.sha1(f"blob {len(contents)}\0".encode() + contents).hexdigest()
    entry = {"type": "file", "path": name, "size": len(contents), "oid": blob}
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(contents).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(contents), "pointerSize": 100}
    return entry


def _listed(name, contents):
    sha256 = hashlib.sha256(contents).hexdigest()
    return {"Path": name, "Type": "blob", "Size": len(contents), "Sha256": sha256}


def files_of(folder):
    """The files of a folder as a hub holds them: dict of name to bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
