#!/usr/bin/env bash
# Build the images of edge and device and run them, on a machine without Docker and without a registry.
#
#   tools/try_images.sh DIR                 about four minutes, 5 GB in DIR
#
# The base image is a stand-in: Debian trixie by mmdebstrap under the name of the official Python image, whose Debian
# and Python minor release are the same. All else is as it is: the Dockerfiles, podman for Docker, runc under it.
# Needs root, make setup, the network, and: apt-get install buildah catatonit mmdebstrap podman runc
# The gpu target is not built: NVIDIA's base has no stand-in. The device image is built for this machine's processor.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# == 1 ]] || { echo "usage: tools/try_images.sh DIR" >&2; exit 2; }
mkdir -p "$1"
dir="$(cd "$1" && pwd)"

export CONTAINERS_STORAGE_CONF="$dir/storage.conf" CONTAINERS_CONF="$dir/containers.conf"
printf '[storage]\ndriver = "overlay"\nrunroot = "%s/run"\ngraphroot = "%s/graph"\n' "$dir" "$dir" >"$CONTAINERS_STORAGE_CONF"
# No higher than this machine's own limits, which a container engine may not raise everywhere.
printf '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=1024:1024"]\n[engine]\nruntime = "runc"\n' >"$CONTAINERS_CONF"
locked_down=(--read-only --cap-drop all --security-opt no-new-privileges --tmpfs "/tmp:rw,size=64m" --no-healthcheck)
name="aecnn-try-$$"
pod="aecnn-edge-pod-0" # as podman calls the Deployment's
trap '{ podman rm --force --time 0 "$name"; podman pod rm --force --time 0 "$pod"; } >/dev/null 2>&1 || true' EXIT
say() { printf '%s\n' "ok  $*"; }
fail() { printf '%s\n' "FAILED  $*" >&2; podman logs "$name" >&2 || true; exit 1; }

base="$(sed -n 's/^ARG PYTHON_IMAGE=//p' deploy/docker/edge.Dockerfile)"
if ! podman image exists "docker.io/library/$base"; then
  mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates trixie "$dir/base.tar"
  podman import --quiet --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    "$dir/base.tar" "docker.io/library/$base" >/dev/null
  rm "$dir/base.tar"
fi
say "stand-in for $base: $(podman run --rm --network none "docker.io/library/$base" python3 --version)"

wait_ready() { # CONTAINER
  local ask='import urllib.request as u; u.urlopen("http://127.0.0.1:8765/readyz", timeout=5)'
  for _ in $(seq 240); do
    podman exec "$1" python -c "$ask" 2>/dev/null && return
    [[ "$(podman inspect --format '{{.State.Running}}' "$1")" == true ]] || fail "the edge ended"
    sleep 0.5
  done
  fail "the edge was not ready within two minutes"
}
stops() { # CONTAINER: SIGTERM ends it well
  local start=$SECONDS status
  podman stop --time 30 "$1" >/dev/null 2>&1
  status="$(podman inspect --format '{{.State.ExitCode}}' "$1")"
  [[ "$status" == 0 ]] || fail "exit status $status after SIGTERM"
  say "edge: SIGTERM ended it with exit status 0 after $((SECONDS - start)) s"
}
build() { # TAG DOCKERFILE TARGET
  buildah build --isolation chroot --pull-never --format docker --layers=false --no-cache --quiet \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro --file "deploy/docker/$2" --target "$3" --tag "$1" . >>"$dir/build.log" 2>&1 ||
    { tail -n 40 "$dir/build.log" >&2; exit 1; }
}
packages() { # IMAGE: a hash of all that it installed, times and owners of files left out
  podman run --rm --no-healthcheck --network none --entrypoint sh "$1" -c \
    'cd /usr/local/lib/aecnn && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum'
}

build localhost/aecnn-edge:cpu edge.Dockerfile cpu
build localhost/aecnn-edge:again edge.Dockerfile cpu
[[ "$(packages localhost/aecnn-edge:cpu)" == "$(packages localhost/aecnn-edge:again)" ]] ||
  fail "two builds of the same sources differ"
say "edge, cpu: built twice, every installed file is the same"
build localhost/aecnn-device device.Dockerfile device
say "device: built"

mkdir -p "$dir/bundle" "$dir/photos"
.venv/bin/python - "$dir" <<'END'
import shutil
import sys
from pathlib import Path

from aecnn_deploy.bundle.archive import unpack
from aecnn_deploy.zoo import zoo_bundle
from tests.bundles import make_photos

base = Path(sys.argv[1])
shutil.copytree(unpack(zoo_bundle("zoo:caltech101-lite0")), base / "bundle", dirs_exist_ok=True)
make_photos(base / "photos", count=8)
END
chmod -R a+rX "$dir/bundle" "$dir/photos"

# As it stands: ENTRYPOINT, CMD, user and volumes are the image's, the bundle is where it looks for it.
podman run --detach --name "$name" --network none "${locked_down[@]}" --volume "$dir/bundle:/bundle:ro" \
  localhost/aecnn-edge:cpu >/dev/null
inside() { podman exec "$name" "$@"; }
wait_ready "$name"
inside python /usr/local/lib/aecnn/healthcheck.py || fail "the health check"
[[ "$(inside python -c 'import os; print(os.getuid(), open("/proc/1/cmdline").read().count("serve-edge"))')" == "10001 1" ]] ||
  fail "process 1 is not the edge, or not of user 10001"
say "edge: ready, healthy; process 1, user 10001, read-only root, no capabilities"
if inside sh -c 'touch /usr/local/lib/aecnn/x' 2>/dev/null; then fail "its root can be written to"; fi

podman run --rm --network "container:$name" "${locked_down[@]}" --volume "$dir/photos:/photos:ro" \
  --volume "$dir/bundle:/bundle:ro" localhost/aecnn-device \
  run-device /bundle --edge ws://127.0.0.1:8765 --source /photos --json >"$dir/device.json" || fail "the device"
.venv/bin/python -c 'import json, sys; assert json.load(sys.stdin)["summary"]["ok"] == 8' <"$dir/device.json" || fail "the device"
say "device: 8 photographs classified over the edge in the other container"

stops "$name"

# The Deployment of the overlay cpu as podman understands it: arguments, user, read-only root, volumes, limits. It has
# no cluster's network (so no port to publish) and runs no probe of its own without systemd.
if ! kubectl kustomize deploy/kubernetes/overlays/cpu >"$dir/cpu.yaml" 2>/dev/null; then
  echo "no kubectl with kustomize 5: the Deployment was not tried"
  exit 0
fi
.venv/bin/python - "$dir" <<'END'
import sys
from pathlib import Path

import yaml

base = Path(sys.argv[1])
(found,) = [each for each in yaml.safe_load_all((base / "cpu.yaml").read_text()) if each["kind"] == "Deployment"]
found["spec"]["replicas"] = 1
(container,) = found["spec"]["template"]["spec"]["containers"]
container["image"] = "localhost/aecnn-edge:cpu"
for key in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
    del container[key]
(base / "deployment.yaml").write_text(yaml.safe_dump(found))
END
podman kube play --network none "$dir/deployment.yaml" >/dev/null
wait_ready "$pod-edge"
limits="$(podman inspect --format '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}' "$pod-edge")"
say "Deployment: ready; read-only root, bytes of memory, billionths of a core: $limits"
stops "$pod-edge"
