#!/usr/bin/env bash
# An emulated Raspberry Pi with this project's wheel and its extra "device"; prints the path of its Python.
#
#   tools/arm64_python.sh DIR        DIR is made anew, in under a minute; needs apt and pip
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$1
rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
python3 -m pip wheel -q --no-deps -w "$out/wheel" . >&2
bash tools/arm64_root.sh "$out/pi" "$(ls "$out"/wheel/aecnn_deploy-*.whl)[device]" >&2
echo "$out/pi/python"
