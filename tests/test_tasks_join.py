"""Two local "nodes" with real processes: one calls, `pipeline join` takes part, and they train what one node with as many ranks trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from test_model_data import write_tokens

from model.config import TrainSpec, dump, parse
from pipeline.sections.resources import Resources
from tasks import launch as launching
from tasks.launch import launch
from tasks.nodes import free_port


def test_two_nodes_train_to_the_bytes_of_one_node_with_as_many_ranks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(launching, "POLL_SECONDS", 0.1)
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    write_tokens(tmp_path / "text", [[*range(3 + i % 40, 60), 0] for i in range(200)], None, "text", 64, [[*range(3, 60), 0]] * 4)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
    shape = {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 96}
    spec = {"objective": "pretrain", "data": str(tmp_path / "text"), "tokenizer": str(tmp_path / "tokenizer"), "model": shape, "seq_len": 64, "dtype": "fp32",
            "batch_tokens": 512, "threads": 1, "steps": 6, "compile": "off", "engine": "fsdp2"}

    def train(name: str, **resources) -> bytes:
        """The trained model's bytes."""
        launch("model.train", dump(parse(TrainSpec, spec | {"out": str(tmp_path / name)})), tmp_path / name, Resources(device="cpu", threads=1, **resources),
               lambda record: None)
        return (tmp_path / name / "model.safetensors").read_bytes()

    joined = subprocess.Popen([sys.executable, "-u", "-m", "flows.cli", "join"], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True)
    try:
        assert "ready to join" in joined.stdout.readline()
        alone = train("alone", nproc=2)
        for launcher in ("torchrun", "deepspeed"):
            assert train(launcher, nnodes=2, rdzv_endpoint=f"127.0.0.1:{free_port()}", launcher=launcher) == alone
            assert "node 1 of 2" in joined.stdout.readline() and joined.stdout.readline().endswith(": done\n")
            command = (tmp_path / launcher / "_run" / "logs" / "node-1.log").read_text().splitlines()[0]
            assert ("torch.distributed.run" if launcher == "torchrun" else "--no_ssh") in command
            held = json.loads((tmp_path / launcher / "_run" / "checkpoints" / "step-00000006" / "state.json").read_text())["files"]
            assert {"__0_0.distcp", "__1_0.distcp"} < set(held)
        assert not list((tmp_path / "home" / "nodes").iterdir())
    finally:
        joined.terminate()
        joined.wait(30)
