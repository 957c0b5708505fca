"""What this process does about the world it was started in: terminals that go away or cannot show a character,
hang-ups, proxies, and arguments that are no text. Whatever becomes of the display, the work goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from types import FrameType
from typing import Any, TextIO

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def settle() -> None:
    """Prepare streams, signals and proxy variables; first thing in the process."""
    sys.stdout, sys.stderr = Steady(sys.stdout), Steady(sys.stderr)  # type: ignore[assignment]
    _replace_errors(sys.stdin)
    os.environ["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # what children print goes to logs, which are UTF-8
    hang_up_like_terminate()
    spare_loopback()


def _replace_errors(stream: TextIO | None) -> None:
    """Let a stream that can be told so show what it cannot encode or decode as a mark."""
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors="replace")


class Steady:
    """A text stream that writes what its encoding lacks as ``?`` and outlives its terminal, pipe or file.

    When a write fails (EIO of a closed terminal, EPIPE, a full disk) the rest goes nowhere, and ``lost`` says why.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream, self.lost = stream, None if stream else OSError(errno.EBADF, "there is no such stream")
        _replace_errors(stream)

    def write(self, text: str) -> int:
        if self.stream and not self.lost:
            try:
                return self.stream.write(text)
            except (OSError, ValueError) as error:
                self._leave(error)
        return len(text)

    def flush(self) -> None:
        if self.stream and not self.lost:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._leave(error)

    def isatty(self) -> bool:
        return bool(self.stream) and not self.lost and self.stream.isatty()

    def _leave(self, error: Exception) -> None:
        """Nothing more is written there; the descriptor is turned away so that what is still buffered harms nobody."""
        assert self.stream is not None  # it was written to
        self.lost = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def say(value: object) -> None:
    """Print a value as one JSON object; a stream that cannot show every character gets escapes and not ``?``."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "").replace("_", "")
    print(json.dumps(value, ensure_ascii=encoding not in ("utf8", "utf16", "gb18030")))


def hang_up_like_terminate() -> None:
    """Treat a terminal that closes as SIGTERM: a checkpoint, a clean end. Under ``nohup``, which ignores it, go on."""
    with contextlib.suppress(ValueError, AttributeError):  # another thread than the main one; no SIGHUP here
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def spare_loopback() -> None:
    """This machine's own servers are never reached through a proxy: loopback joins ``no_proxy``, for children too."""
    names = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
    if not any(os.environ[name] for name in names):
        return
    given = ",".join(filter(None, (os.environ.get("no_proxy"), os.environ.get("NO_PROXY")))).split(",")
    spared = ",".join(dict.fromkeys(name.strip() for name in [*given, *LOOPBACK] if name.strip()))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = spared


def erase_whole_characters() -> None:
    """Let a backspace at a terminal take a whole UTF-8 character; where that is off it leaves a part of one behind."""
    iutf8 = 0o40000  # Linux; the module has no name for it before Python 3.14
    if sys.platform != "linux" or not sys.stdin.isatty() or "utf" not in sys.stdin.encoding.lower():
        return
    import termios

    with contextlib.suppress(termios.error):
        settings = termios.tcgetattr(sys.stdin.fileno())
        settings[0] |= iutf8
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, settings)


def illegible(arguments: list[str]) -> list[str]:
    """A line for every argument that is not text in this locale's encoding."""
    wrong: list[str] = []
    for text in arguments:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            shown = os.fsencode(text).decode("utf-8", "backslashreplace")
            wrong.append(f"{shown}  is not {sys.getfilesystemencoding().upper()} text; name files and write text in it")
    return wrong
