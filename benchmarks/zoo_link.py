"""The zoo's variants on the test split, through a real link: top-1 and bytes as a device process reports them.

    python -m benchmarks.zoo_link --data $AECNN_DATA/caltech101

An edge process serves the zoo's bundle over loopback, a device process classifies the 1,109 test photographs (those of
``benchmarks/results/caltech101-lite0/h100/data.json``; no head, tail or dictionary was trained on them) with each
variant, once with zstd and once as it does by default, by the coder with the fewest bytes. Asserted: every photograph
has an answer, and the same class whatever the coder. Not measured here: speed.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.zoo import zoo_bundle
from benchmarks.machine import describe_machine, write_result
from tests.bundles import serving

RESULTS = Path(__file__).parent / "results"
SPLIT = RESULTS / "caltech101-lite0" / "h100" / "data.json"
CODERS = ("zstd", "smallest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder caltech101")
    parser.add_argument("--out", type=Path, default=RESULTS / "zoo_link.json", help="where to write the JSON")
    options = parser.parse_args()
    test: list[str] = json.loads(SPLIT.read_text())["test"]
    files = [options.data / name for name in test]
    path = zoo_bundle("caltech101-lite0")
    bundle = open_bundle(path)
    rows = []
    with serving(path) as edge:
        for variant in bundle.manifest.variants:
            found = {coder: _device(path, edge.url, variant.id, coder, files) for coder in CODERS}
            classes = [[image["label"] for image in report["images"]] for report in found.values()]
            assert all(report["summary"]["ok"] == len(files) for report in found.values())
            assert classes[0] == classes[1]
            right = sum(label == file.parent.name for label, file in zip(classes[0], files, strict=True))
            rows.append(
                {
                    "variant": variant.id,
                    "top1": right / len(files),
                    "wire_bytes_mean": {coder: report["summary"]["wire_bytes_mean"] for coder, report in found.items()},
                    "coders": dict(Counter(image["coder"] for image in found["smallest"]["images"]).most_common()),
                }
            )
            print(rows[-1], flush=True)
    write_result(
        options.out,
        {
            "benchmark": "zoo_link",
            "command": ".venv/bin/python -m benchmarks.zoo_link --data $AECNN_DATA/caltech101",
            "bundle_id": bundle.id,
            "photographs": len(files),
            "rows": rows,
            **describe_machine(),
        },
    )


def _device(bundle: Path, url: str, variant: str, coder: str, files: list[Path]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "aecnn_deploy",
        "run-device",
        str(bundle),
        "--edge",
        url,
        "--source",
        "-",
        "--json",
    ]
    done = subprocess.run(
        [*command, "--variant", variant, "--coder", coder],
        check=True,
        stdout=subprocess.PIPE,
        input="\n".join(map(str, files)).encode(),
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


if __name__ == "__main__":
    main()
