FROM python:3.11-slim-bookworm

# The environment without the code, which is mounted at /workspace: an edit never rebuilds the image.
# Modal builds from this file too, which rules out ARG before FROM, stages and USER;
# docs/container.md has the full list.

# g++ builds torch.compile's CPU kernels, gcc Triton's launchers. git: a run records the commit.
# libibverbs1: NCCL over RDMA between nodes. procps: ps and top in the shell.
# The folders are writable by every user, because a job's uid is known only when it starts.
# Debian's packages are not pinned: bookworm changes only by security fixes, and those are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ gcc git libibverbs1 procps \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /workspace \
    && install -d -m 1777 /vol/data /vol/checkpoints /vol/cache /home/runner

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

# torch gets its own first layer: it is 5 GB with CUDA, and no other pin rebuilds it.
RUN pip install torch==2.13.0

# All other packages, including torch's dependencies, at the locked versions and hashes.
COPY requirements.lock /opt/gpt-runner/requirements.lock
RUN pip install --require-hashes -r /opt/gpt-runner/requirements.lock

# Volume paths for jobs, torch, Triton, CUDA, tiktoken and Hugging Face, as in job/paths.py.
# (hadolint mistakes TIKTOKEN for a secret token.)
# hadolint ignore=DL3064
ENV DATA_PATH=/vol/data \
    CHECKPOINTS_PATH=/vol/checkpoints \
    CACHE_PATH=/vol/cache \
    TORCHINDUCTOR_CACHE_DIR=/vol/cache/inductor \
    TRITON_CACHE_DIR=/vol/cache/triton \
    CUDA_CACHE_PATH=/vol/cache/cuda \
    TIKTOKEN_CACHE_DIR=/vol/cache/tiktoken \
    HF_HOME=/vol/cache/huggingface

# tmux keeps a shell whose connection is lost. A layer of its own, after torch, which stays cached.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tmux \
    && rm -rf /var/lib/apt/lists/*

# For NVIDIA's container toolkit: expose the container's GPUs to CUDA and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Give a uid that is missing in /etc/passwd a writable home and a name (getpass reads LOGNAME).
# /workspace is read-only, so Python writes no bytecode.
ENV HOME=/home/runner \
    LOGNAME=runner \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/workspace \
    PYTHONUNBUFFERED=1

WORKDIR /workspace
