"""Send a running server (`pipeline serve DIR`) what schemathesis makes of its own OpenAPI schema, right and wrong, and
hold every answer to that schema: status, content type, form, no fault of the server.

    pipeline serve DIR --port 8000 &
    python benchmarks/serve_fuzz.py http://127.0.0.1:8000 --examples 400
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import hypothesis
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)


def fuzz(url: str, model: str, *, examples: int, seed: int) -> Counter[tuple[str, int]]:
    """Requests by operation and status. Raises the failed check. Of valid bodies half name the ``model`` that is there
    and ask for a few tokens, so that the model is reached and not the 404 alone."""
    schema: Any = schemathesis.openapi.from_url(f"{url}/openapi.json")
    counts: Counter[tuple[str, int]] = Counter()
    for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
        for result in schema.get_all_operations():
            operation = result.ok()
            if mode == GenerationMode.NEGATIVE and not operation.body:
                continue  # a path takes any text
            _run(operation, mode, model, examples, seed, counts)
    return counts


def _run(operation: Any, mode: Any, model: str, examples: int, seed: int, counts: Counter[tuple[str, int]]) -> None:
    number = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples if operation.body else max(2, examples // 10),
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        nonlocal number
        number += 1
        positive = mode == GenerationMode.POSITIVE
        if positive and number % 2 and isinstance(case.body, dict):
            case.body |= {"model": model, "max_tokens": 3, "n": min(case.body.get("n") or 1, 2)}
            # made-up schemas and ids are mostly none of this model's
            dropped = (
                "max_completion_tokens",
                *(("response_format", "logit_bias", "min_tokens") if number % 4 == 1 else ()),
            )
            case.body = {name: value for name, value in case.body.items() if name not in dropped}
        response = case.call(timeout=120)
        counts[f"{operation.method.upper()} {operation.path}", response.status_code] += 1
        checks = [check for check in CHECKS if check is not negative_data_rejection or not positive]
        case.validate_response(response, checks=checks)

    call()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", help="default: the first one that is served")
    parser.add_argument("--examples", type=int, default=400, help="of each operation with a body, right and wrong each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import httpx

    model = args.model or httpx.get(f"{args.url}/v1/models").json()["data"][0]["id"]
    counts = fuzz(args.url, model, examples=args.examples, seed=args.seed)
    for (operation, status), count in sorted(counts.items()):
        print(f"{count:>7,}  {status}  {operation}")
    print(f"{sum(counts.values()):>7,}  requests; every answer was as the schema says")


if __name__ == "__main__":
    main()
