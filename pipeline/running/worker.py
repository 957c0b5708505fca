"""A local worker process of :mod:`pipeline.running.executor`: reads jobs as JSON lines, answers each with one JSON
line.

It ends when its input closes, after a minute without work, or within a second of its parent's death, so that a flow
killed with -9 leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time

IDLE_SECONDS = 60.0


def main() -> None:
    """Serve jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the whole group; the parent decides what it means
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a job prints must not mix with the answers
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import pyarrow

    pyarrow.set_cpu_count(1)
    from pipeline.running.executor import ShardFailed, do_job, keep_freed_memory
    from storage.room import DiskFull

    keep_freed_memory()

    while select.select([sys.stdin.buffer], [], [], IDLE_SECONDS)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            break
        try:
            answer = ["done", do_job(*json.loads(line))]
        except DiskFull as error:
            answer = ["full", str(error)]
        except ShardFailed as error:
            answer = ["failed", str(error)]
        answers.write(json.dumps(answer, ensure_ascii=True) + "\n")
        answers.flush()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
