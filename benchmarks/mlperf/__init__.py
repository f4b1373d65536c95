"""MLPerf LoadGen as the judge of the whole system: device half and edge half, joined by a real socket.

    python -m benchmarks.mlperf --help

``loadgen`` alone knows LoadGen; ``systems`` are what it judges; ``judging`` runs one test in a process of its own;
``series`` runs them all; ``logs`` and ``accuracy`` read what LoadGen wrote; ``table`` prints it.
"""
