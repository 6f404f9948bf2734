"""A model hub on loopback: as much of its HTTP interface as the hub's own client needs to upload and fetch a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

SHA = "1" * 40
TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """What has been uploaded, by repository and file; `private` by repository."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)


@contextmanager
def hub() -> Iterator[Hub]:
    kept = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": SHA, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer({"error": "Invalid user token."}, 401)
            path = self.path.partition("?")[0]
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                kept.files.setdefault(name, {})
                kept.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
                return self._answer({"url": f"{kept.address}/{name}", "id": name})
            if path == "/api/validate-yaml":
                return self._answer({"errors": [], "warnings": []})
            name, what = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()  # type: ignore[union-attr]
            if what == "preupload":
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self._answer({"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    kept.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer({"commitUrl": f"{kept.address}/{name}/commit/{SHA}", "commitOid": SHA})

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/[^/]+", path):
                siblings = [{"rfilename": file} for file in kept.files[found[1]]]
                return self._answer({"id": found[1], "sha": SHA, "siblings": siblings})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
                tree = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in kept.files[found[1]].items()
                ]
                return self._answer(tree)
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            if not found or found[2] not in kept.files.get(found[1], {}):
                return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            data = kept.files[found[1]][found[2]]
            return self._answer(data, headers={"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
