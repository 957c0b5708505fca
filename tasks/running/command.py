"""The command line that starts a node's ranks: torchrun's agent, or DeepSpeed's launcher."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storage.files import write_text
from tasks.running import network
from tasks.running.environment import check_devices

if TYPE_CHECKING:
    from pipeline.config.resources import Resources


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of several nodes meet: rank 0's store at ``host:port``; this one is number ``node`` of
    ``nodes``."""

    host: str
    port: int
    node: int
    nodes: int


def launcher_command(
    on: Resources, worker: list[str], environment: dict[str, str], run: Path, meeting: Meeting | None = None
) -> list[str]:
    """The command line that starts ``on.nproc`` ranks of ``python -m worker…`` on this node.

    With a ``meeting`` every node starts its own, and ranks meet there; only with ``on.hostfile`` DeepSpeed's launcher
    reaches the others itself by ssh, and ``run/deepspeed.env`` carries the environment over. Adds to ``environment``
    what gloo needs.
    """
    check_devices(on)
    if meeting and (interface := network.interface_towards(meeting.host)):
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    if on.launcher == "torchrun":
        # The static rendezvous keeps rank 0 on the first node, whose files are read, and needs no host names.
        where = ["--standalone"]
        if meeting:
            where = [
                f"--nnodes={meeting.nodes}",
                f"--node-rank={meeting.node}",
                "--rdzv-backend=static",
                f"--rdzv-endpoint={meeting.host}:{meeting.port}",
            ]
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *where,
            f"--nproc-per-node={on.nproc}",
            "--max-restarts=0",
            f"--log-dir={run.resolve() / 'logs' / 'torchrun'}",  # or it leaves a directory in TMPDIR each time
            "-m",
            *worker,
        ]
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            "resources.launcher=deepspeed needs the package deepspeed (pip install deepspeed), or set"
            " resources.launcher=torchrun"
        )
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        *_deepspeed_nodes(on, environment, run, meeting),
        "--no_local_rank",
        "--module",
        *worker,
    ]


def _deepspeed_nodes(on: Resources, environment: dict[str, str], run: Path, meeting: Meeting | None) -> list[str]:
    """Options of DeepSpeed's launcher that say which nodes there are; at a ``meeting`` each starts its own ranks. The
    launcher takes GPU 0 and on whatever CUDA_VISIBLE_DEVICES says, so this machine's are named to it."""
    given = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own = [int(name) for name in given[: on.nproc]] if all(name.isdigit() for name in given) else []
    if meeting:
        hosts = run / f"hostfile-{meeting.node}"
        slots = [list(range(on.nproc))] * meeting.nodes
        slots[meeting.node] = own or slots[meeting.node]
        write_text(hosts, "".join(f"node-{i} slots={max(ids) + 1}\n" for i, ids in enumerate(slots)))
        include = "@".join(f"node-{i}:" + ",".join(map(str, ids)) for i, ids in enumerate(slots))
        return [
            f"--hostfile={hosts.resolve()}",
            f"--include={include}",
            "--no_ssh",
            f"--node_rank={meeting.node}",
            f"--master_addr={meeting.host}",
            f"--master_port={meeting.port}",
        ]
    port = f"--master_port={network.free_port()}"
    if own and not on.hostfile:
        return ["--include=localhost:" + ",".join(map(str, own)), port]
    one = [f"--num_accelerators={on.nproc}", port]
    if not on.hostfile:
        return one
    environment["DS_ENV_FILE"] = str((run / "deepspeed.env").resolve())
    write_text(run / "deepspeed.env", "".join(f"{name}={environment[name]}\n" for name in sorted(_ours(environment))))
    return [*one, f"--hostfile={Path(on.hostfile).resolve()}", f"--num_nodes={on.nnodes}"]


def _ours(environment: dict[str, str]) -> set[str]:
    """Variables that workers are given, for nodes that do not inherit them."""
    return {
        name for name in environment if name.startswith(("MALLOC_", "TORCH", "PYTORCH_", "PYTHON", "OMP_", "DS_ACC"))
    }
