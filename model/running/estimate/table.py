"""An estimate as a table for people."""

from __future__ import annotations

from model.running.estimate.engines import Estimate, describe
from model.running.estimate.memory import Plan


def table(plan: Plan) -> str:
    """The same for people."""
    described = describe(plan)
    first, device = described["engines"][0], plan.device
    type_ = "bf16" if device.width == 2 else "fp32"
    speed = (
        f"{device.memory / 1e9:.0f} GB, "
        + (f"{device.flops / 1e9:.0f} GFLOP/s" if device.cpu else f"{device.flops / 1e12:.0f} TFLOP/s")
        + f" {type_} each"
    )
    lines = [
        (
            f"{first['parameters'] / 1e6:,.1f}M parameters, {first['flops_per_token'] / 1e6:,.0f} MFLOPs a token at"
            f" {plan.seq_len} slots, {plan.batch_tokens:,} tokens a step, {plan.gpus} x {device.name} ({speed})"
        ),
        f"utilisation {first['mfu_table']:.0%}: {first['mfu_source']}",
        "",
        _header(),
    ]
    lines += [_line(row["engine"], row) for row in described["engines"]]
    if described["references"]:
        lines += ["", "Reference sizes, under the fastest engine that fits:", _header()]
        lines += [_line(f"{row['shape']} x{row['gpus']} {row['engine']}", row) for row in described["references"]]
    lines += [
        "",
        (
            "* with activation checkpointing   ! does not fit   GB per"
            f" {'rank, without the libraries' if device.cpu else 'GPU'}; MFU after communication and optimizer"
        ),
    ]
    return "\n".join(lines)


_COLUMNS = {
    "GB": 8,
    "weights": 9,
    "grads": 8,
    "optim": 8,
    "activ.": 8,
    "micro": 7,
    "ms/step": 9,
    "tokens/s": 12,
    "MFU": 6,
    "steps": 9,
    "hours": 9,
}


def _header() -> str:
    return _aligned("", list(_COLUMNS))


def _line(name: str, row: Estimate) -> str:
    need, mark = row["memory"], ("*" if row["checkpointing"] else "") + ("" if row["fits"] else "!")
    held = (
        need["total"],
        need["weights"] + need["copies"],
        need["gradients"],
        need["optimizer"],
        need["activations"] + need["head"],
    )
    known = bool(row["tokens"])
    cells = [f"{value / 1e9:.2f}" for value in held]
    cells += [str(row["micro_batch"]), f"{row['step']['total'] * 1e3:,.0f}", f"{row['tokens_per_second']:,.0f}"]
    cells += [f"{row['mfu']:.0%}", f"{row['steps']:,}" if known else "?", f"{row['hours']:,.1f}" if known else "?"]
    return _aligned(name + mark, cells)


def _aligned(name: str, cells: list[str]) -> str:
    return f"{name:<15}" + "".join(f"{c:>{width}}" for c, width in zip(cells, _COLUMNS.values(), strict=True))
