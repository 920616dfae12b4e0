"""Memory that the machine has and the job has not: limits of control groups, SLURM and the shell."""

import resource
from pathlib import Path

import pytest

from quadscape.memory_limits import cgroup_limits, memory_available, memory_total, slurm_limit

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
NO_LIMIT_V1 = 9223372036854771712


def tree(root: Path, group: str, mounts: str, files: dict[str, object]) -> Path:
    for name, content in {"proc/self/cgroup": group, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def smallest(system: Path) -> tuple[int, int]:
    found = cgroup_limits(system)
    return min(limit for limit, _ in found), min(left for _, left in found)


def test_a_limit_of_version_2(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/job"
    files = {f"{top}/memory.max": 420 << 20, f"{top}/memory.high": "max", f"{top}/memory.current": 20 << 20}
    assert smallest(tree(tmp_path, "0::/job", V2, files)) == (420 << 20, 400 << 20)


def test_the_smallest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    files = {f"{top}/a/b/c/memory.max": "max", f"{top}/a/b/memory.max": 900, f"{top}/a/b/memory.current": 100}
    files |= {f"{top}/a/memory.max": 2000, f"{top}/a/memory.high": 700, f"{top}/a/memory.current": 650}
    files |= {f"{top}/a/memory.stat": "anon 50\ninactive_file 600"}
    system = tree(tmp_path, "0::/a/b/c", V2, files)
    assert cgroup_limits(system) == [(900, 800), (700, 650)]


def test_a_limit_of_version_1_and_none(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/memory"
    files = {f"{top}/slurm/job/memory.limit_in_bytes": 5000, f"{top}/slurm/job/memory.usage_in_bytes": 4000}
    files |= {f"{top}/slurm/job/memory.stat": "inactive_file 1\ntotal_inactive_file 500"}
    files |= {f"{top}/slurm/memory.limit_in_bytes": NO_LIMIT_V1, f"{top}/memory.limit_in_bytes": NO_LIMIT_V1}
    system = tree(tmp_path, "4:cpu,memory:/slurm/job\n0::/", V1, files)
    assert cgroup_limits(system) == [(5000, 1500)]


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    mounts = V1.replace("0:32 / ", "0:32 /docker/abc ")
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": 77}
    assert cgroup_limits(tree(tmp_path / "a", "9:memory:/docker/abc", mounts, files)) == [(77, 77)]
    assert cgroup_limits(tree(tmp_path / "b", "0::/", V2, {"sys/fs/cgroup/memory.max": 88})) == [(88, 88)]
    # A group outside what is mounted, as where the namespaces of groups are shared by half.
    assert cgroup_limits(tree(tmp_path / "c", "0::/../../x", V2, {"sys/fs/cgroup/memory.max": 99})) == []


def test_no_control_groups(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path) == []
    assert cgroup_limits(tree(tmp_path, "0::/", "22 1 8:1 / / rw - ext4 /dev/sda rw", {})) == []


@pytest.mark.parametrize(
    ("environment", "megabytes"),
    [
        ({}, None),
        ({"SLURM_MEM_PER_NODE": "4000"}, 4000),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_MEM_PER_NODE": "4G"}, 4096),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "6"}, 3000),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_JOB_CPUS_PER_NODE": "4(x2)"}, 2000),
        ({"SLURM_MEM_PER_CPU": "500"}, 500),
        ({"SLURM_MEM_PER_GPU": "9000", "SLURM_GPUS_ON_NODE": "2"}, 18000),
        ({"SLURM_MEM_PER_GPU": "9000", "SLURM_GPUS_PER_NODE": "h100:2"}, 18000),
        ({"SLURM_MEM_PER_GPU": "9000", "SLURM_JOB_GPUS": "0,3"}, 18000),
        ({"SLURM_MEM_PER_NODE": "UNLIMITED"}, None),
    ],
)
def test_what_slurm_gives(environment: dict[str, str], megabytes: int | None) -> None:
    assert slurm_limit(environment) == (None if megabytes is None else megabytes << 20)


def test_limits_count_for_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "30")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert memory_total() == 60 << 20
    assert memory_available() <= 60 << 20
    monkeypatch.delenv("SLURM_MEM_PER_CPU")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 40, -1) if which == resource.RLIMIT_AS else (-1, -1))
    assert memory_available() < 1 << 40
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 20, -1))
    assert memory_total() == 1 << 20
    assert memory_available() == 0
