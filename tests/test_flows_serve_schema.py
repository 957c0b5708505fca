"""What the server says of itself in /openapi.json is true of whatever schemathesis makes of it: a short run;
``benchmarks/serve_fuzz.py`` makes a long one."""

import sys

import pytest
from conftest import ROOT
from serve_helpers import Running
from token_helpers import taught_dir

sys.path.insert(0, str(ROOT / "benchmarks"))
from serve_fuzz import fuzz


@pytest.fixture(scope="module")
def server():
    running = Running({"m": taught_dir()}, slots=4)
    yield running
    running.close()


def test_every_answer_to_made_up_requests_is_as_the_schema_says(server):
    counts = fuzz(server.url, "m", examples=12, seed=1)
    assert sum(counts.values()) > 40 and not any(status >= 500 for _, status in counts)
    assert any(path.startswith("POST") and status == 200 for path, status in counts)
    assert server.idle()
