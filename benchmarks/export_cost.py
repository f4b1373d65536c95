"""What an export costs: seconds and peak memory of ``aecnn-deploy export`` for one variant of ResNet-50, in its own
process.

    python -m benchmarks.export_cost

Untrained weights (that changes neither), split after the stem at V = 16, both heads, verification and samples included;
torch and all libraries are loaded anew. Asserted: the bundle opens and every file is verified again.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.exporters.int8_calibration import calibrate_heads
from aecnn_deploy.models.split import SplitDesign
from aecnn_deploy.runtimes.samples import verify_bundle
from benchmarks.machine import describe_machine, write_result
from tests.int8_runs import many_photographs, network, run_of

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "export_cost.json", help="where to write the JSON")
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        run = run_of(folder / "run", "resnet50", network("resnet50", SplitDesign(split=1, planes=4, bits=8)))
        calibrate_heads(run, many_photographs(12), method="minmax")
        heads = ["--head-precision", "fp32", "--head-precision", "int8"]
        for words in ([], heads, [*heads, "--engine", "tensorrt-rtx", "--sm", "75"]):
            out = folder / f"bundle{len(rows)}"
            start_s = time.perf_counter()
            command = [sys.executable, "-m", "aecnn_deploy", "export", str(run.path), "--out", str(out), *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start_s
            # The largest of all children so far: rows are in the order of what they need.
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            assert not [check for check in verify_bundle(open_bundle(out)) if check.verdict == "failed"]
            rows.append({"options": " ".join(words), "seconds": round(seconds, 1), "peak_mib": round(peak)})
            print(rows[-1], flush=True)
    write_result(
        options.out,
        {
            "benchmark": "export_cost",
            "command": ".venv/bin/python -m benchmarks.export_cost",
            "rows": rows,
            **describe_machine(),
        },
    )


if __name__ == "__main__":
    main()
