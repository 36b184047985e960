"""The half of the loopback server that takes uploads, as Hugging Face's client sends them."""

import base64
import json

COMMIT = "1" * 40  # of "main"


class Uploads:
    """Mixin of a handler whose `holds` is the hub that gets the files.

    Small files come inside of the commit. Large ones are announced by their hash, sent to an
    address of their own, and named by the hash in the commit.
    """

    def takes_upload(self, path, large):
        """Answers a request if it belongs to an upload; returns whether it does.

        Args:
            path: str, the path of the address without its first slash.
            large: tuple of str, the endings of the names of large files.
        """
        name = self.holds.name
        answers = {
            "api/repos/create": self._create,
            "api/validate-yaml": self._validate,
            f"api/models/{name}/preupload/main": lambda body: self._announce(body, large),
            f"{name}.git/info/lfs/objects/batch": self._batch,
            f"api/models/{name}/commit/main": self._commit,
        }
        if path.startswith("uploads/"):
            self.holds.uploaded[path.removeprefix("uploads/")] = self._body()
            self._answer({})
        elif path not in answers:
            return False
        elif "Authorization" not in self.headers:
            self._body()
            self._answer({"error": "no token"}, 401)
        else:
            answers[path](self._body())
        return True

    def do_PUT(self):
        self.holds = self.hub_of_all
        self.takes_upload(self.path.strip("/"), ())

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _address(self, path):
        return f"http://{self.headers['Host']}/{path}"

    def _create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name != self.holds.name:
            return self._answer({"error": f"not your account: {name}"}, 403)
        return self._answer({"url": self._address(name)})

    def _validate(self, body):
        self._answer({"errors": [], "warnings": []})

    def _announce(self, body, large):
        names = [x["path"] for x in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith(large) else "regular" for name in names}
        files = [{"path": x, "uploadMode": modes[x], "shouldIgnore": False} for x in names]
        self._answer({"files": files})

    def _batch(self, body):
        objects = json.loads(body)["objects"]
        for one in objects:
            one["actions"] = {"upload": {"href": self._address(f"uploads/{one['oid']}")}}
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, body):
        files = self.holds.files["main"]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.holds.uploaded[value["oid"]]
        address = self._address(f"{self.holds.name}/commit/{COMMIT}")
        self._answer({"success": True, "commitUrl": address, "commitOid": COMMIT})
