"""A server that answers what the client of the Hugging Face hub asks when models are uploaded and downloaded.

It keeps repositories in memory: commits by their hash, each a dict from paths to content. Large files go the way of
Git LFS, as the client goes without Xet. What it is asked is in `asked`; what it doesn't know is answered with 404.
"""
import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"


def git_hash(content): return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repository:
    def __init__(self, private):
        self.private, self.commits, self.branches = private, {}, {}
        self.commit("main", {}, "initial commit")

    def commit(self, branch, files, message):
        name = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def find(self, revision): return revision if revision in self.commits else self.branches.get(revision)


class Hub:
    def __init__(self): self.repositories, self.large, self.asked = {}, {}, []

    def repository(self, name, authorised):
        found = self.repositories.get(name)
        return None if found is None or (found.private and not authorised) else found

    @staticmethod
    def is_large(path): return path.endswith((".safetensors", ".png"))

    def described(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if not self.is_large(path): return entry
        return entry | {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    @property
    def hub(self): return self.server.hub

    @property
    def authorised(self): return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def send(self, status=200, content=b"", **headers):
        if not isinstance(content, bytes): content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | headers
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | headers).items(): self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(content)

    def refuse(self, status, code, message): self.send(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_any(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self.body()
        for (method, pattern), answer in ROUTES.items():
            if self.command in method.split() and (found := re.fullmatch(pattern, path)): return answer(self, body, **found.groupdict())
        self.refuse(404, "Unknown", f"nothing at {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""): return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def known(self, repo, revision=None, write=False):
        "The repository and the commit asked for; or None, and a refusal is sent."
        found = self.hub.repository(repo, self.authorised)
        if found is None: return self.refuse(401 if not self.authorised else 404, "RepoNotFound", "Repository not found")
        if write and not self.authorised: return self.refuse(403, "Forbidden", "You may not write here")
        if revision is not None and found.find(revision) is None: return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found


def create(ask, body):
    if not ask.authorised: return ask.refuse(401, "Unauthorized", "Invalid username or password.")
    given = json.loads(body)
    name = f"{given['organization']}/{given['name']}"
    if name in ask.hub.repositories: return ask.send(409, {"error": "You already created this model repo", "url": f"{ask.server.address}/{name}"})
    private = given.get("private") or given.get("visibility") == "private"
    ask.hub.repositories[name] = Repository(private)
    ask.send(200, {"url": f"{ask.server.address}/{name}", "name": name})


def branch(ask, body, repo, branch):
    if not (found := ask.known(repo, write=True)): return
    if branch in found.branches: return ask.refuse(409, "Conflict", "Reference already exists")
    found.branches[branch] = found.branches["main"]
    ask.send(200, {})


def validate(ask, body):
    content = json.loads(body)["content"]
    good = content.startswith("---\n") and "\n---\n" in content[4:]
    ask.send(200 if good else 400, {"errors": [] if good else [{"message": "no metadata"}], "warnings": []})


def modes(ask, body, repo, revision):
    if not (found := ask.known(repo, revision, write=True)): return
    there, files = found.commits[found.find(revision)], []
    for file in json.loads(body)["files"]:
        path = file["path"]
        mode, oid = "lfs" if ask.hub.is_large(path) else "regular", None
        if path in there: oid = hashlib.sha256(there[path]).hexdigest() if mode == "lfs" else git_hash(there[path])
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    ask.send(200, {"files": files})


def batch(ask, body, repo):
    if not ask.known(repo, write=True): return
    objects = []
    for wanted in json.loads(body)["objects"]:
        places = {"upload": f"upload/{wanted['oid']}", "verify": "verify"}
        actions = {name: {"href": f"{ask.server.address}/lfs/{place}"} for name, place in places.items()}
        objects.append(wanted | ({} if wanted["oid"] in ask.hub.large else {"actions": actions}))
    ask.send(200, {"transfer": "basic", "objects": objects})


def upload(ask, body, oid):
    if hashlib.sha256(body).hexdigest() != oid: return ask.refuse(400, "Mismatch", "content is not that of the name")
    ask.hub.large[oid] = body
    ask.send()


def verify(ask, body):
    wanted = json.loads(body)
    good = len(ask.hub.large.get(wanted["oid"], b"")) == wanted["size"]
    ask.send(200 if good else 404, {})


def commit(ask, body, repo, revision):
    if not (found := ask.known(repo, revision, write=True)): return
    files, message = dict(found.commits[found.find(revision)]), ""
    for line in map(json.loads, body.splitlines()):
        kind, value = line["key"], line["value"]
        if kind == "header": message = value["summary"]
        if kind == "file": files[value["path"]] = base64.b64decode(value["content"])
        if kind == "lfsFile": files[value["path"]] = ask.hub.large[value["oid"]]
        if kind == "deletedFile": del files[value["path"]]
    name = found.commit(revision, files, message)
    ask.send(200, {"commitUrl": f"{ask.server.address}/{repo}/commit/{name}", "commitOid": name, "success": True})


def info(ask, body, repo, revision="main"):
    if not (found := ask.known(repo, revision)): return
    name = found.find(revision)
    siblings = [{"rfilename": path} for path in found.commits[name]]
    ask.send(200, {"id": repo, "modelId": repo, "sha": name, "private": bool(found.private), "siblings": siblings, "tags": []})


def tree(ask, body, repo, revision):
    if not (found := ask.known(repo, revision)): return
    ask.send(200, [ask.hub.described(path, content) for path, content in found.commits[found.find(revision)].items()])


def resolve(ask, body, repo, revision, path):
    if not (found := ask.known(repo, revision)): return
    name = found.find(revision)
    if path not in found.commits[name]: return ask.refuse(404, "EntryNotFound", "Entry not found")
    content = found.commits[name][path]
    tag = hashlib.sha256(content).hexdigest() if ask.hub.is_large(path) else git_hash(content)
    headers = {"X_Repo_Commit": name, "ETag": f'"{tag}"', "X_Linked_Size": len(content), "X_Linked_ETag": f'"{tag}"'}
    ask.send(200, content, **headers)


REPO, REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>.+)"
ROUTES = {
    ("POST", "/api/repos/create"): create,
    ("POST", "/api/validate-yaml"): validate,
    ("POST", f"/api/models/{REPO}/branch/(?P<branch>.+)"): branch,
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}"): modes,
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch"): batch,
    ("PUT", "/lfs/upload/(?P<oid>[0-9a-f]+)"): upload,
    ("POST", "/lfs/verify"): verify,
    ("POST", f"/api/models/{REPO}/commit/{REVISION}"): commit,
    ("GET", f"/api/models/{REPO}/revision/{REVISION}"): info,
    ("GET", f"/api/models/{REPO}"): info,
    ("GET", f"/api/models/{REPO}/tree/{REVISION}"): tree,
    ("GET HEAD", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"): resolve,
}


@contextlib.contextmanager
def serving():
    "A hub on a free port of this machine, in a thread; its `address` is what the client takes for the hub's."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.hub, server.address = Hub(), f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
