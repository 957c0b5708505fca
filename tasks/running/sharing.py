"""Checkpoints travel: out to the bucket while a stage trains, and back when another machine goes on.

A thread beside the training looks for new checkpoints and sends the newest. It sends from hard links, so that a slow
bucket neither holds up the training nor loses a file to the next checkpoint. A bucket that fails is told once and never
stops anything.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

from storage.digest import VOLATILE
from storage.places import home
from storage.store import StoreError, open_store
from storage.unfinished import Unfinished, is_whole, name_of

LOOK_SECONDS = 2.0
LAST_SECONDS = 60.0
"""How long the end of a stage that was stopped waits for its last checkpoint to reach the bucket."""
SMALL_BYTES = 64 << 20
"""Files of ``_run/`` up to this size go along."""
NOT_ALONG = {"spec.json", "result.json", "heartbeat"}
SENDING = ".sending-"


def unfinished_of(out: Path) -> Unfinished | None:
    """Where checkpoints of the partial directory ``out`` are shared; None without a bucket, or for any other folder."""
    if not os.environ.get("PIPELINE_STORE") or out.suffix != ".partial" or out.parent.parent != home() / "store":
        return None
    return open_store(home() / "store").unfinished(out.parent.name, out.stem)


def small_files(run: Path) -> list[Path]:
    """Files of ``_run/`` that an attempt on another machine goes on with."""
    return [
        path
        for path in sorted(run.iterdir())
        if path.is_file()
        and path.name not in NOT_ALONG
        and not path.name.startswith((".", "hostfile"))
        and not path.name.endswith(".tmp")
        and path.stat().st_size <= SMALL_BYTES
    ]


def restore(out: Path, note: Callable[[str], None]) -> None:
    """Before a stage trains: bring the newest checkpoint of the bucket when none here is as new. What cannot be brought
    is told, and the training goes on with what is here."""
    checkpoints = out / VOLATILE / "checkpoints"
    here = max((path.name for path in checkpoints.glob("step-*") if is_whole(path)), default="")
    with _told(note):
        place = unfinished_of(out)
        names = [name for name in place.names() if name.partition(".")[0] > here] if place else []
        if place and names:
            brought = place.bring(names[-1], checkpoints)
            place.bring_small(names[-1], out / VOLATILE)
            note(f"{brought.name} was brought from {place.bucket.address}; another machine wrote it")


def newest_shared(out: Path, note: Callable[[str], None]) -> str:
    """Before machines that share no folder train together: the name of the bucket's newest checkpoint, or "", and its
    small files in the run's folder."""
    with _told(note):
        place = unfinished_of(out)
        if place and (names := place.names()):
            place.bring_small(names[-1], out / VOLATILE)
            return names[-1]
    return ""


def have_only(out: Path, name: str) -> None:
    """On each of those machines: that checkpoint and no other, so that all go on from the same. Raises ValueError or
    StoreError when it cannot be brought."""
    checkpoints = out / VOLATILE / "checkpoints"
    for path in checkpoints.glob("*"):
        if not name or name_of(path) != name:
            shutil.rmtree(path, ignore_errors=True)
    if name and (place := unfinished_of(out)):
        place.bring(name, checkpoints)


@contextlib.contextmanager
def _told(note: Callable[[str], None]) -> Generator[None]:
    try:
        yield
    except (StoreError, ValueError, OSError) as error:
        note(f"no checkpoint was brought from the bucket: {error}")


@contextlib.contextmanager
def sharing(out: Path, note: Callable[[str], None], state: bool = True) -> Generator[None]:
    """Send new checkpoints while this is open; when it ends with an error, the last one too. ``state``: this machine
    says when one is whole."""
    place = unfinished_of(out)
    if place is None:
        yield
        return
    sender = _Sender(place, out, note, state)
    try:
        yield
    except BaseException:
        sender.close(LAST_SECONDS)
        raise
    sender.close(0.0)


class _Sender(threading.Thread):
    def __init__(self, place: Unfinished, out: Path, note: Callable[[str], None], state: bool) -> None:
        super().__init__(name="checkpoints to the bucket", daemon=True)
        self.place, self.run_folder, self.note, self.with_state = place, out / VOLATILE, note, state
        self.folder = self.run_folder / "checkpoints"
        self.ending, self.given_up = threading.Event(), threading.Event()
        self.sent: set[str] = set()
        self.uploaded, self.failed = "", False
        self._tidy()
        self.start()

    def run(self) -> None:
        while not self.ending.wait(LOOK_SECONDS):
            self._send_newest()

    def close(self, seconds: float) -> None:
        """Stop sending; with ``seconds``, try for so long to send the newest."""
        self.ending.set()
        if not seconds:
            self.given_up.set()
        else:
            last = threading.Thread(target=self._send_last, args=(time.monotonic() + seconds,), daemon=True)
            last.start()
            last.join(seconds)
            self.given_up.set()
        self._tidy()

    def _send_last(self, end: float) -> None:
        """The newest, unless there is none; again and again, because other machines may still send their parts."""
        self.join()
        while (name := self._newest()) and name not in self.sent and not self.failed and time.monotonic() < end:
            self._send_newest()
            time.sleep(0.2)

    def _newest(self) -> str | None:
        names = [name for path in sorted(self.folder.glob("step-*")) if (name := name_of(path))]
        return names[-1] if names else None

    def _send_newest(self) -> None:
        name = self._newest()
        if name is None or name in self.sent:
            return
        try:
            if self._send(name):
                self.sent.add(name)
                if self.failed:
                    self.note(f"checkpoints reach {self.place.bucket.address} again")
                self.failed = False
        except Exception as error:  # whatever it is, the training is not to suffer from it
            if not self.failed and not self.given_up.is_set() and (self.folder / name.partition(".")[0]).exists():
                self.note(f"checkpoints do not reach the bucket, training goes on: {error}")
                self.failed = True

    def _send(self, name: str) -> bool:
        if self.uploaded != name and name in self.place.names():
            return True  # an earlier attempt's, or brought from there
        links = self.folder / f"{SENDING}{name}"
        self._tidy(links)
        source = links
        if not links.exists():
            try:
                links.mkdir()
                for path in (self.folder / name.partition(".")[0]).iterdir():
                    os.link(path, links / path.name)
            except OSError:  # pruned just now, or a file system without links
                shutil.rmtree(links, ignore_errors=True)
                source = self.folder / name.partition(".")[0]
        if self.uploaded != name:
            self.place.send(source, name, small_files(self.run_folder), self._go_on)
            self.uploaded = name
        self._go_on()
        whole = not self.with_state or self.place.complete(source, name)
        if whole:
            self._tidy()
        return whole

    def _go_on(self) -> None:
        """Raises once the training has ended well: what comes late would lie beside the published model."""
        if self.given_up.is_set():
            raise StoreError("the training has ended")

    def _tidy(self, but: Path | None = None) -> None:
        for left in self.folder.glob(f"{SENDING}*"):
            if left != but:
                shutil.rmtree(left, ignore_errors=True)
