"""LoadGen's configuration files, checked: LoadGen itself ignores what it does not understand."""

import re
from pathlib import Path

from aecnn_deploy.errors import SettingsError
from benchmarks.mlperf.settings import SCENARIOS

MODEL = "aecnn"  # what our lines of the files are for; lines for "*" and other models are LoadGen's to choose among

KEYS = (
    "accuracy_log_rng_seed",
    "accuracy_log_probability",
    "accuracy_log_sampling_target",
    "max_duration",
    "max_query_count",
    "min_duration",
    "min_query_count",
    "performance_sample_count_override",
    "qsl_rng_seed",
    "sample_index_rng_seed",
    "samples_per_query",
    "schedule_rng_seed",
    "target_latency",
    "target_latency_percentile",
    "target_qps",
)

# What an official run takes from LoadGen's own mlperf.conf and our user.conf, and from nobody else.
OFFICIAL = ("max_duration", "min_duration", "min_query_count", "samples_per_query", "target_latency_percentile")

_LINE = re.compile(r"(?P<model>[^\s.]+)\.(?P<scenario>[^\s.]+)\.(?P<key>\w+) = (?P<value>[0-9]+(?:\.[0-9]+)?)\s*")


def check_conf(path: Path) -> dict[str, str]:
    """The lines of a configuration file, key to value. Raises SettingsError: LoadGen would ignore one of them."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}; name LoadGen's settings by --user-conf FILE") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise SettingsError(
                f"{path}, line {number}: {line.strip()!r} is not 'model.scenario.key = number'; "
                "LoadGen would ignore it without a word"
            )
        if match["scenario"] not in (*SCENARIOS, "*"):
            raise SettingsError(
                f"{path}, line {number}: unknown scenario {match['scenario']!r}; choose *, {', '.join(SCENARIOS)}"
            )
        if match["key"] not in KEYS:
            raise SettingsError(f"{path}, line {number}: unknown key {match['key']!r}; known are {', '.join(KEYS)}")
        found[line.partition(" ")[0]] = match["value"]
    return found
