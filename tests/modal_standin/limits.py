"""Limits of Modal's server for functions, with its own error messages if known."""

from __future__ import annotations

from grpclib import GRPCError, Status
from modal_proto import api_pb2

GPU_TYPES = {
    "ANY",
    "T4",
    "L4",
    "A10",
    "A10G",
    "L40S",
    "A100",
    "A100-40GB",
    "A100-80GB",
    "RTX-PRO-6000",
}
GPU_TYPES |= {"H100", "H100!", "H200", "B200", "B200+", "B300"}
MOST_GPUS = 8
MOST_A10 = 4
SHORTEST_TIMEOUT = 1  # seconds
LONGEST_TIMEOUT = 24 * 60 * 60  # seconds
MOST_RETRIES = 10
LONGEST_DELAY = 60_000  # milliseconds
MOST_NODES = 32


def check_function(function: api_pb2.Function) -> None:
    """Raise INVALID_ARGUMENT for a function that Modal would not create."""
    check_gpu(function.resources.gpu_config)
    check_timeout(function.timeout_secs)
    policy = function.retry_policy
    if policy.retries > MOST_RETRIES:
        _refuse(f"retries must be between 0 and {MOST_RETRIES}, not {policy.retries}")
    if policy.initial_delay_ms > LONGEST_DELAY or policy.max_delay_ms > LONGEST_DELAY:
        _refuse(f"the delay between retries must be at most {LONGEST_DELAY // 1000} seconds")
    nodes = function._experimental_group_size
    if nodes > MOST_NODES:
        _refuse(f"a cluster has at most {MOST_NODES} containers, not {nodes}")


def check_gpu(gpu: api_pb2.GPUConfig) -> None:
    if not gpu.gpu_type:
        return
    if gpu.gpu_type not in GPU_TYPES:
        _refuse(f"{gpu.gpu_type} is not a valid GPU type")
    most = MOST_A10 if gpu.gpu_type in ("A10", "A10G") else MOST_GPUS
    if not 1 <= gpu.count <= most:
        _refuse(f"GPU count for {gpu.gpu_type} must be between 1 and {most}, not {gpu.count}")


def check_timeout(seconds: int) -> None:
    if seconds and not SHORTEST_TIMEOUT <= seconds <= LONGEST_TIMEOUT:
        _refuse(
            f"timeout must be between {SHORTEST_TIMEOUT} and {LONGEST_TIMEOUT} seconds, not {seconds}"
        )


def _refuse(message: str) -> None:
    raise GRPCError(Status.INVALID_ARGUMENT, message)
