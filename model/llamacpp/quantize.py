"""llama.cpp's own quantisation of a GGUF file: ``python -m model.llamacpp.quantize --spec FILE``, one process.

A process of its own, because llama.cpp ends the one that it runs in when it meets what it did not expect. The spec is
JSON: ``source`` (GGUF in f32, f16 or bf16), ``targets`` (file to llama.cpp's number of the file type), ``threads``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model.llamacpp.library import binding


def quantize(source: str, target: str, file_type: int, threads: int) -> None:
    """Write ``target``. Raises RuntimeError with llama.cpp's code."""
    parameters = binding().LlamaModelQuantizeParams()
    parameters.ftype, parameters.nthread = file_type, threads
    binding().model_quantize(source, target, parameters)


def main() -> int:
    """The worker's command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="JSON file")
    spec = json.loads(Path(parser.parse_args().spec).read_text(encoding="utf-8"))
    try:
        for target, file_type in spec["targets"].items():
            quantize(spec["source"], target, file_type, spec["threads"])
    except (RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
