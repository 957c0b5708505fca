"""The Ray cluster that a run's work is placed on."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import ModuleType


def connect() -> ModuleType:
    """The package ``ray``, connected to the cluster at ``RAY_ADDRESS``, else to the one that runs on this machine, else
    to a new one of this machine alone. Raises ValueError when ray is not installed or the cluster is not reached."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("resources.engine=ray needs the ray package: pip install 'full-pipeline[ray]'") from error
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(
            f"resources.engine=ray: no Ray cluster at {os.environ.get('RAY_ADDRESS', 'this machine')}"
            f" ({str(error).partition(chr(10))[0]}); start one with `ray start --head`, or set RAY_ADDRESS to"
            " HOST:PORT of its head (docs/cluster.md)"
        ) from error
    finally:
        if main and before is not None:
            signal.signal(
                signal.SIGTERM, before
            )  # Ray takes it, and a run that is cancelled must stop its stages first
    return ray
