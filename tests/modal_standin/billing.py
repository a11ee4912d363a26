"""The workspace's bill: each container's seconds at the rates of Modal's price list."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from .apps import Apps
from .containers import Containers
from .rpc import Caller

# Dollars an hour: a GPU, a physical core, a GiB of memory (modal.com/pricing).
GPU_RATES = {"T4": 0.59, "L4": 0.80, "A10": 1.10, "H100": 3.95}
CORE_RATE, GIB_RATE = 0.0000131 * 3600, 0.00000222 * 3600


class Billing:
    """Answers for the bill. Unlike Modal it knows the hour that is not over."""

    def __init__(self, apps: Apps, containers: Containers) -> None:
        self._apps = apps
        self._containers = containers

    async def WorkspaceBillingReport(
        self, request: api_pb2.WorkspaceBillingReportRequest, caller: Caller
    ) -> AsyncIterator[api_pb2.WorkspaceBillingReportItem]:
        start, end = (
            stamp.ToDatetime().timestamp()
            for stamp in (request.start_timestamp, request.end_timestamp)
        )
        for task in self._containers.tasks.values():
            resources = task.function.definition.resources
            gpu = resources.gpu_config
            hourly = gpu.count * GPU_RATES.get(gpu.gpu_type, 0.0)
            hourly += resources.milli_cpu / 1000 * CORE_RATE + resources.memory_mb / 1024 * GIB_RATE
            until = min(task.ended_at or time.time(), end)
            app = self._apps.get(task.function.app_id)
            tags = {key: app.tags[key] for key in request.tag_names if key in app.tags}
            hour = Timestamp(seconds=int(task.started_at) // 3600 * 3600)
            if task.started_at >= start:
                yield api_pb2.WorkspaceBillingReportItem(
                    object_id=app.id,
                    interval=hour,
                    cost=str((until - task.started_at) * hourly / 3600),
                    tags=tags,
                )
