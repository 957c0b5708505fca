"""What Prometheus is told, of one server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_WEIGHT = 0.1
"""Of the newest request in the running mean of how long one takes."""


class Metrics:
    """Counters of a server, by the name of the model."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pipeline_serve_requests", "Requests answered", ["path", "status"], registry=self.registry
        )
        self.tokens = Counter(
            "pipeline_serve_tokens", "Tokens read (prompt) and written (completion)", ["model", "kind"],
            registry=self.registry,
        )  # fmt: skip
        self.cut = Counter(
            "pipeline_serve_cut", "Requests that ended before their answer: disconnects, timeouts, faults", ["model"],
            registry=self.registry,
        )  # fmt: skip
        self.changes = Counter(
            "pipeline_serve_model_changes", "Times that another model took over a name", ["model"],
            registry=self.registry,
        )  # fmt: skip
        self.first = Histogram(
            "pipeline_serve_first_token_seconds", "Seconds from the request to its first token", ["model"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.duration = Histogram(
            "pipeline_serve_request_seconds", "Seconds from the request to the end of its answer", ["model"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.running = Gauge("pipeline_serve_running", "Answers being made", ["model"], registry=self.registry)
        self.waiting = Gauge("pipeline_serve_waiting", "Answers without a slot yet", ["model"], registry=self.registry)
        self.slots = Gauge("pipeline_serve_slots", "Answers made at once at most", ["model"], registry=self.registry)
        self._mean: dict[str, float] = {}

    def ended(self, name: str, usage: dict[str, int], seconds: float, *, cut: bool) -> None:
        """A request is over."""
        self.tokens.labels(name, "prompt").inc(usage["prompt_tokens"])
        self.tokens.labels(name, "completion").inc(usage["completion_tokens"])
        self.duration.labels(name).observe(seconds)
        if cut:
            self.cut.labels(name).inc()
        self._mean[name] = (1 - _WEIGHT) * self._mean.get(name, seconds) + _WEIGHT * seconds

    def seconds(self, name: str) -> float:
        """How long a request took lately, in seconds."""
        return self._mean.get(name, 1.0)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
