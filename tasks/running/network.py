"""Addresses and ports: where ranks of several machines meet."""

from __future__ import annotations

import contextlib
import socket

import psutil


def address_towards(host: str) -> str:
    """This machine's own address on the way to ``host``; sends nothing. Raises OSError when there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def interface_towards(host: str) -> str | None:
    """Name of the network interface on the way to ``host``, for gloo, which otherwise goes by what the host name
    resolves to."""
    with contextlib.suppress(OSError):
        own = address_towards(host)
        return next(
            (name for name, found in psutil.net_if_addrs().items() if any(a.address == own for a in found)), None
        )
    return None


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
