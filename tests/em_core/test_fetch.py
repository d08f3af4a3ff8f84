"""Pinned downloads, against a server of our own that truncates, stalls, serves wrong bytes and asks for patience."""

import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from em_core import fetch as module
from em_core.errors import UserError
from em_core.fetch import Published, fetch, on_github

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WRONG = b"another content"


class Handler(BaseHTTPRequestHandler):
    """Paths say what happens: /cut/300000/ranges sends at most 300000 bytes an answer and honours Range."""

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        with server.lock:
            server.asked.append((self.path, asked))
            times = sum(path == self.path for path, _ in server.asked)
        what = urlsplit(self.path).path.split("/")[1:]  # a proxy is asked for whole addresses
        if what[0] == "moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif what[-1] == "good":
            time.sleep(server.delay)
            self.answer(CONTENT)
        elif what[0] == "wrong":
            self.answer(WRONG if times <= int(what[1]) else CONTENT)
        elif what[0] == "status":
            if times <= int(what[2]):
                self.send_response(int(what[1]))
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.answer(CONTENT)
        elif what[0] in ("cut", "stall"):
            self.part(int(what[1]), asked if "ranges" in what else None, stall=what[0] == "stall" and times == 1)
        elif what[0] == "closed":  # no length: nothing but the hash tells that something is missing
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT[:1000] if times == 1 else CONTENT)
        elif what[0] == "shifted":
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.send_error(404)

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def part(self, limit: int, asked: str | None, stall: bool) -> None:
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + limit])
        if stall:
            self.wfile.flush()
            self.server.released.wait(20)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("EM_DATA_DIR", raising=False)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data"


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.lock, server.released, server.delay = [], threading.Lock(), threading.Event(), 0.0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def part_of(cache: Path) -> Path:
    return cache.parent / "downloads" / f"{SHA256}.part"


def test_good_file_is_fetched_once_and_then_comes_from_the_cache(server, cache):
    path = fetch([f"{server.url}/good"], SHA256, "file.bin")
    assert path.read_bytes() == CONTENT and path.parent == cache
    assert fetch([f"{server.url}/good"], SHA256, "file.bin") == path
    assert server.asked == [("/good", None)]
    assert list(cache.iterdir()) == [path] and not part_of(cache).exists()


def test_damaged_cache_is_fetched_again(server):
    path = fetch([f"{server.url}/good"], SHA256, "file.bin")
    path.write_bytes(b"damaged")
    assert fetch([f"{server.url}/good"], SHA256, "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_wrong_content_is_refused_and_not_kept(server, cache):
    with pytest.raises(UserError) as caught:
        fetch([f"{server.url}/wrong/99"], SHA256, "file.bin")
    text = str(caught.value)
    assert hashlib.sha256(WRONG).hexdigest()[:12] in text and SHA256[:12] in text
    assert f"{server.url}/wrong/99" in text and "EM_DATA_DIR" in text
    assert list(cache.iterdir()) == [] and not part_of(cache).exists()
    assert len(server.asked) == module.ATTEMPTS


def test_content_that_is_wrong_once_is_asked_for_again(server):
    assert fetch([f"{server.url}/wrong/1"], SHA256, "file.bin").read_bytes() == CONTENT
    assert server.asked == [("/wrong/1", None)] * 2


def test_truncated_download_goes_on_where_it_stopped(server, cache):
    """Five answers are needed, more than the attempts without progress that are allowed."""
    assert fetch([f"{server.url}/cut/300000/ranges"], SHA256, "file.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, *(f"bytes={n}00000-" for n in (3, 6, 9, 12))]
    assert len(server.asked) > module.ATTEMPTS


def test_truncated_download_without_ranges_gives_up_and_keeps_no_target(server, cache):
    with pytest.raises(UserError, match="could not fetch file.bin"):
        fetch([f"{server.url}/cut/300000"], SHA256, "file.bin")
    assert list(cache.iterdir()) == []
    assert len(server.asked) == module.ATTEMPTS


def test_a_later_call_and_another_address_take_up_what_an_earlier_one_left(server, cache):
    with pytest.raises(UserError):
        fetch([f"{server.url}/cut/1000"], SHA256, "file.bin")
    assert part_of(cache).read_bytes() == CONTENT[:1000]
    assert fetch([f"{server.url}/cut/9999999/ranges"], SHA256, "file.bin").read_bytes() == CONTENT
    assert server.asked[-1] == ("/cut/9999999/ranges", "bytes=1000-")


def test_whole_file_of_a_killed_process_is_taken(server, cache):
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).write_bytes(CONTENT)
    assert fetch([f"{server.url}/cut/9999999/ranges"], SHA256, "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * (len(CONTENT) + 1)], ids=["shorter", "longer"])
def test_leftover_of_another_content_is_thrown_away(server, cache, left):
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).write_bytes(left)
    assert fetch([f"{server.url}/cut/9999999/ranges"], SHA256, "file.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={len(left)}-", None]


def test_another_range_than_asked_for_is_not_appended(server, cache):
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).write_bytes(CONTENT[:1000])
    assert fetch([f"{server.url}/shifted"], SHA256, "file.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["bytes=1000-", None]


def test_server_without_ranges_sends_the_whole_again(server, cache):
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).write_bytes(CONTENT[:1000])
    assert fetch([f"{server.url}/good"], SHA256, "file.bin").read_bytes() == CONTENT


def test_truncation_that_only_the_hash_shows_is_asked_for_again(server):
    assert fetch([f"{server.url}/closed"], SHA256, "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_stalled_download_is_cut_off_and_resumed(server, monkeypatch):
    monkeypatch.setattr(module, "STALL", 0.3)
    began = time.monotonic()
    assert fetch([f"{server.url}/stall/1279000/ranges"], SHA256, "file.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=1279000-"]
    assert time.monotonic() - began < 10  # the server itself would have waited 20 s


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_status_is_tried_again(server, status):
    assert fetch([f"{server.url}/status/{status}/2"], SHA256, "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_final_status_is_named_and_not_tried_again(server, cache, status):
    with pytest.raises(UserError, match=str(status)):
        fetch([f"{server.url}/status/{status}/9"], SHA256, "file.bin")
    assert len(server.asked) == 1 and list(cache.iterdir()) == []


def test_pauses_double_and_the_server_may_set_them(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.5)
    request = module.httpx.Request("GET", "http://127.0.0.1/")
    cut = module.httpx.ReadError("cut")
    for failures, seconds in ((1, 0.5), (2, 1.0), (3, 2.0), (20, 30.0)):
        assert 0.75 * seconds <= module._pause(cut, failures) <= 1.25 * seconds
    for asked, seconds in (("7", 7.0), ("86400", 30.0)):
        busy = module.httpx.Response(429, headers={"Retry-After": asked}, request=request)
        error = module.httpx.HTTPStatusError("busy", request=request, response=busy)
        assert module._pause(error, 1) == seconds


def test_nothing_listening_is_one_line(cache):
    url = f"http://127.0.0.1:{free_port()}/good"
    with pytest.raises(UserError) as caught:
        fetch([url], SHA256, "file.bin")
    assert url in str(caught.value) and "ConnectError" in str(caught.value)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/good", "no address"])
def test_address_that_is_none_is_refused(url):
    with pytest.raises(UserError, match="could not fetch file.bin"):
        fetch([url], SHA256, "file.bin")


def test_no_address_at_all():
    with pytest.raises(UserError, match="no address is known"):
        fetch([], SHA256, "file.bin")


def test_next_address_is_tried_and_redirects_are_followed(server):
    urls = [f"http://127.0.0.1:{free_port()}/good", f"{server.url}/none", f"{server.url}/moved", f"{server.url}/x"]
    assert fetch(urls, SHA256, "file.bin").read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/none", "/moved", "/good"]


def test_every_failure_is_listed(server):
    with pytest.raises(UserError) as caught:
        fetch([f"{server.url}/wrong/99", f"{server.url}/nothing"], SHA256, "file.bin")
    assert "sha256" in str(caught.value) and "404" in str(caught.value)


def test_many_at_once_fetch_it_once_and_leave_nothing_else(server, tmp_path):
    server.delay = 0.1
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch([f"{server.url}/good"], SHA256, "file.bin"), range(4)))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == CONTENT
    assert server.asked == [("/good", None)]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [paths[0]]


def test_the_users_proxy_is_used(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    assert fetch(["http://example.invalid/good"], SHA256, "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("proxy", ["foo://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_one_line(proxy, monkeypatch):
    for name in ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(UserError, match="HTTPS_PROXY or ALL_PROXY|could not fetch file.bin") as caught:
        fetch(["http://example.invalid/good"], SHA256, "file.bin")
    assert "\n" not in str(caught.value)


def test_others_may_read_the_cached_file(server):
    assert fetch([f"{server.url}/good"], SHA256, "file.bin").stat().st_mode & 0o777 == 0o644


def test_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="EM_CACHE_DIR"):
        fetch(["http://127.0.0.1:1/good"], SHA256, "file.bin")


def test_published_file_comes_from_the_data_folder_before_the_network(server, tmp_path, monkeypatch):
    file = Published("owner/name", "data/file.bin", SHA256, (f"{server.url}/good",))
    local = tmp_path / "copies" / "owner__name" / "data" / "file.bin"
    local.parent.mkdir(parents=True)
    local.write_bytes(CONTENT)
    monkeypatch.setenv("EM_DATA_DIR", str(tmp_path / "copies"))
    assert file.locate() == local and server.asked == []
    local.write_bytes(WRONG)
    with pytest.raises(UserError, match="another version"):
        file.locate()
    os.remove(local)
    assert file.locate().read_bytes() == CONTENT and len(server.asked) == 1


def test_published_file_that_cannot_be_had_says_where_to_put_it():
    with pytest.raises(UserError, match="set EM_DATA_DIR to a copy .*its place is owner__name/data/file.bin"):
        Published("owner/name", "data/file.bin", SHA256).locate()


def test_addresses_on_github_name_the_commit():
    assert (
        on_github("owner/name", "0" * 40, "a/b.txt")
        == f"https://raw.githubusercontent.com/owner/name/{'0' * 40}/a/b.txt"
    )
