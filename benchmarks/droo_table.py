"""DROO's published test set: the set policy, DROO itself and rules at counted evaluations of the critic.

    python -m benchmarks.droo_table data_10.mat data_5.mat …
    python -m benchmarks.droo_table --train-shipped
    python -m benchmarks.droo_table data_10.mat --train policy.npz

The first writes the table of each file, with a policy trained on the file's own first 80 % beside the shipped ones for
the first file. The second makes the three policies of the package, on generated samples alone. The third trains one
policy on the first 80 % of one file and writes it, for ``policy evaluate --droo data_10.mat --policy policy.npz``.

The files are those of DROO's public repository; without them, ``--generate 30000`` makes one of the same distribution.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from aecnn_deploy.offloading.droo.files import read_samples, write_samples
from aecnn_deploy.offloading.droo.samples import Samples, generate_samples
from aecnn_deploy.offloading.droo.set_policy import SHIPPED, SetPolicy, read_policy, write_policy
from aecnn_deploy.offloading.droo.table import table_of
from aecnn_deploy.offloading.droo.table_text import table_lines
from aecnn_deploy.offloading.droo.torch_set import SetTraining, generated_source, recorded_source, train_set_policy
from benchmarks.machine import describe_machine, write_result

RESULTS = Path(__file__).parent / "results" / "droo_table.json"
GENERATED_SEED = 20_000  # of --generate; training draws from other streams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="MAT files of DROO's repository")
    parser.add_argument("--generate", type=int, metavar="SAMPLES", help="a generated file of ten devices, as the first")
    parser.add_argument("--seeds", type=int, default=3, help="runs of DROO and of what is random (default: 3)")
    parser.add_argument("--steps", type=int, default=SetTraining().steps, help="of training a set policy")
    parser.add_argument("--online-frames", type=int, help="frames that DROO learns from; default: the first 80 %%")
    parser.add_argument("--train-shipped", action="store_true", help="make the package's policies")
    parser.add_argument("--train", type=Path, metavar="POLICY", help="train one on the first file and write it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.train_shipped:
        for seed, path in enumerate(SHIPPED, start=1):
            write_policy(path, _train(None, seed, options.steps))
        return
    files = list(options.files)
    with tempfile.TemporaryDirectory() as folder:
        if options.generate:
            files.insert(0, Path(folder) / f"generated_{GENERATED_SEED}.mat")
            write_samples(files[0], generate_samples(options.generate, 10, seed=GENERATED_SEED))
        if not files:
            parser.error("name files, or --generate SAMPLES, or --train-shipped")
        sets = [read_samples(path) for path in files]
    if options.train:
        write_policy(options.train, _train(sets[0], 1, options.steps))
        return
    shipped = [read_policy(path) for path in SHIPPED]
    tables = []
    for number, samples in enumerate(sets):
        table = table_of(samples, shipped, seeds=options.seeds, online_frames=options.online_frames, port=number == 0)
        if number == 0:
            here = [_train(samples, seed, options.steps) for seed in range(1, options.seeds + 1)]
            own = table_of(samples, here, seeds=1, online_frames=0, name="set policy, this file's")
            table["rows"][3:3] = own["rows"][:3]
            table["policies"] += own["policies"]
        tables.append(table)
        print("\n".join(table_lines(table)), flush=True)
    document: dict[str, Any] = {
        "benchmark": "droo_table",
        "command": _command(options, sets),
        "tables": tables,
        **describe_machine(),
    }
    write_result(options.out, document)
    print(f"written to {options.out}")


def _command(options: argparse.Namespace, sets: list[Samples]) -> str:
    """The command without what its default was, files without their folders."""
    named = [samples.source for samples in sets[bool(options.generate) :]]
    given = {"generate": None, "seeds": 3, "steps": SetTraining().steps, "online_frames": None}
    for name, default in given.items():
        if getattr(options, name) != default:
            named += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return " ".join(["python -m benchmarks.droo_table", *named])


def _train(samples: Samples | None, seed: int, steps: int) -> SetPolicy:
    settings = SetTraining(seed=seed, steps=steps)
    size = settings.samples_per_step
    start = time.monotonic()
    if samples is None:
        source, name = generated_source(size), "generated, 4 to 14 devices"
    else:
        source = recorded_source(samples.training_gains, samples.weights, size)
        name = f"first 80 % of {samples.source}"
    policy = train_set_policy(source, settings, about={"samples": name})
    print(
        f"trained on {name}, seed {seed}: {policy.training['critic_evaluations']} critic evaluations, "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    return policy


if __name__ == "__main__":
    main()
