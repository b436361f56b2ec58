"""A local server of weights, which stands for the hub and torchvision's; its faults are ordered."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Site(ThreadingHTTPServer):
    """Files by path, and faults by path: each request takes the first of the list.

    A fault is ("status", code, headers), ("break", bytes), ("stall", seconds, bytes before),
    ("slow", seconds a chunk), ("redirect", path) or ("no-range",).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests = {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def hub_file(self, repository: str, name: str, data: bytes) -> None:
        """Publish a file as the hub does."""
        for revision in ("main", COMMIT):
            self.files[f"/{repository}/resolve/{revision}/{name}"] = data

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        site, path = self.server, self.path
        if "://" in path:  # asked as a proxy
            path = "/" + path.split("/", 3)[3]
        site.requests.append((self.command, self.path, self.headers.get("Range", "")))
        faults = site.faults.get(path, [])
        fault = faults.pop(0) if faults and (body or faults[0][0] == "status") else ("none",)
        if fault[0] == "status":
            self.send_response(fault[1])
            for name, value in (fault[2] if len(fault) > 2 else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault[0] == "redirect":
            self.send_response(302)
            self.send_header("Location", site.url + fault[1])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = site.files.get(path)
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_file(data, fault, body)

    def send_file(self, data: bytes, fault: tuple, body: bool) -> None:
        span = self.headers.get("Range", "")
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if span and fault[0] != "no-range":
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            start = 0
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not body:
            return
        if fault[0] == "break":
            self.wfile.write(data[start : start + fault[1]])
            self.close_connection = True
            return
        if fault[0] == "stall":
            self.wfile.write(data[start : start + fault[2]])
            self.wfile.flush()
            time.sleep(fault[1])
            self.close_connection = True
            return
        step = len(data) if fault[0] != "slow" else max(1, len(data) // 20)
        for at in range(start, len(data), step):
            self.wfile.write(data[at : at + step])
            self.wfile.flush()
            if fault[0] == "slow":
                time.sleep(fault[1])


@contextmanager
def running_site() -> Iterator[Site]:
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()
