"""How the Hub of the tests answers every request that the real client makes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from tests.hub_store import (
    LARGE_BYTES,
    LARGE_NAMES,
    Answer,
    Blob,
    Call,
    RefusedError,
    Repo,
    Request,
    Store,
    owner,
    refused,
    said,
)

DATE = "2026-01-01T00:00:00.000Z"


def whoami(call: Call) -> Answer:
    """The token's user."""
    if call.user is None:
        return refused(401, "Invalid username or password.")
    role = "read" if call.request.token in call.store.read_only else "write"
    token = {"displayName": "a test's", "role": role}
    return said({"type": "user", "name": call.user, "orgs": [], "auth": {"accessToken": token}})


def validate_yaml(call: Call) -> Answer:
    """Every card is fine."""
    return said({"errors": [], "warnings": []})


def create(call: Call) -> Answer:
    """A new repository with its first commit, as the Hub makes one with a .gitattributes."""
    asked = call.json()
    if call.user is None:
        return refused(401, "Invalid username or password.")
    space = asked.get("organization") or call.user
    if space != call.user or call.request.token in call.store.read_only:
        message = f'You don\'t have the rights to create a model under the namespace "{space}"'
        return refused(403, message)
    name = f"{space}/{asked['name']}"
    answer = said({"url": f"{call.store.url}/{name}", "name": name})
    if name in call.store.repos:
        error = {"error": "You already created this model repo"}
        answer = said({**json.loads(answer.body), **error}, 409)
    else:
        repo = Repo(private=asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": Blob.of(".gitattributes", b"")})
        call.store.repos[name] = repo
    return answer


def info(call: Call) -> Answer:
    """`model_info`, the files' sizes and hashes only when asked for."""
    sha, files = call.commit()
    repo = call.found()
    details = "blobs" in call.request.query
    siblings = [
        {"rfilename": name, **(sized(call, name, blob) if details else {})}
        for name, blob in files.items()
    ]
    return said(
        {
            "_id": "0" * 24,
            "id": call.repo,
            "modelId": call.repo,
            "author": owner(call.repo),
            "sha": sha,
            "lastModified": DATE,
            "createdAt": DATE,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
    )


def sized(call: Call, name: str, blob: Blob) -> dict[str, Any]:
    """A file's size and hashes."""
    size = len(blob.data) + call.store.grown(name)
    lfs = {"sha256": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
    return {"size": size, "blobId": blob.oid} | ({"lfs": lfs} if blob.large else {})


def resolve(call: Call) -> Answer:
    """A file's bytes, or the part of them that was asked for."""
    repo = call.found()
    sha, files = call.commit()
    if repo.gated and not call.store.may_read(call.user, call.repo):
        message = f"Access to model {call.repo} is restricted."
        return refused(403 if call.user else 401, message, "GatedRepo")
    if call.name not in files:
        answer = refused(404, "Entry not found", "EntryNotFound")
        answer.headers["X-Repo-Commit"] = sha
        return answer
    blob = files[call.name]
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if blob.large:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    return ranged(call.request.headers.get("range", ""), Answer(200, blob.data, headers))


def ranged(wanted: str, whole: Answer) -> Answer:
    """The part of an answer that was asked for as `bytes=FIRST-LAST`."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    if not match:
        return whole
    size = len(whole.body)
    first, last = int(match[1]), min(int(match[2] or size), size - 1)
    if first > last:
        return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
    headers = {**whole.headers, "Content-Range": f"bytes {first}-{last}/{size}"}
    return Answer(206, whole.body[first : last + 1], headers)


def preupload(call: Call) -> Answer:
    """Which files go the large way, and what the branch has of them."""
    call.writable()
    _, files = call.commit()

    def mode(file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(LARGE_NAMES) or file["size"] > LARGE_BYTES
        had = files.get(file["path"])
        kind = "lfs" if large else "regular"
        oid = {"oid": had.etag} if had else {}
        return {"path": file["path"], "uploadMode": kind, "shouldIgnore": False, **oid}

    return said({"files": [mode(file) for file in call.json()["files"]]})


def batch(call: Call) -> Answer:
    """Where to put large files, "basic": one PUT each, then a check."""
    call.writable()

    def wanted(item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in call.store.uploads:
            return item
        put = {"href": f"{call.store.url}/lfs/objects/{item['oid']}"}
        return {**item, "actions": {"upload": put, "verify": {"href": f"{call.store.url}/lfs/ok"}}}

    return said({"transfer": "basic", "objects": [wanted(i) for i in call.json()["objects"]]})


def put(call: Call) -> Answer:
    """A large file's bytes; the address is the permission, as with signed ones."""
    if hashlib.sha256(call.request.body).hexdigest() != call.name:
        return refused(400, "The bytes are not those of the address")
    call.store.uploads[call.name] = call.request.body
    return Answer()


def verify(call: Call) -> Answer:
    """Whether a large file arrived."""
    data = call.store.uploads.get(call.json()["oid"])
    arrived = data is not None and len(data) == call.json()["size"]
    return said({}) if arrived else refused(404, "Not uploaded")


def commit(call: Call) -> Answer:
    """A commit: lines of JSON, a header and then one per file."""
    repo = call.writable()
    parent, had = call.commit()
    files = dict(had)
    for line in call.request.body.splitlines():
        key, value = (json.loads(line)[k] for k in ("key", "value"))
        if key == "header" and value.get("parentCommit", parent) != parent:
            return refused(412, "A commit has happened since. Please refresh and try again.")
        if key == "file":
            data = base64.b64decode(value["content"])
            files[value["path"]] = Blob.of(value["path"], data)
        elif key == "lfsFile":
            if value["oid"] not in call.store.uploads:
                return refused(400, f"LFS pointer to a file that is not there: {value['path']}")
            files[value["path"]] = Blob(call.store.uploads[value["oid"]], large=True)
        elif key == "deletedFile":
            del files[value["path"]]
        elif key == "deletedFolder":
            files = {n: b for n, b in files.items() if not n.startswith(value["path"])}
    sha = repo.commit(call.revision, files)
    url = f"{call.store.url}/{call.repo}/commit/{sha}"
    return said({"success": True, "commitOid": sha, "commitUrl": url})


REPO = "(?P<repo>[^/]+/[^/]+)"
REVISION = "(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[[Call], Answer]]] = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", "/api/repos/create", create),
    ("GET", f"/api/models/{REPO}", info),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", info),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", preupload),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", commit),
    ("POST", f"/{REPO}[.]git/info/lfs/objects/batch", batch),
    ("PUT", "/lfs/objects/(?P<name>[0-9a-f]{64})", put),
    ("POST", "/lfs/ok", verify),
    ("HEAD GET", f"/{REPO}/resolve/{REVISION}/(?P<name>.+)", resolve),
]


def answered(store: Store, request: Request) -> Answer:
    """The answer to a request."""
    user = store.tokens.get(request.token or "")
    if request.token and user is None:
        return refused(401, "Invalid credentials in Authorization header")
    for methods, pattern, route in ROUTES:
        match = re.fullmatch(pattern, request.path)
        if match and request.method in methods.split():
            named = {k: unquote(v or "") for k, v in match.groupdict().items()}
            try:
                return route(Call(store, request, user, **named))
            except RefusedError as refusal:
                return refusal.answer
    return refused(404, f"no such route: {request.method} {request.path}")
