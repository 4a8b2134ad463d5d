#!/bin/bash
# All that is to be checked and measured on a machine with a GPU, in less than six minutes, without a network.
#
#     make gpu-carry                      # here: what the other machine lacks, in build/gpu
#     bash benchmarks/gpu_check.sh        # there, in a copy of the repository with build/gpu
#
# Results: benchmarks/results/gpu_check.json says how every step went; gpu.json, scale_gpu.json and latency.json are
# those of the benchmarks. Output: build/gpu_check/STEP.log. GPU_CHECK_PYTHON: the Python to use, python3 by default.
# `--list` prints the steps and how many seconds each may take, and does nothing.
set -u
cd "$(dirname "$0")/.."

PYTHON=${GPU_CHECK_PYTHON:-python3}
LOGS=build/gpu_check
SITE=$PWD/build/gpu/site
STEPS=$LOGS/steps.tsv
ENGINE=build/gpu/pse.onnx
LIST=
[ "${1:-}" = --list ] && LIST=1

step() { # name, most seconds, command
    local name=$1 most=$2 start code
    shift 2
    if [ -n "$LIST" ]; then
        printf '%s\t%s\n' "$name" "$most"
        return
    fi
    start=$(date +%s.%N)
    timeout --kill-after=5 "$most" "$@" >"$LOGS/$name.log" 2>&1
    code=$?
    printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$start" "$(date +%s.%N)" >>"$STEPS"
    echo "$name: exit code $code"
    [ "$code" -eq 0 ] || tail -n 20 "$LOGS/$name.log"
}

install() { # wheels that came in parts are put together first
    for first in build/gpu/wheels/*.part-aa; do
        [ -e "$first" ] && cat "${first%-aa}"-* >"${first%.part-aa}"
    done
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$SITE" build/gpu/wheels/*.whl
}

if [ -z "$LIST" ]; then
    mkdir -p "$LOGS"
    rm -f "$STEPS"
    export PYTHONPATH=$PWD:$SITE PYTHONUNBUFFERED=1
    export -f install
    export PYTHON SITE
fi

step install 40 bash -c install
step tests 90 "$PYTHON" -m pytest -q -m gpu tests
step gpu 50 "$PYTHON" benchmarks/bench_gpu.py
step scale 80 "$PYTHON" benchmarks/bench_scale.py --device cuda --threads 16 --memory 16G --engine "$ENGINE" \
    --faces 100000 --faces 584000
step latency 30 "$PYTHON" benchmarks/bench_latency.py --engine "$ENGINE" --batches 1,32 --nodes 128,256 --faces 2000 \
    --seconds 0.2 --threads 16
step memcheck 30 compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" benchmarks/bench_gpu.py --faces 3000 \
    --copy 1048576 --side 256 --folder "$LOGS/memcheck"
step racecheck 30 compute-sanitizer --tool racecheck --error-exitcode 9 "$PYTHON" benchmarks/bench_gpu.py --faces 3000 \
    --copy 1048576 --side 256 --folder "$LOGS/racecheck"

[ -n "$LIST" ] || "$PYTHON" benchmarks/gpu_report.py "$STEPS"
