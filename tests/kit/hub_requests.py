"""The requests that the stand-in of the hub answers; see :mod:`tests.kit.hub`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
_LFS = (".safetensors", ".parquet", ".bin", ".h5", ".npz")
_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info|refs|preupload|commit|branch|auth-check)(?:/(.*))?)?"
)
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/(.+)")
_REVISION = re.compile(r"(refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(.*))?")


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; the server sets `hub`."""

    protocol_version = "HTTP/1.1"
    hub: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._go()

    def do_HEAD(self) -> None:
        self._go()

    def do_POST(self) -> None:
        self._go()

    def do_PUT(self) -> None:
        self._go()

    def _go(self) -> None:
        parts = urlsplit(self.path)
        path, self._query = unquote(parts.path), parse_qs(parts.query)
        self._body = self._read_body()
        self._fault = self.hub.answer(self.command, path)
        if self._fault is not None and self._fail(self._fault):
            return
        try:
            if (match := _API.fullmatch(path)) is not None:
                self._api(match[1], match[2], match[3], match[4] or "")
            elif (match := _RESOLVE.fullmatch(path)) is not None:
                self._file("datasets" if match[1] else "models", match[2], match[3])
            elif path.endswith(".git/info/lfs/objects/batch"):
                self._batch()
            elif path.startswith("/lfs/"):
                self.hub.blobs[path.removeprefix("/lfs/")] = self._body
                self._send(200)
            elif path == "/api/repos/create":
                self._create()
            elif path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif path == "/api/whoami-v2":
                self._send(200, {"name": "someone", "type": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []})
            else:
                self._refuse(404, "", f"Not found: {path}")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fail(self, fault: Any) -> bool:
        """Whether the fault has answered the request; truncated and slow answers are made by :meth:`_file`."""
        if fault.action in ("truncate", "slow"):
            return False
        if fault.action == "hang":
            time.sleep(fault.seconds)
        if fault.action in ("hang", "reset"):
            self.close_connection = True
            self.connection.close()
        elif fault.action == "429":
            self._send(429, {"error": "rate limit"}, {"Retry-After": "1"})
        elif fault.action == "404":
            self._refuse(404, "RepoNotFound", "Repository not found")
        else:
            self._refuse(int(fault.action), "", "Service Unavailable" if fault.action == "503" else "Refused")
        return True

    def _send(self, code: int, body: Any = b"", headers: Mapping[str, str] | None = None, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, code: int, name: str, message: str, **headers: str) -> None:
        extra = {"X-Error-Code": name} if name else {}
        self._send(code, {"error": message}, {"X-Error-Message": message, **extra, **headers})

    def _find(self, kind: str, name: str, revision: str) -> tuple[Any, str] | None:
        """The repository and the commit; None where a refusal has been sent."""
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
            return None
        sha = repository.resolve(revision)
        if sha is None and repository.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, sha or ""

    def _api(self, kind: str, name: str, what: str | None, rest: str) -> None:
        match = _REVISION.fullmatch(rest)
        revision, inside = (match[1], match[2] or "") if match else ("main", "")
        if (found := self._find(kind, name, "main" if what == "branch" else revision)) is None:
            return
        repository, sha = found
        files = repository.commits.get(sha, {})
        if what in (None, "revision"):
            facts = {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": sha,
                "private": repository.private,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            gated = "manual" if repository.gated else False
            self._send(200, {**facts, "gated": gated, "siblings": [{"rfilename": path} for path in sorted(files)]})
        elif what == "refs":
            branches = [
                {"name": each, "ref": f"refs/heads/{each}", "targetCommit": at} for each, at in repository.branches.items()
            ]
            self._send(200, {"branches": branches, "converts": [], "tags": []})
        elif what == "auth-check":
            self._gate(repository, name) or self._send(200, {})
        elif what == "tree":
            self._tree(files, inside)
        elif what == "paths-info":
            asked = json.loads(self._body)["paths"] if self._body[:1] == b"{" else parse_qs(self._body.decode()).get("paths", [])
            self._send(200, [entry for path in asked if (entry := _entry(files, path.strip("/"))) is not None])
        elif what == "preupload":
            asked = json.loads(self._body)["files"]
            modes = {f["path"]: "lfs" if f["path"].endswith(_LFS) else "regular" for f in asked}
            self._send(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif what == "commit":
            self._commit(kind, name, files, revision)
        elif what == "branch":
            self._branch(repository, rest)

    def _tree(self, files: Files, inside: str) -> None:
        prefix = f"{inside}/" if inside else ""
        below = [path for path in files if path.startswith(prefix)]
        if not below:
            self._refuse(404, "EntryNotFound", f"{inside} does not exist")
            return
        deep = self._query.get("recursive", ["false"])[0].lower() in ("true", "1")
        parts = [path[len(prefix) :].split("/") for path in below]
        folders = {prefix + "/".join(each[:n]) for each in parts for n in range(1, len(each))}
        shown = [path for path in (*below, *folders) if deep or "/" not in path[len(prefix) :]]
        self._send(200, [_entry(files, path) for path in sorted(shown)])

    def _create(self) -> None:
        facts = json.loads(self._body)
        kind = f"{facts.get('type') or 'model'}s"
        name = "/".join(filter(None, (facts.get("organization") or "someone", facts["name"])))
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
        known = (kind, name) in self.hub.repositories
        if not known:
            self.hub.add(kind, name, {".gitattributes": b""})
            self.hub.repositories[kind, name].private = bool(facts.get("private")) or facts.get("visibility") == "private"
        self._send(409 if known else 200, {"url": url, "name": name, "id": name, "error": "exists"})

    def _branch(self, repository: Any, branch: str) -> None:
        known = branch in repository.branches
        if not known:
            repository.branches[branch] = repository.branches["main"]
        self._send(409 if known else 200, {"error": "exists"})

    def _batch(self) -> None:
        """Say where large files are uploaded to."""
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            for each in json.loads(self._body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _commit(self, kind: str, name: str, before: Files, branch: str) -> None:
        files = dict(before)
        for line in self._body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
        sha = self.hub.add(kind, name, files, branch=branch)
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "hookOutput": ""})

    def _gate(self, repository: Any, name: str) -> bool:
        """Whether access to a gated repository was refused."""
        if repository.gated:
            code = 403 if self.headers.get("Authorization") else 401
            self._refuse(code, "GatedRepo", f"Access to model {name} is restricted.")
        return repository.gated

    def _file(self, kind: str, name: str, rest: str) -> None:
        match = _REVISION.fullmatch(rest)
        assert match is not None
        if (found := self._find(kind, name, match[1])) is None or self._gate(found[0], name):
            return
        repository, sha = found
        data = repository.commits[sha].get(match[2] or "")
        if data is None:
            self._refuse(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
            return
        tag = f'"{(_sha256 if match[2].endswith(_LFS) else _blob)(data)}"'
        headers = {"ETag": tag, "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if match[2].endswith(_LFS):
            headers |= {"X-Linked-Etag": tag, "X-Linked-Size": str(len(data))}
        code = 200
        if (span := re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")) is not None:
            first = int(span[1]) if span[1] else max(0, len(data) - int(span[2]))
            last = min(int(span[2]), len(data) - 1) if span[1] and span[2] else len(data) - 1
            if first >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            code, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        if self._fault is None or self.command == "HEAD":
            self._send(code, data, headers, "application/octet-stream")
        else:
            self._break_off(code, data, headers, self._fault)

    def _break_off(self, code: int, data: bytes, headers: Mapping[str, str], fault: Any) -> None:
        """Send a part of a file and close the connection, or all of it slowly."""
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        size = len(data) // 10 + 1
        for start in range(0, len(data), size):
            if fault.action == "truncate" and start >= fault.share * len(data):
                break
            self.wfile.write(data[start : start + size])
            self.wfile.flush()
            if fault.action == "slow":
                time.sleep(fault.seconds)
        if fault.action == "truncate":
            self.close_connection = True
            self.connection.close()


def _entry(files: Files, path: str) -> dict[str, Any] | None:
    """A file or folder, as the hub's listings have it."""
    if path in files:
        data = files[path]
        entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
        return entry | ({"lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 130}} if path.endswith(_LFS) else {})
    if any(each.startswith(f"{path}/") for each in files):
        return {"type": "directory", "path": path, "size": 0, "oid": _blob(path.encode())}
    return None


def _blob(data: bytes) -> str:
    """The hash that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
