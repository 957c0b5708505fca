"""A small S3 server whose objects are files, so that they outlive a kill of it: for benchmarks/chaos.py alone.

    python benchmarks/s3_server.py FOLDER PORT

Knows what the store asks for, of objects up to 8 MB: put (with ``If-Match`` and ``If-None-Match``), get (with ranges),
head, delete and list. Signatures are not looked at; it listens on 127.0.0.1. A killed one leaves no half object under
its name.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request; the path is /bucket/key."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with LOCK:
            tag, match, absent = self.tag(), self.headers.get("If-Match"), self.headers.get("If-None-Match")
            if (match and match != tag) or (absent and tag):
                return self.say(412, _error("PreconditionFailed") if tag else _error("NoSuchKey"))
            partial = self.file().with_name(f".{threading.get_ident()}.tmp")
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.file())
            tag = self.tag()
        return self.say(200, b"", ETag=tag or "")

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "list-type" in asked:
            return self.say(200, self.listing(asked.get("prefix", [""])[0]))
        data = self.data()
        if data is None:
            return self.say(404, _error("NoSuchKey"))
        about = self.about(data)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            about["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            return self.say(206, data[int(first) : end + 1], **about)
        return self.say(200, data, **about)

    def do_HEAD(self) -> None:
        data = self.data()
        return self.say(404, b"") if data is None else self.say(200, data, **self.about(data))

    def do_DELETE(self) -> None:
        with LOCK:
            self.file().unlink(missing_ok=True)
        self.say(204, b"")

    def file(self) -> Path:
        """Names are quoted, so that no key leads out of the folder."""
        return self.root / quote(unquote(urlsplit(self.path).path).lstrip("/"), safe="")

    def data(self) -> bytes | None:
        try:
            return self.file().read_bytes()
        except FileNotFoundError:
            return None

    def tag(self) -> str | None:
        data = self.data()
        return None if data is None else _tag(data)

    def about(self, data: bytes) -> dict[str, str]:
        changed = self.file().stat().st_mtime if self.file().exists() else time.time()
        return {"ETag": _tag(data), "Last-Modified": formatdate(changed, usegmt=True)}

    def listing(self, prefix: str) -> bytes:
        bucket = unquote(urlsplit(self.path).path).strip("/")
        rows: list[str] = []
        for path in sorted(self.root.iterdir()):
            place, _, key = unquote(path.name).partition("/")
            if path.name.startswith(".") or place != bucket or not key.startswith(prefix):
                continue
            facts = path.stat()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(facts.st_mtime))
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified>"
                f"<ETag>x</ETag><Size>{facts.st_size}</Size></Contents>"
            )
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
        ).encode()

    def say(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()


if __name__ == "__main__":
    Handler.root = Path(sys.argv[1])
    Handler.root.mkdir(parents=True, exist_ok=True)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
