"""One builder at a time per key: a lease file with a heartbeat.

The holder touches the file every few seconds. A lease is dead when its process is gone (same host) or when it has
not been touched for ``STALE`` seconds, so a kill -9 or a lost machine frees it without anyone's help.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

HEARTBEAT = 5.0
STALE = 45.0


class Lease:
    """Context manager that waits until this process alone holds ``path``, then holds it.

    ``waiting`` is called once with the holder's description if another process is building the same thing.
    """

    def __init__(self, path: Path, waiting=lambda holder: None) -> None:
        self.path, self.waiting = path, waiting
        self._stop = threading.Event()

    def __enter__(self) -> Lease:
        told = False
        while not self._take():
            holder = self._holder()
            if holder is None:
                continue
            if self._dead(holder):
                self.path.unlink(missing_ok=True)
                continue
            if not told:
                self.waiting(f"process {holder.get('pid')} on {holder.get('host')}")
                told = True
            time.sleep(0.5)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self.path.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Create the file whole: a hard link to a finished temporary file either makes it or fails."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tmp = self.path.with_name(f"{self.path.name}.{os.getpid()}.{threading.get_ident()}")
        tmp.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": _start_time(os.getpid())}))
        try:
            os.link(tmp, self.path)
            return True
        except FileExistsError:
            return False
        finally:
            tmp.unlink(missing_ok=True)

    def _holder(self) -> dict | None:
        try:
            return json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _dead(self, holder: dict) -> bool:
        if holder.get("host") == socket.gethostname():
            start = _start_time(holder.get("pid", -1))
            return start is None or start != holder.get("start")
        try:
            return time.time() - self.path.stat().st_mtime > STALE
        except FileNotFoundError:
            return False

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return


def _start_time(pid: int) -> str | None:
    """The kernel's start time of a process, which tells a reused pid from the old one; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]
