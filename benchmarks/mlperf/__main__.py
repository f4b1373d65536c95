"""``python -m benchmarks.mlperf``: what it imports, each device process would import again."""

import sys

if __name__ == "__main__":
    from benchmarks.mlperf.command import main

    sys.exit(main())
