"""Top-1 of an accuracy run, from LoadGen's log and a list of labels, as MLPerf's own scripts compute it.

    python -m benchmarks.mlperf.accuracy --mlperf-accuracy-file mlperf_log_accuracy.json --val-map val_map.txt

``val_map.txt`` has a line for each sample, in the order of LoadGen's indices: the image's name and its label's index.
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aecnn_deploy.errors import AecnnError
from benchmarks.mlperf.logs import read_answers
from benchmarks.mlperf.settings import JudgeError


@dataclass(frozen=True, slots=True)
class Score:
    """How many of the samples got their label as the answer."""

    good: int
    total: int
    sha256: str  # of the log

    @property
    def share(self) -> float:
        return self.good / self.total

    @property
    def standard_error(self) -> float:
        """Of ``share``, as one draw of so many photographs."""
        return float((self.share * (1 - self.share) / self.total) ** 0.5)

    def text(self) -> str:
        """The lines of an accuracy.txt."""
        return f"accuracy={self.share:.3%}, good={self.good}, total={self.total}\nhash={self.sha256}\n"


def score(log: Path, labels: Sequence[int]) -> Score:
    """Raises JudgeError: ``log`` does not have exactly one answer for each of ``labels``."""
    answers = read_answers(log)
    times = Counter(each.index for each in answers)
    if sorted(times) != list(range(len(labels))) or max(times.values(), default=0) > 1:
        raise JudgeError(
            f"{log} has {len(answers)} answers for {len(times)} samples, expected one for each of {len(labels)}; "
            "the log is of a performance run, or of other photographs"
        )
    good = sum(labels[each.index] == each.answer for each in answers)
    return Score(good, len(labels), hashlib.sha256(log.read_bytes()).hexdigest())


def write_labels(path: Path, files: Sequence[Path], labels: Sequence[int]) -> None:
    """A val_map.txt; a space would end a name."""
    names = [f"{file.parent.name}/{file.name}".replace(" ", "_") for file in files]
    lines = [f"{name} {label}" for name, label in zip(names, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def read_labels(path: Path) -> list[int]:
    """The labels of a val_map.txt. Raises JudgeError: it is none."""
    try:
        return [int(line.split()[1]) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError, IndexError) as exc:
        raise JudgeError(f"{path} is no list of names and labels: {type(exc).__name__}: {exc}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlperf-accuracy-file", type=Path, required=True, help="LoadGen's mlperf_log_accuracy.json")
    parser.add_argument("--val-map", type=Path, required=True, help="names and labels")
    options = parser.parse_args(arguments)
    try:
        found = score(options.mlperf_accuracy_file, read_labels(options.val_map))
    except AecnnError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(found.text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
