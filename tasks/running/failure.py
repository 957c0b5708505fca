"""Say readably why worker processes failed: from their exit code and what they printed.

The text of a failure is read by somebody who wants to go on, so it names the cause, the rank, the last lines of the
traceback, the log file and the setting to change. Follow-up errors of the other ranks (a closed connection, the
launcher's own traceback) are passed over as long as there is a first cause.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

from storage.errors import Failed

TRACEBACK = re.compile(r"Traceback \(most recent call last\):(?=\n)")
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: (?:can't|not enough)|\bMemoryError\b|std::bad_alloc|HIP"
    r" out of memory"
)
FOLLOW_UP = re.compile(
    r"ChildFailedError|SignalException|CheckpointException|Dist(?:Backend|Network|Store)Error|[Cc]onnection closed by"
    r" peer|Connection reset by peer|"
    r"Broken pipe|ncclRemoteError|CalledProcessError"
)
LOST = re.compile(r"[Cc]onnection closed by peer|Connection reset by peer|ncclRemoteError")
EXCEPTION = re.compile(
    r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning|Failure)\b.*$|^[A-Za-z_][\w.]*: .+$"
)
ELASTIC_RANK = re.compile(r"^\s*rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE)
DEEPSPEED_CODE = re.compile(r"exits with return code = (-?\d+)")
LESS_MEMORY = (
    "lower resources.micro_batch (the global batch stays), set resources.checkpointing=true, or use fewer"
    " resources.nproc"
)


class WorkerFailed(Failed):
    """Worker processes ended without a result.

    ``reason`` is one of "out_of_memory", "exception", "signal", "stopped", "wall_limit", "no_progress", "no_result",
    "nodes", "exit"; ``str()`` is the text for people. Two plain strings, so that the exception can be pickled.
    """

    def __init__(self, message: str, reason: str = "exit") -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


def explain(what: str, code: int, log: Path, start: int = 0) -> WorkerFailed:
    """The failure of the workers of ``what`` (a module's name), which ended with ``code`` and printed
    ``log[start:]``."""
    text = _read(log, start)
    code, rank = _inner_code(text, code)
    who = f"{what} failed" + (f" on rank {rank}" if rank is not None else "")
    lines = _first_cause(text)
    reason, because, advice = _classify(text, code, lines)
    parts = [f"{who}: {because}"]
    if lines:
        parts.append("\n".join("    " + line for line in lines))
    if advice:
        parts.append(f"What to do: {advice}")
    parts.append(f"Log: {log}")
    return WorkerFailed("\n".join(parts), reason)


def _classify(text: str, code: int, lines: list[str]) -> tuple[str, str, str]:
    """(reason, what happened in words, what to change) for an exit code and the lines of the first traceback."""
    if OUT_OF_MEMORY.search("\n".join(lines) or text[-20000:]):
        return "out_of_memory", "out of memory", LESS_MEMORY
    number = _signal_of(code)
    if number == signal.SIGKILL:
        return (
            "signal",
            "killed by signal 9 (SIGKILL), which on Linux is usually the kernel short of memory (see dmesg)",
            LESS_MEMORY,
        )
    if number in (signal.SIGTERM, signal.SIGINT):
        return (
            "stopped",
            f"stopped by {_name(number)}; its checkpoints are kept",
            "run the same command again to go on from the newest checkpoint",
        )
    if lines:
        return "exception", lines[-1].strip(), ""
    if code == 1 and LOST.search(
        text[-20000:]
    ):  # DeepSpeed's launcher gives the code of the first rank in its list that has ended
        return (
            "signal",
            "a rank ended without a word: most likely signal 9 (SIGKILL), the kernel short of memory (see dmesg)",
            LESS_MEMORY,
        )
    if number:
        return (
            "signal",
            f"killed by signal {number} ({_name(number)})",
            "the log's last lines show where; a crash inside a library is worth a report",
        )
    last = "\n".join(text.strip().splitlines()[-5:])
    return (
        "exit",
        f"ended with exit code {code}" + (f" after printing:\n{last}" if last else " and printed nothing"),
        "",
    )


def _signal_of(code: int) -> int:
    """The signal behind an exit code: -9 (Popen), 137 (a shell, our guard) and 247 (``sys.exit(-9)``) are all 9; 0 for
    none."""
    return -code if code < 0 else 256 - code if code > 192 else max(0, code - 128)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown signal"


def _inner_code(text: str, code: int) -> tuple[int, int | None]:
    """The failed rank's own exit code behind the launcher's, and which rank it was, as far as the launcher says."""
    ranks = [(int(status), int(rank)) for rank, status in ELASTIC_RANK.findall(text.rpartition("ChildFailedError")[2])]
    if ranks:
        # The root cause comes last, but when two ranks end at once torchrun may take the one that lost its peer for it:
        # a rank that a signal killed (not the launcher's own TERM) did not do so because of another.
        return next((found for found in ranks if found[0] < 0 and found[0] != -signal.SIGTERM), ranks[-1])
    if found := DEEPSPEED_CODE.search(text):
        return int(found[1]), None
    return code, None


def _first_cause(text: str, keep: int = 8) -> list[str]:
    """The last ``keep`` lines of the first traceback that is not a consequence of another rank's failure."""
    blocks = [_block(part) for part in TRACEBACK.split(text)[1:]]
    causes = [block for block in blocks if block and not FOLLOW_UP.search(block[-1])]
    return causes[0][-keep:] if causes else []


def _block(part: str) -> list[str]:
    """Lines of a traceback up to and with its exception line; [] when there is none."""
    lines: list[str] = []
    for line in part.splitlines()[1:]:
        lines.append(line)
        if line and not line[0].isspace() and EXCEPTION.match(line):
            return lines
        if len(lines) > 200:
            break
    return []


def _read(log: Path, start: int, limit: int = 2_000_000) -> str:
    """The log from ``start`` on; of a huge one its head and tail, where the first cause and the launcher's verdict
    are."""
    try:
        with open(log, "rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return ""
    if len(data) > limit:
        data = data[: limit // 2] + b"\n...\n" + data[-limit // 2 :]
    return data.decode("utf-8", "replace")
