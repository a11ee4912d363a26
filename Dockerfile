FROM python:3.11-slim-bookworm

# The environment and nothing else. The code is mounted at /workspace, so that an edit never rebuilds.
# Modal's builder takes this file too, which rules out ARG before FROM, stages, and USER; docs/container.md
# has the whole list.

# g++ and gcc: torch.compile builds its CPU kernels with the one and Triton's launchers with the other.
# git: a run's record names the commit. libibverbs1: NCCL's way to RDMA between nodes. procps: ps and top in the shell.
# The folders are open to every user: the uid that a job runs as is known only when it starts.
# Debian's packages are not pinned: bookworm is frozen but for security fixes, and those we want.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ gcc git libibverbs1 procps \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /workspace \
    && install -d -m 1777 /vol/data /vol/checkpoints /vol/cache /home/runner

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

# A layer of its own, before all else that pip installs: with CUDA it has 5 GB, and no other pin renews it.
RUN pip install torch==2.13.0

# Everything else, torch's own dependencies too, at the versions and hashes of the lock.
COPY requirements.lock /opt/gpt-runner/requirements.lock
RUN pip install --require-hashes -r /opt/gpt-runner/requirements.lock

# Where jobs, torch, Triton, CUDA, tiktoken and Hugging Face find the volumes: job/paths.py.
# (hadolint takes the TOKEN in tiktoken's folder for a secret.)
# hadolint ignore=DL3064
ENV DATA_PATH=/vol/data \
    CHECKPOINTS_PATH=/vol/checkpoints \
    CACHE_PATH=/vol/cache \
    TORCHINDUCTOR_CACHE_DIR=/vol/cache/inductor \
    TRITON_CACHE_DIR=/vol/cache/triton \
    CUDA_CACHE_PATH=/vol/cache/cuda \
    TIKTOKEN_CACHE_DIR=/vol/cache/tiktoken \
    HF_HOME=/vol/cache/huggingface

# What NVIDIA's container toolkit reads: all GPUs that the container is given, for CUDA and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A uid that /etc/passwd does not know still has a home it can write to and a name: getpass reads LOGNAME.
# /workspace is read-only, so Python leaves no bytecode there.
ENV HOME=/home/runner \
    LOGNAME=runner \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/workspace \
    PYTHONUNBUFFERED=1

WORKDIR /workspace
