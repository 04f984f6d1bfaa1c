"""In which order the tests run, and which of them on the same process."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

#: Modules that take longest, by what they do most: wait for time to pass, or compute. They begin
#: first, one of each in turn, so that the processors are busy and no long one is left for the end.
#: One that is missing here costs nothing but time.
WAITING = [
    "acceptance/test_faults",
    "acceptance/test_redis_failover",
    "acceptance/test_postgresql_failover",
    "acceptance/test_outages",
    "acceptance/test_hosts",
    "acceptance/test_rolling_upgrade",
    "acceptance/test_migrating",
    "acceptance/test_kills",
    "acceptance/browser/test_following",
    "acceptance/test_description",
    "acceptance/test_clients",
    "acceptance/test_storm",
    "acceptance/test_batches",
    "acceptance/test_examples",
]
COMPUTING = [
    "integration/test_adapter_kinds",
    "acceptance/test_up",
    "unit/engine/cuda/test_kernels",
    "integration/test_gpu_check",
    "integration/test_bench",
    "acceptance/browser/test_appearance",
    "acceptance/browser/test_asking",
    "integration/test_cuda_graphs",
    "integration/test_batching",
    "integration/test_log_tampering",
    "integration/test_log",
    "integration/batch_api/test_runner",
    "integration/test_evaluation",
    "integration/test_demo",
    "integration/test_history",
    "acceptance/test_demo",
    "acceptance/test_full_disk",
    "acceptance/test_redis_rights",
    "acceptance/test_starts",
]


def unit_of(nodeid: str) -> str:
    """Return what a test shares a process with: the tests of its module on the same database."""
    module = nodeid.split("::")[0].removeprefix("tests/").removesuffix(".py")
    database = re.search(r"[\[-](sqlite|postgresql)[\]-]", nodeid)
    return f"{module} {database[1]}" if database else module


def rank_of(unit: str) -> tuple[int, int]:
    """Return a unit's place in the order: the waiting ones and the computing ones take turns."""
    module = unit.split()[0]
    for turn, modules in enumerate((WAITING, COMPUTING)):
        if module in modules:
            return modules.index(module), turn
    return max(len(WAITING), len(COMPUTING)), 0


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process one unit after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=rank_of), last=False)
        super()._assign_work_unit(node)
