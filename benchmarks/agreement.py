"""How often the split system, through the real link, names the class that the unsplit model names.

    python -m benchmarks.agreement --data $AECNN_DATA/caltech101                 # trains first, hours on a CPU
    python -m benchmarks.agreement --data $AECNN_DATA/caltech101 --run RUN       # a run of the command below
    python -m benchmarks.agreement --data $AECNN_DATA/caltech101 --config configs/label-free-quick.toml   # minutes

300 photographs of Caltech-101 are held out (benchmarks/photographs.py); the run is trained, without labels, on others:

    aecnn-deploy train configs/label-free-lite0.toml --data TRAINING_FOLDER --out RUN

where TRAINING_FOLDER is what ``--link-training FOLDER`` makes. The run is exported, an edge process serves the bundle
over loopback, a device process classifies the 300 photographs with each variant. Asserted, image for image: the class
through the link is the class that torch gives for the same quantised planes. Reported: top-1 agreement with the unsplit
model (1,000 ImageNet classes, photographs of all 101 categories), mean bytes of the whole message, and, for those of
the 300 whose category is an ImageNet class, top-1 against that class. Not measured here: speed; both processes share
this machine's cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from aecnn_deploy.models.run import load_run
from aecnn_deploy.models.weights import caltech101_imagenet
from aecnn_deploy.training.evaluation import full_top1, run_split
from aecnn_deploy.training.photographs import load_photographs
from benchmarks.machine import describe_machine, write_result
from benchmarks.photographs import link_folder, split_photographs
from tests.bundles import serving

COMMAND = (sys.executable, "-m", "aecnn_deploy")
RESULTS = Path(__file__).parent / "results" / "agreement.json"
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "label-free-lite0.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder caltech101")
    parser.add_argument("--run", type=Path, help="a trained run; not given: train one")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings of that training")
    parser.add_argument("--link-training", type=Path, help="only make a folder of links to the training photographs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write the JSON")
    options = parser.parse_args()
    held_out, training = split_photographs(options.data)
    if options.link_training:
        print(link_folder(training, options.data, options.link_training))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = options.run or _train(
            options.config, link_folder(training, options.data, folder / "training"), folder / "run"
        )
        source = link_folder(held_out, options.data, folder / "held-out")
        document = measure(run, source, folder / "bundle")
    write_result(options.out, document)
    print(f"{'variant':<30} {'agreement':>10} {'bytes':>7} {'top-1 of ImageNet categories':>30}")
    for row in document["rows"]:
        accuracy = f"{row['top1_imagenet_categories']:.1%} (unsplit {document['unsplit_top1']:.1%})"
        print(f"{row['variant']:<30} {row['agreement']:>10.1%} {row['wire_bytes_mean']:>7.0f} {accuracy:>30}")
    print(f"{document['photographs']} photographs, written to {options.out}")


def _train(config: Path, data: Path, out: Path) -> Path:
    subprocess.run([*COMMAND, "train", str(config), "--data", str(data), "--out", str(out)], check=True)
    return out


def measure(run_path: Path, source: Path, bundle: Path) -> dict[str, Any]:
    """Export the run and compare the link with torch; the document that is written."""
    subprocess.run([*COMMAND, "export", str(run_path), "--out", str(bundle)], check=True, stdout=subprocess.DEVNULL)
    run = load_run(run_path)
    files = sorted(source.iterdir())
    photographs = load_photographs(files, run.input)
    assert not photographs.skipped, photographs.skipped
    unsplit = full_top1(run.full(), photographs.frames)
    truth = _truth(files, run.labels)
    known = [index for index, classes in enumerate(truth) if classes]
    rows = []
    with serving(bundle) as edge:
        for variant in run.variants:
            report = _device(bundle, edge.url, variant.id, source)
            linked = np.array([image["index"] for image in report["images"]])
            in_torch = run_split(variant.head(), variant.tail(), variant.bits, photographs.frames)
            assert [image["source"] for image in report["images"]] == [str(file) for file in files]
            assert (linked == in_torch.top1).all(), f"{variant.id}: {(linked != in_torch.top1).sum()} images differ"
            rows.append(
                {
                    "variant": variant.id,
                    "ratio": variant.ratio,
                    "agreement": float((linked == unsplit).mean()),
                    "equal_to_torch": int((linked == in_torch.top1).sum()),
                    "wire_bytes_mean": report["summary"]["wire_bytes_mean"],
                    "top1_imagenet_categories": float(np.mean([linked[i] in truth[i] for i in known])),
                    "head_macs": variant.head_macs,
                    "full_macs": variant.full_macs,
                }
            )
        status, errors = edge.stop()
        assert status == 0, errors
    return {
        "benchmark": "agreement",
        "command": ".venv/bin/python -m benchmarks.agreement --data $AECNN_DATA/caltech101 [--run RUN]",
        "photographs": len(files),
        "imagenet_photographs": len(known),
        "unsplit_top1": float(np.mean([unsplit[i] in truth[i] for i in known])),
        "rows": rows,
        "settings": run.record.settings,
        "training": {key: run.measurements[key] for key in ("photographs", "prepare_s", "train_s", "device")},
        **describe_machine(),
    }


def _truth(files: list[Path], labels: tuple[str, ...]) -> list[set[int]]:
    """The ImageNet classes of each photograph's category; empty where the category is none."""
    number = {label: index for index, label in enumerate(labels)}
    classes = caltech101_imagenet()
    return [{number[label] for label in classes.get(file.name.partition("__")[0], ())} for file in files]


def _device(bundle: Path, url: str, variant: str, source: Path) -> dict[str, Any]:
    command = [*COMMAND, "run-device", str(bundle), "--edge", url, "--source", str(source), "--coder", "zstd"]
    done = subprocess.run([*command, "--variant", variant, "--json"], check=True, stdout=subprocess.PIPE)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


if __name__ == "__main__":
    main()
