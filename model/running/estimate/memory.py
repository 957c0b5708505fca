"""Bytes that a training run holds on each rank, by what they hold: sums of sizes and not fits, equal by test to the
tensors that live in a real update.

It follows what the engines of this trainer hold: fp32 masters, gradients and optimizer state, bf16 copies of the
matrices while they are used, and activations. The trainer chooses a GPU's micro-batch by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.running.devices import GPUS, Device
from model.running.how import How
from model.specs.shape import ModelConfig
from model.specs.train import OptimConfig

Attention = Literal["flash", "masked", "plain"]
ENGINES = ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3")
USABLE = 0.92
"""Share of the memory that a run may plan with; the rest is CUDA context, fragmentation and NCCL."""
CACHED = 2048
"""Slots of a micro-batch whose activations stay in a CPU's cache."""
HEAD_ROWS = {True: 512, False: 8192}
"""Rows of logits held at once on a CPU and on a GPU (``model.training.loss``: WHOLE and CHUNK)."""
QUERIES = 128
"""Rows of a block in plain attention (``model.network.transformer``)."""
AT_ONCE = 1 << 28
"""Elements of matrices that a sharded Muon makes whole together (``model.training.engine``)."""


@dataclass(frozen=True)
class Plan:
    """A run to be estimated on ``gpus`` devices (or CPU ranks). ``micro_batch`` 0 takes the largest that fits;
    ``tokens`` 0: how many is not known.

    ``utilisation`` 0 is the table's; another share is what one's own runs have shown.
    """

    model: ModelConfig
    optim: OptimConfig
    seq_len: int
    batch_tokens: int
    tokens: float
    gpus: int = 8
    device: Device = GPUS["h200"]
    micro_batch: int = 0
    checkpointing: bool = False
    offload: bool = False
    compiled: bool = True
    utilisation: float = 0.0

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus must be at least 1, not {self.gpus}")
        if self.model.vocab_size < 1:
            raise ValueError("vocab_size is 0: give the tokenizer's")
        if not 0 <= self.utilisation <= 1:
            raise ValueError(f"utilisation is a share between 0 and 1, not {self.utilisation}")

    @property
    def rows(self) -> int:
        """A device's rows of ``seq_len`` slots in one update."""
        return -(-max(1, self.batch_tokens // self.seq_len) // self.gpus)

    def attention(self, compiled: bool) -> Attention:
        """The kind that the trainer picks (:func:`model.running.setup.choose`)."""
        if self.device.cpu:
            return "plain" if self.seq_len <= 512 else "masked"
        return "flash" if compiled else "masked"


def matrices(model: ModelConfig) -> int:
    """Parameters of the matrices inside blocks, which Muon updates: routers and norms left out."""
    return sum(rows * columns * count for rows, columns, count in shapes(model))


def shapes(model: ModelConfig) -> list[tuple[int, int, int]]:
    """(rows, columns, how many) of those matrices, equal ones together, in the order of Muon's update."""
    d, q, k = model.dim, model.heads * model.head_size, model.kv_heads * model.head_size
    width, copies = (model.expert_size, model.experts) if model.experts else (model.ffn, 1)
    counts: dict[tuple[int, int], int] = {}
    for shape, count in (((q, d), 1), ((k, d), 2), ((d, q), 1), ((width, d), 2 * copies), ((d, width), copies)):
        counts[shape] = counts.get(shape, 0) + count * model.layers
    return [(*shape, count) for shape, count in sorted(counts.items())]


def activation_bytes(
    model: ModelConfig, compiled: bool = True, width: int = 2, attention: Attention = "flash", seq_len: int = 0
) -> int:
    """Bytes that autograd keeps for a slot in one layer, computing in ``width`` bytes: equal to the saved tensors
    counted in a run.

    Residuals, norm outputs, queries, keys and values before and after their norm and rotation, the attention's output,
    and gate, up and their product. Without torch.compile norms also keep fp32 copies (on a GPU fewer), and SwiGLU one
    tensor more. ``masked`` keeps a bias of the documents' mask, ``plain`` the weights and each block of queries' own
    keys and values.
    """
    d, q, k = model.dim, model.heads * model.head_size, model.kv_heads * model.head_size
    feed = model.expert_size * model.experts_per_token if model.experts else model.ffn
    norms = q + k if model.qk_norm else 0
    statistics = 4 * (2 + (model.heads + model.kv_heads if model.qk_norm else 0))
    copies = 1.0
    if attention == "plain":
        keys = (seq_len + QUERIES) / 2 if seq_len > QUERIES else seq_len
        copies = keys / QUERIES if seq_len > QUERIES else 1.0
        statistics += int(model.heads * keys * (4 if width == 4 else 6))
    else:
        statistics += 4 * model.heads + (width * seq_len if attention == "masked" else 0)
    routed = width * 3 * model.experts_per_token * d + 4 * d + 12 * model.experts if model.experts else 0
    kept = 2 * q + int(2 * k * copies)
    if compiled:
        return width * (4 * d + norms + kept + 3 * feed) + statistics + routed
    return 4 * 4 * d + width * 2 * d + 8 * norms + width * (kept + 4 * feed) + statistics + routed


def memory(plan: Plan, engine: str, micro_batch: int) -> dict[str, float]:
    """Bytes of each rank by what they hold, and their ``total``.

    weights, gradients, optimizer, checkpoint (the copy that a CPU's memory holds while it is written), and the larger
    of two: a pass with its copies (what is gathered or cast), activations and head, or the update (what Muon makes).
    """
    model, world, width = plan.model, plan.gpus, plan.device.width
    n, inner = model.parameters(), matrices(model)
    muon = plan.optim.name == "muon"
    state = (4 * inner + 8 * (n - inner)) if muon else 8 * n
    layer, root = inner / model.layers, n - inner
    cast = 2 if width == 2 else 0  # autograd keeps the casts of all layers, or of the one that is recomputed
    casts = float(cast * (layer if plan.checkpointing else inner))
    part = {"weights": 4.0 * n, "gradients": 4.0 * n, "optimizer": float(state), "copies": casts}
    if engine == "fsdp2":
        # embeddings and head stay whole between passes, with their gradient; two blocks are gathered, one reduced
        part = {
            "weights": 4 * n / world,
            "gradients": 4 * n / world,
            "optimizer": state / world,
            "copies": layer * (4 * width + 4) + root * (width + 4),
        }
    elif engine in ("zero1", "zero2"):
        part |= {"weights": 4 * n + 4 * n / world, "optimizer": state / world, "gradients": 4 * n + 4 * n / world}
        if engine == "zero2":
            part["gradients"] = 4 * n / world + 4 * min(n, 5e8)  # and DeepSpeed's bucket
    elif engine == "zero3":
        part = {
            "weights": 8 * n / world,
            "gradients": 4 * n / world + 4 * min(n, 5e8),
            "optimizer": state / world,
            "copies": (4 + cast) * min(n, 1e9),
        }
    whole = engine in ("ddp", "zero0")
    part["checkpoint"] = (4 * n + state) / (1 if whole else world) if plan.device.cpu else 0.0
    if plan.offload and engine.startswith("zero") and engine != "zero0":
        part["optimizer"] = 0.0
    part["update"] = _update_bytes(plan, 1 if whole else world) if muon else 0.0
    part |= _pass_bytes(plan, engine, micro_batch)
    one_pass = part["copies"] + part["activations"] + part["head"]
    return {**part, "total": sum(part.values()) - min(one_pass, part["update"])}


def _pass_bytes(plan: Plan, engine: str, micro_batch: int) -> dict[str, float]:
    """What layers keep of a micro-batch, and what comes on top: the head with its loss or, where that is more, the last
    layer's backward pass."""
    model, width = plan.model, plan.device.width
    slots, d, table = micro_batch * plan.seq_len, model.dim, 4 * model.vocab_size * model.dim
    compiled = plan.compiled and not model.experts and engine != "zero3"
    each = slots * activation_bytes(model, compiled, width, plan.attention(compiled), plan.seq_len)
    # the last norm's input and fp32 copies, its output, the gradient of that
    ends = 3 * width * d + (8 if width == 2 else 4) * d
    # logits and their gradient; eager softmax makes fp32 of them in between
    logits = 2 * width if compiled else (10 if width == 2 else 8)
    loss = (
        slots * ends
        + table
        + min(slots, HEAD_ROWS[plan.device.cpu]) * model.vocab_size * logits
        + (table / 2 if width == 2 else 0)
    )
    feed = model.expert_size * model.experts_per_token if model.experts else model.ffn
    matrix = 4 * (matrices(model) / model.layers if compiled else d * model.ffn)  # gradients before they are added
    backward = (
        slots * width * (2 * feed + 2 * d) + matrix + (table if model.tied else 0) + (each if plan.checkpointing else 0)
    )
    return {
        "activations": model.layers * (slots * width * d if plan.checkpointing else each),
        "head": max(loss, backward),
    }


def _update_bytes(plan: Plan, shared: int) -> float:
    """What Muon makes beside its state: Nesterov's fp32 momentum, and orthogonal updates, of which one shape at a time
    is worked on."""
    width, inner = plan.device.width, matrices(plan.model)
    if shared > 1:  # shards are made whole, at most AT_ONCE elements at a time: gathered, cut, stacked, orthogonal
        return 8 * inner / shared + (8 + 2 * width) * min(inner, AT_ONCE)
    most = done = 0.0
    for rows, columns, count in shapes(plan.model):
        size, gram = rows * columns * count, min(rows, columns) ** 2 * count
        alone = 2 * size + 2 * gram
        work = alone if plan.gpus == 1 else max(3 * (size + gram) / plan.gpus, size / plan.gpus + 2 * size)
        most = max(most, width * done + 4 * size + width * work)
        done += size
    return 4 * inner + max(most, 2 * width * inner)


def largest_micro_batch(plan: Plan, engine: str) -> int:
    """Most rows at once that fit, at most a GPU's share of the batch; 0 when not even one does."""
    limit = plan.device.memory * USABLE
    best, most = 0, equal_rounds(plan.rows, cached_rows(plan.seq_len)) if plan.device.cpu else plan.rows
    low, high = 1, most
    while low <= high:
        middle = (low + high) // 2
        if memory(plan, engine, middle)["total"] <= limit:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return equal_rounds(most, best) if best else 0


def cached_rows(seq_len: int) -> int:
    """Rows at once that are fastest on a CPU."""
    return max(1, CACHED // seq_len)


def equal_rounds(rows: int, most: int) -> int:
    """The micro-batch, at most ``most``, that takes ``rows`` in as few rounds of about equal size."""
    return -(-rows // -(-rows // min(rows, most)))


def engine_name(how: How, world: int) -> str:
    """The engine of :data:`ENGINES` that these settings start on ``world`` ranks."""
    if how.engine == "deepspeed":
        return f"zero{how.zero_stage}"
    return "fsdp2" if how.engine == "fsdp2" and world > 1 else "ddp"
