#!/usr/bin/env bash
# A Python that starts a real Triton server (nvidia-pytriton, its Python backend, on the CPU); prints its path.
#
#   tools/triton_python.sh DIR       DIR is kept when it is whole, else made anew in about a minute, 0.5 GB; needs pip
#
# An environment of its own: nvidia-pytriton needs numpy before 2. PYTHON names the interpreter that it is made from;
# without, the first of python3 and /usr/bin/python3 that fits.
set -euo pipefail

fail() {
  echo "no Python for Triton: $*" >&2
  exit 1
}

[[ $# -eq 1 && -n $1 ]] || fail "give the folder to make it in: tools/triton_python.sh DIR"
mkdir -p "$1" || fail "cannot make $1"
out=$(cd "$1" && pwd)
python=$out/python
log=$out/install.log

# Interpreters that cannot do it are named at the end. Triton's server runs models in a process that loads libpython,
# which no virtual environment has: the folder of the interpreter's own goes into LD_LIBRARY_PATH.
library='
import ctypes, sys, sysconfig, venv
if not (3, 10) <= sys.version_info < (3, 14):
    sys.exit("nvidia-pytriton is for Python 3.10 to 3.13")
name = sysconfig.get_config_var("INSTSONAME") or "libpython"
folder = sysconfig.get_config_var("LIBDIR")
for path in (f"{folder}/{name}", name):
    try:
        ctypes.CDLL(path)
    except OSError:
        continue
    print(folder)
    break
else:
    sys.exit(f"it has no {name}, which Triton needs")
'

# Every model process is one of these: what it lacks would only show when the first model is loaded.
whole='
import pathlib, subprocess, sys
import onnxruntime, pytriton
home = pathlib.Path(pytriton.__file__).parent / "tritonserver"
stub = home / "python_backend_stubs" / "{}.{}".format(*sys.version_info) / "triton_python_backend_stub"
for program in (home / "bin" / "tritonserver", stub):
    found = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    missing = [line.split()[0] for line in found.splitlines() if "not found" in line]
    if missing:
        sys.exit("{} lacks {}".format(program.name, ", ".join(missing)))
'

if [[ -x $python && -e $out/complete ]] && "$python" -c "$whole" >/dev/null 2>&1; then
  echo "$python"
  exit 0
fi

rm -rf "$out/venv" "$out/complete" "$python"
: >"$log"
chosen=
why=
for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
  if folder=$("$candidate" -c "$library" 2>"$log"); then
    chosen=$candidate
    break
  fi
  why="$why; $candidate: $(tail -n 1 "$log")"
done
[[ -n $chosen ]] || fail "${why#; }; name one of 3.10 to 3.13 with its shared library: PYTHON=... tools/triton_python.sh DIR"

{ "$chosen" -m venv "$out/venv" &&
  "$out/venv/bin/python" -m pip install --no-input --no-compile nvidia-pytriton 'numpy<2' onnxruntime; } >"$log" 2>&1 ||
  fail "$(grep -E '^(ERROR|Error)|No module' "$log" | tail -n 1 || true) (the rest is in $log)"

cat >"$python" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$folder\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$out/venv/bin/python" "\$@"
END
chmod +x "$python"
"$python" -c "$whole" >"$log" 2>&1 || fail "$(tail -n 1 "$log")"
touch "$out/complete"
echo "$python"
