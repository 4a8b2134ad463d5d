#!/bin/bash
# All that is to be checked and measured on a machine with a GPU, in less than six minutes, without a network.
#
#     make gpu-carry                      # here: what the other machine lacks, in build/gpu
#     bash benchmarks/gpu_check.sh        # there, in a copy of the repository with build/gpu
#     bash benchmarks/gpu_check.sh --more # there, too: less than ten minutes; needs 40 GB of disk and 64 GB of memory
#
# A step that fails, or takes too long, leaves the others alone. Results, in benchmarks/results: gpu_check.json says how
# every step went and which labels are equal; it is written after each. gpu.json, scale_gpu.json and latency.json are
# those of the benchmarks; of --more, scale_gpu_vram.json, scale_gpu_host.json (the machine's processor) and
# scale_gpu_large.json. Output: build/gpu_check/STEP.log. GPU_CHECK_PYTHON: the Python to use, python3 by default.
# `--list`, last, prints the steps and how many seconds each may take, and does nothing.
set -u
cd "$(dirname "$0")/.."

PYTHON=${GPU_CHECK_PYTHON:-python3}
LOGS=build/gpu_check
SITE=$PWD/build/gpu/site
STEPS=$LOGS/steps.tsv
ENGINE=build/gpu/pse.onnx
MORE=
LIST=
for argument in "$@"; do
    case $argument in
    --more) MORE=1 ;;
    --list) LIST=1 ;;
    *)
        echo "gpu_check.sh: $argument: is neither --more nor --list." >&2
        exit 2
        ;;
    esac
done

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
    "$PYTHON" benchmarks/gpu_report.py "$STEPS" >"$LOGS/report.log" 2>&1
}

install() { # wheels that came in parts are put together first
    for first in build/gpu/wheels/*.part-aa; do
        [ -e "$first" ] && cat "${first%-aa}"-* >"${first%.part-aa}"
    done
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$SITE" build/gpu/wheels/*.whl
}

scale() { # name, most seconds, options: whole runs
    local name=$1 most=$2
    shift 2
    step "$name" "$most" "$PYTHON" benchmarks/bench_scale.py --threads 16 --engine "$ENGINE" "$@"
}

if [ -z "$LIST" ]; then
    mkdir -p "$LOGS"
    [ -n "$MORE" ] || rm -f "$STEPS"
    export PYTHONPATH=$PWD:$SITE PYTHONUNBUFFERED=1
    export -f install
    export PYTHON SITE
    # ONNX Runtime looks for CUDA where the linker does, and not among the packages in which PyTorch has it.
    LIBRARIES=$("$PYTHON" -c 'import glob, sys; print(":".join(f for p in sys.path for f in glob.glob(p + "/nvidia/*/lib")))')
    export LD_LIBRARY_PATH=$LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

if [ -z "$MORE" ]; then
    step install 40 bash -c install
    # Other files may import what is not there.
    mapfile -t TESTS < <(grep -rl --include='*.py' '^\(@\|pytestmark = \)pytest\.mark\.gpu' tests)
    step tests 90 "$PYTHON" -m pytest -q --durations=10 -m gpu "${TESTS[@]:-tests}"
    step gpu 50 "$PYTHON" benchmarks/bench_gpu.py --engine "$ENGINE"
    scale scale 80 --device cuda --memory 16G --faces 100000 --faces 584000
    step latency 30 "$PYTHON" benchmarks/bench_latency.py --engine "$ENGINE" --batches 1,32 --nodes 128,256 --faces 2000 \
        --seconds 0.2 --threads 16
    step memcheck 30 compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" benchmarks/bench_gpu.py --faces 3000 \
        --copy 1048576 --side 256 --folder "$LOGS/memcheck"
    step racecheck 30 compute-sanitizer --tool racecheck --error-exitcode 9 "$PYTHON" benchmarks/bench_gpu.py --faces 3000 \
        --copy 1048576 --side 256 --folder "$LOGS/racecheck"
else
    [ -d "$SITE" ] || step install 40 bash -c install
    scale vram 70 --device cuda --memory 16G --vram 6G --faces 100000 --faces 584000 --name scale_gpu_vram
    scale host 130 --device cpu --memory 16G --faces 100000 --faces 584000 --name scale_gpu_host
    scale large 340 --device cuda --memory 48G --faces 5210000 --name scale_gpu_large
fi

[ -n "$LIST" ] || "$PYTHON" benchmarks/gpu_report.py "$STEPS"
