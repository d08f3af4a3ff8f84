"""Pinned downloads, against a server of our own."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from em_core.errors import UserError
from em_core.fetch import fetch

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.endswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif self.path.endswith("/good"):
            self.answer(CONTENT, len(CONTENT))
        elif self.path.endswith("/bad"):
            self.answer(b"another content", 15)
        elif self.path.endswith("/cut"):
            self.answer(CONTENT[:1000], len(CONTENT))
        else:
            self.send_error(404)

    def answer(self, content: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data"


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_good_file_is_fetched_once_and_then_comes_from_the_cache(server, cache):
    path = fetch([f"{server.url}/good"], SHA256, "file.bin")
    assert path.read_bytes() == CONTENT and path.parent == cache
    assert fetch([f"{server.url}/good"], SHA256, "file.bin") == path
    assert server.asked == ["/good"]
    assert list(cache.iterdir()) == [path]


def test_damaged_cache_is_fetched_again(server):
    path = fetch([f"{server.url}/good"], SHA256, "file.bin")
    path.write_bytes(b"damaged")
    assert fetch([f"{server.url}/good"], SHA256, "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_wrong_content_is_refused_and_not_kept(server, cache):
    with pytest.raises(UserError) as caught:
        fetch([f"{server.url}/bad"], SHA256, "file.bin")
    text = str(caught.value)
    assert hashlib.sha256(b"another content").hexdigest()[:12] in text and SHA256[:12] in text
    assert f"{server.url}/bad" in text and "EM_DATA_DIR" in text
    assert list(cache.iterdir()) == []


def test_status_404_is_named(server, cache):
    with pytest.raises(UserError, match="404"):
        fetch([f"{server.url}/nothing"], SHA256, "file.bin")
    assert list(cache.iterdir()) == []


def test_cut_connection_leaves_nothing(server, cache):
    with pytest.raises(UserError, match="could not fetch file.bin"):
        fetch([f"{server.url}/cut"], SHA256, "file.bin")
    assert list(cache.iterdir()) == []


def test_nothing_listening_is_one_line(cache):
    url = f"http://127.0.0.1:{free_port()}/good"
    with pytest.raises(UserError) as caught:
        fetch([url], SHA256, "file.bin")
    assert url in str(caught.value) and "ConnectError" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_next_address_is_tried_and_redirects_are_followed(server):
    urls = [f"http://127.0.0.1:{free_port()}/good", f"{server.url}/bad", f"{server.url}/moved", f"{server.url}/x"]
    assert fetch(urls, SHA256, "file.bin").read_bytes() == CONTENT
    assert server.asked == ["/bad", "/moved", "/good"]


def test_every_failure_is_listed(server):
    with pytest.raises(UserError) as caught:
        fetch([f"{server.url}/bad", f"{server.url}/nothing"], SHA256, "file.bin")
    assert "sha256" in str(caught.value) and "404" in str(caught.value)


def test_the_users_proxy_is_used(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    assert fetch(["http://example.invalid/good"], SHA256, "file.bin").read_bytes() == CONTENT


def test_others_may_read_the_cached_file(server):
    assert fetch([f"{server.url}/good"], SHA256, "file.bin").stat().st_mode & 0o777 == 0o644
