#!/usr/bin/env bash
# All figures of a machine with a GPU, in order of importance; each result is on the disk as soon as it is there.
#
#   MINUTES=9 DATA=../shared/data PEERS=../peers OUT=results.jsonl bench/gpu.sh check first
#   bench/gpu.sh second
#   bench/gpu.sh third
#   bench/gpu.sh fourth
#
# `check`: half a minute, ends the call where something is missing or does not run. `first`: speed, memory, steps. `second`: the losses,
# ours and nanoGPT's; with the OUT of the call before it goes on, and ONLY=ours,nanochat,hf chooses others. `third`:
# Shakespeare, checkpoints, beside nanochat. `fourth`: kernels, windows and compilation against the default. DATA holds
# novels.txt.xz, tinyshakespeare.txt and tiktoken/; PEERS holds checkouts nanoGPT and nanochat; what is missing ends the
# call, unless ALLOW_MISSING=1. OUT may be a folder. No network is needed; packages beyond those of the image can lie in a
# folder that PYTHONPATH names. A part that fails, or that the time does not reach, loses no other's results. Minutes as
# reckoned for an H200 with an empty cache.
set -u
cd "$(dirname "$0")/.." || exit
minutes="${MINUTES:-9}"
data="$(realpath "${DATA:-../shared/data}")"
peers="$(realpath -m "${PEERS:-../peers}")"
out="$(realpath -m "${OUT:-bench-results.jsonl}")"
[ -d "$out" ] && out="$out/results.jsonl"
recipe="${RECIPE:-gpt2_124m}"
python="${PYTHON:-python3}"
device="${DEVICE:-cuda}"
batch="global_batch_tokens=${BATCH:-131072}" # a longer step is the same work more often
export TIKTOKEN_CACHE_DIR="${TIKTOKEN_CACHE_DIR:-$data/tiktoken}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export CACHE_PATH="${CACHE_PATH:-${TMPDIR:-/tmp}/bench-cache}" # what one bench compiled, the next one has
end=$((SECONDS + minutes * 60))

for file in "$data/novels.txt.xz" "$data/tinyshakespeare.txt" "$peers/nanoGPT/train.py" "$peers/nanochat/nanochat/gpt.py"; do
    [ -f "$file" ] && continue
    echo "$file is missing" >&2
    [ -n "${ALLOW_MISSING:-}" ] || exit 2
done
with=()
[ -f "$peers/nanoGPT/train.py" ] && with+=(--peer "nanogpt=$peers/nanoGPT")
nanogpt=("${with[@]}")
[ -f "$peers/nanochat/nanochat/gpt.py" ] && with+=(--peer "nanochat=$peers/nanochat")
"$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("transformers") is None)' && with+=(--peer hf)

# bench MOST-MINUTES WORDS ...: no longer than that, and no longer than what is left.
bench() {
    local left=$((end - SECONDS)) most=$(($1 * 60))
    shift
    [ "$left" -lt "$most" ] && most=$left
    if [ "$most" -lt 25 ]; then
        echo "left out, the time is spent: bench $*" >&2
        return
    fi
    echo "== bench $* ($most s)" >&2
    timeout -k 10 $((most + 15)) "$python" -m bench "$@" --device "$device" --out "$out" --json \
        --minutes "$(awk "BEGIN { print $most / 60 }")" || echo "ended with $?: bench $*" >&2
}

novels=(--text "$data/novels.txt.xz")
characters=(--text "$data/tinyshakespeare.txt")
# try PART
try() {
    case "$1" in
    check)
        "$python" -c 'import torch; print("torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())' || exit 2
        # A run as short as can be, whole: prepared, compiled, saved, sampled.
        volumes=$(mktemp -d)
        DATA_PATH="$volumes/data" CHECKPOINTS_PATH="$volumes/runs" "$python" -m model.train shakespeare_char --name check \
            --device "$device" "data.source=$data/tinyshakespeare.txt" n_layer=2 max_steps=20 warmup_steps=2 decay_steps=null \
            eval_every=10 eval_tokens=8192 compile=true loss_chunk=2048 sample.max_new_tokens=20 || exit 2
        rm -rf "$volumes"
        ;;
    first)
        bench 7 speed "$recipe" "$batch" "${novels[@]}" "${nanogpt[@]}" --steps 40
        bench 2 memory "$recipe" "${novels[@]}" "${nanogpt[@]}" --micro-batch 64
        bench 2 steps "$recipe" "$batch" "${novels[@]}" "${nanogpt[@]}" --steps 100
        ;;
    second) bench "$minutes" loss novels "${LOSS_RECIPE:-speedrun}" "${novels[@]}" "${with[@]}" --only "${ONLY:-ours,nanogpt}" ;;
    third)
        bench 3 loss shakespeare "${characters[@]}" "${nanogpt[@]}"
        bench 4 checkpoint "$recipe" "$batch" "${novels[@]}" --checkpoints 2 --repeats 1
        for ours in "$recipe" speedrun; do
            bench 3 speed "$ours" "$batch" "${novels[@]}" "${with[@]}" --only ours,nanochat --steps 30 --peer-micro-batch 32
        done
        ;;
    fourth)
        # speed NAME OVERRIDES ...: the modern network so; the result carries NAME as its recipe.
        speed() { bench 2 speed speedrun "$batch" "${novels[@]}" --only ours --repeats 1 --steps 30 "name=$1" "${@:2}"; }
        speed default
        speed flash attention=flash # torch's own choice on Hopper is cuDNN's
        speed window_256 attention_pattern=SSSL window_size=256
        # Whether compiling pays for a run this short (job/speed.py).
        for compile in false true; do
            bench 1 speed shakespeare_char "${characters[@]}" --only ours --steps 200 "compile=$compile" "name=compile_$compile"
        done
        speed context_4096 block_size=4096 micro_batch=16
        speed context_4096_window_512 block_size=4096 micro_batch=16 attention_pattern=SSSL window_size=512
        # Inductor's own searches: minutes of compiling for faster kernels.
        TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1 speed coordinate_descent
        speed window_128_to_256 attention_pattern=SSSL window_size=256 'window_schedule=[[0,128],[20,256]]'
        ;;
    *)
        echo "what is '$1'? check, first, second, third or fourth" >&2
        exit 2
        ;;
    esac
}

for part in "${@:-first}"; do
    try "${part,,}"
done
