"""What became of a model's requests by the Open Inference Protocol, in the form of Triton's statistics."""

import time
from dataclasses import dataclass, field

from aecnn_deploy.runtimes.oip_models import VERSION, Document


@dataclass(slots=True)
class _Sum:
    """How often something was, and for how long together."""

    count: int = 0
    ns: int = 0

    def add(self, milliseconds: float) -> None:
        self.count += 1
        self.ns += round(milliseconds * 1e6)

    def document(self) -> Document:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class ModelStatistics:
    """Of one model, since the edge started. Lives on the event loop."""

    last_ms: int = 0  # of the last request, since 1970
    success: _Sum = field(default_factory=_Sum)
    fail: _Sum = field(default_factory=_Sum)
    queue: _Sum = field(default_factory=_Sum)
    parse: _Sum = field(default_factory=_Sum)
    run: _Sum = field(default_factory=_Sum)
    write: _Sum = field(default_factory=_Sum)

    def answered(self, *, total_ms: float, queue_ms: float, parse_ms: float, run_ms: float, write_ms: float) -> None:
        """One request was answered; waiting and running are those of its slowest row."""
        self.last_ms = time.time_ns() // 1_000_000
        for total, milliseconds in (
            (self.success, total_ms),
            (self.queue, queue_ms),
            (self.parse, parse_ms),
            (self.run, run_ms),
            (self.write, write_ms),
        ):
            total.add(milliseconds)

    def failed(self, total_ms: float) -> None:
        """One request failed."""
        self.fail.add(total_ms)

    def document(self, name: str, ran: tuple[int, int]) -> Document:
        """One entry of ``model_stats``; ``ran``: the model's batches and the rows in them, whoever asked for those."""
        return {
            "name": name,
            "version": VERSION,
            "last_inference": self.last_ms,
            "inference_count": ran[1],
            "execution_count": ran[0],
            "inference_stats": {
                "success": self.success.document(),
                "fail": self.fail.document(),
                "queue": self.queue.document(),
                "compute_input": self.parse.document(),
                "compute_infer": self.run.document(),
                "compute_output": self.write.document(),
                "cache_hit": _Sum().document(),
                "cache_miss": _Sum().document(),
            },
            "batch_stats": [],
        }
