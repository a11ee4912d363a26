#!/usr/bin/env bash
# Measure everything on a machine with a GPU and no network. Each result is written at once.
#
#   bench/gpu.sh carry         # on a machine with a network: collect texts and packages in .carry/
#   bench/gpu.sh check first   # on the GPU: half a minute of checks, then the most important part
#   bench/gpu.sh second        # also third, fourth
#
# `carry` copies the texts and tiktoken's files from DATA, nanoGPT and nanochat from BASELINES, and
# downloads packages that a machine with torch and transformers may lack: pydantic, pydantic_core
# (the version that pydantic names), annotated-types, typing-inspection and plotext<6, for the
# Python that PYTHON_VERSION names (3.12). All parts read .carry/ if it exists. git ignores it: copy
# it separately if you clone the checkout.
#
# check   exits if something is missing or does not run
# first   kernels (where the time goes), speed (ours first), memory, steps
# second  losses on novels, ours and nanoGPT's; ONLY=ours,nanochat,hf chooses others; with the OUT
#         of an earlier call it continues
# third   Shakespeare, checkpoints, ours next to nanochat
# fourth  attention kernels, windows and compilation against the default
#
# MINUTES (9) limits a call; the minutes of each bench are estimates for an H200 with an empty
# cache. If a part fails or is skipped, the others still run. ALLOW_MISSING=1 continues without
# texts or baselines. OUT (bench-results.jsonl) may be a folder. DEVICE=cpu TINY=1 is a dry run.
set -u
cd "$(dirname "$0")/.." || exit
carried=.carry
python="${PYTHON:-python3}"
default_data=../shared/data default_baselines=../baselines
if [ -d "$carried" ] && [ "${1:-}" != carry ]; then
    default_data=$carried/data default_baselines=$carried/baselines
    # Built for one version of Python: only for a machine that lacks them.
    "$python" -c 'import pydantic, plotext' 2>/dev/null ||
        PYTHONPATH="$PWD/$carried/packages${PYTHONPATH:+:$PYTHONPATH}"
fi
data="$(realpath -m "${DATA:-$default_data}")"
baselines="$(realpath -m "${BASELINES:-$default_baselines}")"

if [ "${1:-}" = carry ]; then
    set -e
    mkdir -p "$carried/data" "$carried/baselines"
    cp -r "$data/novels.txt.xz" "$data/tinyshakespeare.txt" "$data/tiktoken" "$carried/data/"
    for name in nanoGPT nanochat; do
        # The code alone: no data, no history.
        (cd "$baselines" && find "$name" -name '*.py' -not -path '*/.*' -print0) |
            tar -cf - -C "$baselines" --null -T - | tar -xf - -C "$carried/baselines"
    done
    rm -rf "$carried/packages"
    "$python" -m pip install --quiet --target "$carried/packages" --only-binary=:all: \
        --python-version "${PYTHON_VERSION:-3.12}" pydantic 'plotext<6'
    du -sh "$carried"
    exit
fi

minutes="${MINUTES:-9}"
out="$(realpath -m "${OUT:-bench-results.jsonl}")"
[ -d "$out" ] && out="$out/results.jsonl"
recipe="${RECIPE:-gpt2_124m}"
device="${DEVICE:-cuda}"
batch="global_batch_tokens=${BATCH:-131072}" # a larger batch repeats the same work
export TIKTOKEN_CACHE_DIR="${TIKTOKEN_CACHE_DIR:-$data/tiktoken}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export CACHE_PATH="${CACHE_PATH:-${TMPDIR:-/tmp}/bench-cache}" # compiled code
end=$((SECONDS + minutes * 60))
tiny=() micro_batch=64 window=256
if [ -n "${TINY:-}" ]; then
    # max_steps: more than any bench takes.
    tiny=(n_layer=2 n_head=2 n_embd=64 block_size=64 global_batch_tokens=512 micro_batch=4
        loss_chunk=128 compile=false decay_steps=null max_steps=300 warmup_steps=2)
    micro_batch=4 window=32
fi

for file in "$data/novels.txt.xz" "$data/tinyshakespeare.txt" \
    "$baselines/nanoGPT/train.py" "$baselines/nanochat/nanochat/gpt.py"; do
    [ -f "$file" ] && continue
    echo "error: $file is missing; run: bench/gpu.sh carry, or set DATA and BASELINES" >&2
    [ -n "${ALLOW_MISSING:-}" ] || exit 2
done
all=()
[ -f "$baselines/nanoGPT/train.py" ] && all+=(--baseline "nanogpt=$baselines/nanoGPT")
nanogpt=("${all[@]}")
[ -f "$baselines/nanochat/nanochat/gpt.py" ] && all+=(--baseline "nanochat=$baselines/nanochat")
has_transformers='import importlib.util as u, sys; sys.exit(not u.find_spec("transformers"))'
"$python" -c "$has_transformers" && all+=(--baseline hf)

# bench MINUTES ARGS ...: run a bench for at most MINUTES, or the remaining time if that is less.
bench() {
    local left=$((end - SECONDS)) most=$(($1 * 60))
    shift
    [ "$left" -lt "$most" ] && most=$left
    if [ "$most" -lt 25 ]; then
        echo "skipped, no time left: bench $*" >&2
        return
    fi
    echo "== bench $* ($most s)" >&2
    timeout -k 10 $((most + 15)) "$python" -m bench "$@" "${tiny[@]}" --device "$device" \
        --out "$out" --json --minutes "$(awk "BEGIN { print $most / 60 }")" ||
        echo "exit status $?: bench $*" >&2
}

novels=(--text "$data/novels.txt.xz")
characters=(--text "$data/tinyshakespeare.txt")
[ -n "${TINY:-}" ] && novels=("${characters[@]}" data.tokenizer=chars)

run_part() {
    case "$1" in
    check)
        versions='import torch; print(torch.__version__, torch.backends.cudnn.version())'
        "$python" -c "$versions" || exit 2
        # The shortest complete run: prepare, compile, save, sample.
        volumes=$(mktemp -d)
        DATA_PATH="$volumes/data" CHECKPOINTS_PATH="$volumes/runs" "$python" -m model.train \
            shakespeare_char --name check --device "$device" \
            "data.source=$data/tinyshakespeare.txt" n_layer=2 max_steps=20 warmup_steps=2 \
            decay_steps=null eval_every=10 eval_tokens=8192 compile=true loss_chunk=2048 \
            sample.max_new_tokens=20 || exit 2
        rm -rf "$volumes"
        ;;
    first)
        bench 1 kernels "$recipe" "${novels[@]}" "${nanogpt[@]}"
        bench 6 speed "$recipe" "$batch" "${novels[@]}" "${nanogpt[@]}" --steps 40
        bench 2 memory "$recipe" "${novels[@]}" "${nanogpt[@]}" --micro-batch "$micro_batch"
        bench 2 steps "$recipe" "$batch" "${novels[@]}" "${nanogpt[@]}" --steps 100
        ;;
    second)
        bench "$minutes" loss novels "${LOSS_RECIPE:-speedrun}" "${novels[@]}" "${all[@]}" \
            --only "${ONLY:-ours,nanogpt}"
        ;;
    third)
        bench 3 loss shakespeare "${characters[@]}" "${nanogpt[@]}"
        bench 4 checkpoint "$recipe" "$batch" "${novels[@]}" --checkpoints 2 --repeats 1
        for ours in "$recipe" speedrun; do
            bench 3 speed "$ours" "$batch" "${novels[@]}" "${all[@]}" --only ours,nanochat \
                --steps 30 --baseline-micro-batch 64
        done
        ;;
    fourth)
        # speed NAME OVERRIDES ...: the modern network with overrides; NAME is its recipe's name.
        speed() {
            bench 2 speed speedrun "$batch" "${novels[@]}" --only ours --repeats 1 --steps 30 \
                "name=$1" "${@:2}"
        }
        speed default
        # On Hopper torch prefers cuDNN; a CPU has no such choice.
        [ "$device" = cuda ] && speed flash attention=flash
        speed "window_$window" attention_pattern=SSSL "window_size=$window"
        # Does compiling pay for a run this short? See should_compile() in job/.
        for compile in false true; do
            bench 1 speed shakespeare_char "${characters[@]}" --only ours --steps 200 \
                "compile=$compile" "name=compile_$compile"
        done
        speed context_4096 block_size=4096 micro_batch=16
        speed "context_4096_window_$((2 * window))" block_size=4096 micro_batch=16 \
            attention_pattern=SSSL "window_size=$((2 * window))"
        # Inductor's own searches: minutes of compilation for faster kernels.
        TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1 speed coordinate_descent
        TORCHINDUCTOR_MAX_AUTOTUNE_GEMM=1 speed max_autotune_gemm
        speed "window_$((window / 2))_to_$window" attention_pattern=SSSL "window_size=$window" \
            "window_schedule=[[0,$((window / 2))],[20,$window]]"
        ;;
    *)
        echo "error: unknown part '$1'; expected carry, check, first, second, third or fourth" >&2
        exit 2
        ;;
    esac
}

for part in "${@:-first}"; do
    run_part "${part,,}"
done
