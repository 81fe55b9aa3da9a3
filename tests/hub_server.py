"""A small Hub on the loopback interface: the routes of the real one that huggingface_hub uses to push and to pull.

Repositories live in memory. Files with the names of weights go through Git LFS, as on the real Hub; Xet is not spoken.
Every request is kept in `requests`, for tests that ask what was reached.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin")


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        content = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        listing = json.dumps([[path, blob_id(data)] for path, data in sorted(content.items())])
        sha = hashlib.sha1(f"{len(self.commits)} {branch} {message} {listing}".encode()).hexdigest()
        self.commits[sha] = content
        self.branches[branch] = sha
        self.messages.append(message)
        return sha


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def content_id(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(LFS_SUFFIXES) else blob_id(data)


class HubServer:
    """Serves until `close`. `tokens` are (user, may write) by token."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cards: list[dict] = []
        self.tokens = {"hf_ada": ("ada", True), "hf_reader": ("ada", False), "hf_eve": ("eve", True)}
        self.down = False
        self.full = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.hub = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.0, the default: each answer closes its connection, so no socket outlives a test.

    def log_message(self, *args) -> None:
        pass

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append((self.command, path))
        body = self.read_body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            if self.hub.down:
                raise RefusedError(503, "Service Unavailable")
            if token and token not in self.hub.tokens:
                raise RefusedError(401, "Invalid credentials in Authorization header")
            self.user, self.may_write = self.hub.tokens.get(token, (None, False))
            # The revision is one part of the address as sent (refs%2Fpr%2F1): split before unquoting.
            for method, pattern, handler in ROUTES:
                match = method == self.command and re.fullmatch(pattern, url.path)
                if match:
                    handler(self, body, *(unquote(part) for part in match.groups()))
                    return
            raise RefusedError(404, f"no such route: {self.command} {path}")
        except RefusedError as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, data: object, status: int = 200) -> None:
        self.send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def readable(self, repo_id: str) -> Repo:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.user != repo_id.split("/")[0]):
            # the real Hub does not tell strangers whether a repository exists
            if self.user is None:
                raise RefusedError(401, "Invalid username or password.")
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id: str) -> Repo:
        repo = self.readable(repo_id)
        if self.user is None:
            raise RefusedError(401, "Invalid username or password.")
        if not self.may_write or self.user != repo_id.split("/")[0]:
            raise RefusedError(403, f"Forbidden: you don't have write access to {repo_id}")
        return repo

    def files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self.readable(repo_id)
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    def create_repo(self, body: bytes) -> None:
        asked = json.loads(body)
        if self.user is None:
            raise RefusedError(401, "Invalid username or password.")
        owner = asked.get("organization") or self.user
        repo_id = f"{owner}/{asked['name']}"
        if owner != self.user or not self.may_write:
            raise RefusedError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        known = repo_id in self.hub.repos
        if not known:
            self.hub.repos[repo_id] = Repo(private=asked.get("visibility") == "private")
            self.hub.repos[repo_id].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, message="initial commit")
        self.send_json({"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}, 409 if known else 200)

    def validate_yaml(self, body: bytes) -> None:
        header = json.loads(body)["content"].split("---\n")[1]
        card = yaml.safe_load(header)
        self.hub.cards.append(card)
        base = card.get("base_model", "a/b")
        errors = [] if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else [{"message": '"base_model" is not valid'}]
        self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create_branch(self, body: bytes, repo_id: str, branch: str) -> None:
        repo = self.writable(repo_id)
        if branch in repo.branches:
            raise RefusedError(409, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self.send_json({})

    def preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        self.readable(repo_id) if "create_pr" in self.query else self.writable(repo_id)
        _, files = self.files(repo_id, revision)
        answer = [
            {
                "path": entry["path"],
                "uploadMode": "lfs" if entry["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": content_id(entry["path"], files[entry["path"]]) if entry["path"] in files else None,
            }
            for entry in json.loads(body)["files"]
        ]
        self.send_json({"files": answer})

    def lfs_batch(self, body: bytes, repo_id: str) -> None:
        self.readable(repo_id)
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.endpoint}/{repo_id}/lfs-verify", "header": {}},
            }
            there = wanted["oid"] in self.hub.objects
            objects.append({**wanted} if there else {**wanted, "actions": actions})
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if self.hub.full:
            raise RefusedError(403, "Storage limit reached")
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "the content does not have this sha256")
        self.hub.objects[oid] = body
        self.send(200)

    def lfs_verify(self, body: bytes, repo_id: str) -> None:
        asked = json.loads(body)
        if len(self.hub.objects.get(asked["oid"], b"")) != asked["size"]:
            raise RefusedError(404, "no such object")
        self.send_json({})

    def commit(self, body: bytes, repo_id: str, revision: str) -> None:
        pull = "create_pr" in self.query
        repo = self.readable(repo_id) if pull else self.writable(repo_id)
        self.files(repo_id, revision)
        lines = [json.loads(line) for line in body.splitlines()]
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                raise RefusedError(400, f"unknown operation {line['key']}")
        branch = "refs/pr/1" if pull else revision
        sha = repo.commit(files, branch, lines[0]["value"]["summary"])
        url = f"{self.hub.endpoint}/{repo_id}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "hookOutput": ""}
        self.send_json({**answer, "pullRequestUrl": f"{url}/discussions/1"} if pull else answer)

    def info(self, body: bytes, repo_id: str, revision: str = "main") -> None:
        sha, files = self.files(repo_id, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        repo = self.hub.repos[repo_id]
        self.send_json({"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private, "siblings": siblings})

    def tree(self, body: bytes, repo_id: str, revision: str) -> None:
        entries = []
        for path, data in sorted(self.files(repo_id, revision)[1].items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
            if path.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        self.send_json(entries)

    def resolve(self, body: bytes, repo_id: str, revision: str, path: str) -> None:
        sha, files = self.files(repo_id, revision)
        if self.hub.repos[repo_id].gated and self.user != repo_id.split("/")[0]:
            raise RefusedError(403, f"Access to model {repo_id} is restricted", "GatedRepo")
        if path not in files:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        data = files[path]
        self.send(
            200,
            data,
            {"ETag": f'"{content_id(path, data)}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"},
        )


_ID = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{_ID}/branch/([^/]+)", _Handler.create_branch),
    ("POST", rf"/api/models/{_ID}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
    ("POST", rf"/{_ID}/lfs-verify", _Handler.lfs_verify),
    ("POST", rf"/api/models/{_ID}/commit/([^/]+)", _Handler.commit),
    ("GET", rf"/api/models/{_ID}", _Handler.info),
    ("GET", rf"/api/models/{_ID}/revision/([^/]+)", _Handler.info),
    ("GET", rf"/api/models/{_ID}/tree/([^/]+)/?", _Handler.tree),
    ("HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET", rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
