#!/usr/bin/env bash
# Correctness, speed and memory of the adapted layer on one NVIDIA card, in under 8 minutes.
#
#     bash benchmarks/gpu.sh              # uses python3, or the interpreter named by PYTHON
#
# Leaves benchmarks/results/gpu.json and gpu_tests.log. What is missing is installed with pip into a folder of its own;
# a torch that is there already is kept. Ends with an error if there is no card, a test fails or time runs out.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
libraries="${TMPDIR:-/tmp}/stable_forgetting_gpu"
export PYTHONPATH="$PWD/src:$libraries${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

if ! command -v nvidia-smi >/dev/null && [[ ! -e /dev/nvidiactl ]]; then
    echo "There is no CUDA device here: neither nvidia-smi nor /dev/nvidiactl. Nothing was installed or measured." >&2
    exit 2
fi

missing=()
for package in torch triton peft transformers pytest pytest-xdist hypothesis; do
    "$python" -c "import ${package#pytest-}" 2>/dev/null || missing+=("$package")
done
if ((${#missing[@]})); then
    echo "Installing ${missing[*]} into $libraries" >&2
    if [[ " ${missing[*]} " == *" torch "* ]]; then
        "$python" -m pip install --quiet --target "$libraries" "${missing[@]}"
    else # the torch that is there must stay the one that is used
        torch="$("$python" -c 'import torch; print(torch.__version__.split("+")[0])')"
        "$python" -m pip install --quiet --target "$libraries" --no-deps "${missing[@]}" \
            || { echo "Could not install ${missing[*]} beside torch $torch." >&2; exit 3; }
    fi
fi

"$python" benchmarks/gpu.py --check
mkdir -p benchmarks/results
# In 12 processes: most of the time goes into compiling the kernels for every bound, type and layout.
if ! timeout 230 "$python" -m pytest tests/adapters/test_kernels.py -n 12 \
    -p no:cacheprovider 2>&1 | tee benchmarks/results/gpu_tests.log; then
    echo "The tests failed on the card; no times are taken of code that is wrong." >&2
    exit 1
fi
timeout 220 "$python" benchmarks/gpu.py --total-s 170
