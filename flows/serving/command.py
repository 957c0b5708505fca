"""``pipeline serve``: which models, at which address, and a server that ends when it is told to."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from flows.chat import beside, named
from flows.environment import LOOPBACK
from flows.inspect import find_model
from flows.serving.served import Found
from storage.champions import Champions, champion
from storage.errors import Refused
from storage.places import home
from storage.store import open_store

KEY = "PIPELINE_API_KEY"


def serve(args: argparse.Namespace) -> int:
    """Serve the models of the parsed command line until SIGTERM or Ctrl-C; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    key = args.api_key or os.environ.get(KEY, "")
    if args.host not in LOOPBACK and not key:
        print(
            f"warning: anyone who reaches {args.host} can use these models and read what they were made from;"
            f" --api-key or {KEY} asks for a key",
            file=sys.stderr,
        )
    names: list[str] = list(dict.fromkeys([*args.models, *([args.compare] if args.compare else [])]))
    try:
        with _bound(args.host, args.port) as sock:
            return _run(_app(args, names, key), sock, args)
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


def _app(args: argparse.Namespace, names: list[str], key: str) -> Any:
    """The application of the command line. Raises LookupError, ValueError or OSError."""
    from flows.serving.app import Face, create
    from flows.serving.gate import Rules
    from flows.serving.metrics import Metrics
    from flows.serving.talks import Limits

    local = {*LOOPBACK, "[::1]", args.host} if args.host in LOOPBACK and not key else set[str]()
    limits = Limits(args.max_queue, args.timeout, args.max_tokens, args.max_body << 10)
    metrics = Metrics()
    backend = _upstream(args, names, limits, metrics) if args.backend != "own" else _own(args, names, limits, metrics)
    face = Face(Rules(key, {*local, *args.allow_host} if local else set(), limits.bytes), args.cors, args.compare or "")
    return create(backend, metrics, face)


def _own(args: argparse.Namespace, names: list[str], limits: Any, metrics: Any) -> Any:
    from flows.serving.local import Local
    from flows.serving.served import Models, Served
    from model.serving.engine import Engine

    if not names:
        raise Refused("which model? A preset that has run, a reference like dpo/3fa9, or a model directory")
    if args.upstream:
        raise Refused("--upstream needs --backend llama.cpp or vllm")
    load = partial(Engine, slots=args.slots, device=args.device, dtype=args.dtype)
    first = names[0]
    served: list[Served] = []
    for name in names:
        model = Served(_id(name), partial(found, name, first, args.force), load)
        print(f"{model.name}: {model.found.about}", file=sys.stderr, flush=True)
        served.append(model)
    return Local(Models(served, metrics), limits, metrics, args.poll)


def _upstream(args: argparse.Namespace, names: list[str], limits: Any, metrics: Any) -> Any:
    from flows.serving.upstream import Upstream

    if not args.upstream:
        raise Refused(
            f"--backend {args.backend} needs --upstream URL, the address of a running "
            + ("llama-server" if args.backend == "llama.cpp" else "vllm serve")
        )
    return Upstream(args.upstream, args.backend, names, limits, metrics, os.environ.get("PIPELINE_UPSTREAM_KEY", ""))


def _id(name: str) -> str:
    """The name under which a model is served: a path's last part, any other reference as it is."""
    return Path(name).resolve().name if (Path(name) / "config.json").is_file() else name


def found(name: str, first: str, force: bool) -> Found:
    """The model that a name means now: a preset's champion (its newest model while it has none), a reference, or a
    directory. The name of a stage means that stage's model in the run of the ``first`` name. Raises LookupError."""
    place = open_store(home() / "store")
    chosen = "/" not in name.removesuffix(".toml") and Champions(place).current(Path(name).stem)
    ref = str(champion(name, place)) if chosen else beside(name, first)
    directory = find_model(ref, force)
    artifact = f"{directory.parent.name}/{directory.name}" if place.root in directory.parents else ""
    return Found(directory, f"the champion, {artifact}" if chosen else named(ref, directory), artifact)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens: before models are loaded, so that a taken port is said at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol's number asyncio sends each token at once; without it, it waits for acknowledgements (40 ms)
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}; --port takes another one, 0 any") from None
    return sock


def _run(app: Any, sock: socket.socket, args: argparse.Namespace) -> int:
    """Until a signal: then no new requests, those that are going on end, within ``--grace`` seconds."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=args.grace,
        limit_concurrency=None,
        server_header=False,
    )

    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)  # only now the socket listens
            print(
                f"http://{shown}:{port}  the chat page; OpenAI's API at /v1. Ctrl-C ends it",
                file=sys.stderr,
                flush=True,
            )

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield  # a server that was told to end has done its work: the signal is not raised again
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    Server(config).run(sockets=[sock])
    return 0
