#!/usr/bin/env bash
# All figures of a machine with a GPU, in order of importance; each result is on the disk as soon as it is there.
#
#   MINUTES=9 DATA=../shared/data PEERS=../peers OUT=results.jsonl bench/gpu.sh first
#   bench/gpu.sh second
#   bench/gpu.sh third
#   bench/gpu.sh fourth
#
# `first`: speed, steps, memory. `second`: the losses, ours and nanoGPT's; with the OUT of the call before it goes on, and
# ONLY=ours,nanochat,hf chooses others. `third`: checkpoints, Shakespeare, speedrun beside nanochat. `fourth`: kernels and
# windows of attention against the default. DATA holds novels.txt.xz, tinyshakespeare.txt and tiktoken/;
# PEERS holds checkouts nanoGPT and nanochat, which are left out where they are missing. OUT may be a folder. No
# network is needed. A part that fails, or that the time does not reach, loses no other's results.
set -u
cd "$(dirname "$0")/.." || exit
part="${1:-first}"
part="${part,,}"
minutes="${MINUTES:-9}"
data="$(realpath "${DATA:-../shared/data}")"
peers="$(realpath -m "${PEERS:-../peers}")"
out="$(realpath -m "${OUT:-bench-results.jsonl}")"
[ -d "$out" ] && out="$out/results.jsonl"
recipe="${RECIPE:-gpt2_124m}"
python="${PYTHON:-python3}"
device="${DEVICE:-cuda}"
batch="global_batch_tokens=${BATCH:-131072}" # a longer step is the same work more often
export TIKTOKEN_CACHE_DIR="${TIKTOKEN_CACHE_DIR:-$data/tiktoken}" PYTHONPATH="$PWD"
export CACHE_PATH="${CACHE_PATH:-${TMPDIR:-/tmp}/bench-cache}" # what one bench compiled, the next one has
end=$((SECONDS + minutes * 60))

with=()
[ -f "$peers/nanoGPT/train.py" ] && with+=(--peer "nanogpt=$peers/nanoGPT")
nanogpt=("${with[@]}")
[ -f "$peers/nanochat/nanochat/gpt.py" ] && with+=(--peer "nanochat=$peers/nanochat")
"$python" -c 'import transformers' 2>/dev/null && with+=(--peer hf)

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
case "$part" in
first)
    bench 6 speed "$recipe" "$batch" "${novels[@]}" "${with[@]}" --steps 40
    bench 2 steps "$recipe" "$batch" "${novels[@]}" "${nanogpt[@]}" --steps 100
    bench 2 memory "$recipe" "${novels[@]}" "${nanogpt[@]}" --micro-batch 64
    ;;
second) bench "$minutes" loss novels "${LOSS_RECIPE:-speedrun}" "${novels[@]}" "${with[@]}" --only "${ONLY:-ours,nanogpt}" ;;
third)
    bench 4 checkpoint "$recipe" "$batch" "${novels[@]}" --repeats 2
    bench 3 loss shakespeare "${characters[@]}" "${nanogpt[@]}"
    bench 2 speed speedrun "$batch" "${novels[@]}" "${with[@]}" --only ours,nanochat --steps 40 --peer-micro-batch 32
    bench 2 speed shakespeare_char global_batch_tokens=16384 micro_batch=64 compile=true "${characters[@]}" "${nanogpt[@]}" --steps 200 --peer-micro-batch 64
    ;;
fourth)
    # speed NAME OVERRIDES ...: the modern network so; the result carries NAME as its recipe.
    speed() { bench 2 speed speedrun "$batch" "${novels[@]}" --only ours --repeats 1 --steps 40 "name=$1" "${@:2}"; }
    speed default
    speed cudnn attention=cudnn
    speed flash attention=flash
    speed window_256 attention_pattern=SSSL window_size=256
    speed context_4096 block_size=4096 micro_batch=16
    speed context_4096_cudnn block_size=4096 micro_batch=16 attention=cudnn
    speed context_4096_window_512 block_size=4096 micro_batch=16 attention_pattern=SSSL window_size=512
    # Whether compiling pays for a run this short (job/compiling.py).
    for compile in false true; do
        bench 1 speed shakespeare_char "${characters[@]}" --only ours --steps 200 "compile=$compile" "name=compile_$compile"
    done
    # Inductor's own searches: minutes of compiling for faster kernels.
    TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1 speed coordinate_descent
    speed window_128_to_256 attention_pattern=SSSL window_size=256 'window_schedule=[[0,128],[20,256]]'
    ;;
*)
    echo "what is '$part'? first, second, third or fourth" >&2
    exit 2
    ;;
esac
