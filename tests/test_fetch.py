"""Downloads over a poor line: they go on, they are checked, and they leave nothing half behind."""
import hashlib
import http.server
import tarfile
import threading

import numpy as np
import pytest

from bgcs.data.fetch import SetFile, fetch
from bgcs.data.files import ImageSetError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Faulty(http.server.BaseHTTPRequestHandler):
    "A server whose first answers break off."
    def do_GET(self):
        cls = type(self)
        wanted = self.headers.get("Range") if cls.ranges else None
        start = int(wanted[6:-1]) if wanted else 0
        cls.asked.append(self.headers.get("Range"))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(cls.content) - start))
        self.end_headers()
        broken = cls.failures > 0
        cls.failures -= broken
        self.wfile.write(cls.content[start:start + len(cls.content) // cls.sent if broken else None])

    def log_message(self, *args): pass


@pytest.fixture
def serve():
    "A function that starts a server: what it sends, how often it breaks off, whether it can send parts, which share it sends before."
    servers = []
    def start(content=CONTENT, failures=1, ranges=True, sent=3):
        handler = type("Handler", (Faulty,), dict(content=content, failures=failures, asked=[], ranges=ranges, sent=sent))
        servers.append(http.server.HTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return handler, f"http://127.0.0.1:{servers[-1].server_port}/file.bin"
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def md5(content): return f"md5:{hashlib.md5(content).hexdigest()}"


def packed(path, inside, content=b"content"):
    "The bytes of a tar file that holds one file."
    (path / "content").write_bytes(content)
    with tarfile.open(path / "made.tgz", "w:gz") as tar: tar.add(path / "content", inside)
    return (path / "made.tgz").read_bytes()


def test_what_broke_off_goes_on(serve, tmp_path):
    handler, url = serve()
    assert fetch(SetFile("file.bin", url, md5(CONTENT)), tmp_path, progress=False).read_bytes() == CONTENT
    assert handler.asked == [None, f"bytes={1_000_000 // 65536 * 65536}-"] and [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_what_came_is_kept_for_a_later_call(serve, tmp_path):
    handler, url = serve(failures=5, sent=20)
    file = SetFile("file.bin", url, md5(CONTENT))
    with pytest.raises(ImageSetError, match="could not be fetched"): fetch(file, tmp_path, progress=False)
    kept = (tmp_path / "file.bin.part").stat().st_size
    assert len(handler.asked) == 5 and 400_000 < kept < 800_000 and not (tmp_path / "file.bin").exists()
    fetch(file, tmp_path, progress=False)
    assert handler.asked[-1] == f"bytes={kept}-" and (tmp_path / "file.bin").read_bytes() == CONTENT
    n = len(handler.asked)
    fetch(file, tmp_path, progress=False)
    assert len(handler.asked) == n  # it is there


def test_a_server_that_cannot_send_parts_starts_again(serve, tmp_path):
    _, url = serve(ranges=False)
    assert fetch(SetFile("file.bin", url, md5(CONTENT)), tmp_path, progress=False).read_bytes() == CONTENT


def test_a_file_of_another_checksum_leaves_nothing_behind(serve, tmp_path):
    _, url = serve(failures=0)
    with pytest.raises(ImageSetError, match="could not be fetched .*hash"): fetch(SetFile("file.bin", url, "md5:" + 32 * "0"), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_nobody_answers(tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Faulty) as server: url = f"http://127.0.0.1:{server.server_port}/file.bin"
    with pytest.raises(ImageSetError, match="file.bin could not be fetched .*ConnectionError"): fetch(SetFile("file.bin", url, md5(CONTENT)), tmp_path, progress=False)


def test_what_is_fetched_by_hand_is_named(tmp_path):
    with pytest.raises(ImageSetError, match="sassed.h5 from https://x.*by hand"): fetch(SetFile("sassed.h5", "https://x/sassed.h5"), tmp_path)


def test_an_archive_is_unpacked_once(serve, tmp_path):
    content = packed(tmp_path, "folder/inside.bin")
    handler, url = serve(content, failures=0)
    archive = SetFile("a.tgz", url, md5(content), folder="folder")
    assert (fetch(archive, tmp_path, progress=False) / "inside.bin").read_bytes() == b"content" and not list(tmp_path.glob("*.unpacking"))
    fetch(archive, tmp_path, progress=False)
    assert len(handler.asked) == 1


def test_an_archive_stays_in_its_folder(serve, tmp_path):
    content, root = packed(tmp_path, "../escaped.bin"), tmp_path / "root"
    _, url = serve(content, failures=0)
    with pytest.raises(ImageSetError, match="could not be fetched"): fetch(SetFile("b.tgz", url, md5(content), folder="b"), root, progress=False)
    assert not list(tmp_path.rglob("escaped.bin"))
