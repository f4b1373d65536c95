#!/usr/bin/env bash
# Write deploy/docker/locks: for each container image, the exact releases that it installs, with their hashes.
#
#   tools/lock_images.sh                    keep the locked releases where pyproject.toml still allows them
#   tools/lock_images.sh --upgrade          take the newest ones
#
# Needs the network and uv (make setup). Universal: a lock is right for amd64 and arm64.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock() { # NAME [OPTION ...]
  local out="deploy/docker/locks/$1.txt"
  shift
  .venv/bin/uv pip compile --quiet --universal --generate-hashes --custom-compile-command tools/lock_images.sh \
    --output-file "$out" "$@"
  echo "$out: $(grep -c '^[a-z0-9]' "$out") packages"
}

# The oldest Python of an image that installs it: the CUDA image's Ubuntu 24.04 has 3.12, the others 3.13.
lock edge --python-version 3.13 --extra edge "$@" pyproject.toml
lock edge-gpu --python-version 3.12 --extra edge --extra tensorrt "$@" pyproject.toml
lock device --python-version 3.13 --extra device --extra video "$@" pyproject.toml
# What builds the wheel, so that pip need not fetch it unlocked.
.venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' |
  lock build --python-version 3.13 "$@" -
