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
MAX_GPUS = 8
MAX_A10 = 4
MIN_TIMEOUT_S = 1  # seconds
MAX_TIMEOUT_S = 24 * 60 * 60  # seconds
MAX_RETRIES = 10
MAX_DELAY_MS = 60_000  # milliseconds
MAX_NODES = 32


def check_function(function: api_pb2.Function) -> None:
    """Raise INVALID_ARGUMENT for a function that Modal would not create."""
    check_gpu(function.resources.gpu_config)
    check_timeout(function.timeout_secs)
    policy = function.retry_policy
    if policy.retries > MAX_RETRIES:
        _refuse(f"retries must be between 0 and {MAX_RETRIES}, not {policy.retries}")
    if policy.initial_delay_ms > MAX_DELAY_MS or policy.max_delay_ms > MAX_DELAY_MS:
        _refuse(f"the delay between retries must be at most {MAX_DELAY_MS // 1000} seconds")
    nodes = function._experimental_group_size
    if nodes > MAX_NODES:
        _refuse(f"a cluster has at most {MAX_NODES} containers, not {nodes}")


def check_gpu(gpu: api_pb2.GPUConfig) -> None:
    if not gpu.gpu_type:
        return
    if gpu.gpu_type not in GPU_TYPES:
        _refuse(f"{gpu.gpu_type} is not a valid GPU type")
    most = MAX_A10 if gpu.gpu_type in ("A10", "A10G") else MAX_GPUS
    if not 1 <= gpu.count <= most:
        _refuse(f"GPU count for {gpu.gpu_type} must be between 1 and {most}, not {gpu.count}")


def check_timeout(seconds: int) -> None:
    if seconds and not MIN_TIMEOUT_S <= seconds <= MAX_TIMEOUT_S:
        _refuse(
            f"timeout must be between {MIN_TIMEOUT_S} and {MAX_TIMEOUT_S} seconds, not {seconds}"
        )


def _refuse(message: str) -> None:
    raise GRPCError(Status.INVALID_ARGUMENT, message)
