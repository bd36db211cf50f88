#!/usr/bin/env bash
# Makes .venv: torch first and pinned (an unpinned one pulls gigabytes of CUDA packages), then fewstep with its extras.
# Usage: tools/setup.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3.11}
command -v "$python" >/dev/null || python=python3
torch=$(grep -E '^torch==' constraints.txt)

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check install -q)

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

# Folders of wheels that pip itself is told to look into (PIP_FIND_LINKS or pip's configuration files).
wheel_folders() {
    tr ' ' '\n' <<<"${PIP_FIND_LINKS:-}"
    .venv/bin/python -m pip config list 2>/dev/null | sed -n "s/^[a-z]*\.find-links='\(.*\)'$/\1/p" | tr ' ' '\n'
}

if has_gpu; then
    "${pip[@]}" "$torch"
else
    wheel=
    for folder in $(wheel_folders); do
        wheel=$(find "${folder#file://}" -maxdepth 1 -name "${torch/==/-}+cpu-*.whl" 2>/dev/null | head -1)
        [ -z "$wheel" ] || break
    done
    if [ -n "$wheel" ]; then
        "${pip[@]}" "$torch"
    else
        "${pip[@]}" "$torch" --index-url https://download.pytorch.org/whl/cpu || {
            echo "set-up stopped: no CPU build of $torch in pip's wheel folders nor on PyTorch's CPU index" >&2
            exit 1
        }
    fi
fi
"${pip[@]}" -c constraints.txt -e '.[data,features,text,test]'
if ! has_gpu && ! .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    echo "set-up stopped: a CUDA build of PyTorch was installed on a machine without an NVIDIA GPU" >&2
    exit 1
fi
