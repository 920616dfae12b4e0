"""`quadscape submit`: what is refused, what SLURM is asked for, and a controller that is killed again and again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_slurm import FakeSlurm

from quadscape.cli import main
from quadscape.cluster import controller, slurm
from quadscape.cluster.controller import Controller, State, clean_environment, directory_of, read_state
from quadscape.cluster.heads import PLACE, process_record, write_json
from quadscape.cluster.partitions import PARTITIONS_FILE
from quadscape.cluster.submission import Profile, read_profile, submit
from quadscape.errors import ClusterError
from quadscape.stage.lock import present_owner
from tests.checkouts import Checkout

LIMIT = 180.0


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "work"
    (root / "profiles/mine").mkdir(parents=True)
    (root / "Snakefile").touch()
    (root / "profiles/mine/config.yaml").write_text(
        "executor: slurm\ndefault-resources: {slurm_partition: cpu, slurm_account: lab, mem_mb: 500}\n"
    )
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    return root


def wait_until(ready: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Submission


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--profile", "profiles/mine"], ("slurm", "cpu", "lab")),
        (["target", "--profile=profiles/mine/config.yaml", "--cores", "2"], ("slurm", "cpu", "lab")),
        (
            ["--profile", "profiles/mine", "--default-resources", "slurm_partition=big", "mem_mb=3"],
            ("slurm", "big", "lab"),
        ),
        (["--executor", "slurm", "--default-resources", "slurm_partition=big"], ("slurm", "big", "")),
        (["--cores", "2"], ("", "", "")),
    ],
)
def test_profile(root: Path, arguments: list[str], expected: tuple[str, str, str]) -> None:
    found = read_profile(root, arguments)
    assert (found.executor, found.partition, found.account) == expected


def test_profile_with_a_list(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "profiles/mine/config.yaml").write_text("default-resources: ['slurm_partition=\"cpu\"', mem_mb=500]\n")
    monkeypatch.setenv("SNAKEMAKE_PROFILE", "profiles/mine")
    assert read_profile(root, []).partition == "cpu"


SITE = """
partitions:
  gpu: {max_gpu: 4, max_runtime: 20000}
  short: {max_runtime: 60}
  long: {max_runtime: "10:00:00"}
account: lab
qos: normal
"""


def _place_site(root: Path, text: str | None = SITE, *, by_rule: str = "") -> None:
    """A profile that names no partitions, and the site's file."""
    (root / "profiles/mine/config.yaml").write_text(f"executor: slurm\ndefault-resources: {{mem_mb: 500}}\n{by_rule}")
    (root / "profiles/slurm").mkdir(exist_ok=True)
    (root / PARTITIONS_FILE).unlink(missing_ok=True)
    if text is not None:
        (root / PARTITIONS_FILE).write_text(text)


@pytest.mark.parametrize("by_rule", ["", "set-resources: {train: {gpu: 1}}\n", "set-resources: ['train:gpu=1']\n"])
def test_the_controller_goes_where_the_site_has_no_gpus(
    root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str], by_rule: str
) -> None:
    _place_site(root, by_rule=by_rule)
    arguments = ["--profile", "profiles/mine"]
    assert read_profile(root, arguments) == Profile("slurm", "long", "lab", "normal", 600)
    cluster.answer("sbatch", "Submitted batch job 17\n")
    assert main(["submit", "--", *arguments]) == 0
    text = (directory_of(root) / "17_submission.sh").read_text()
    for line in ("--partition=long", "--account=lab", "--qos=normal", "--time=600"):
        assert f"#SBATCH {line}\n" in text
    # What is said goes before; of another partition the limit is not known.
    assert main(["submit", "--partition", "p", "--qos", "q", "--", *arguments]) == 0
    text = (directory_of(root) / "17_submission.sh").read_text()
    for line in ("--partition=p", "--account=lab", "--qos=q", "--time=1440"):
        assert f"#SBATCH {line}\n" in text
    _place_site(root, "partitions: {one: {max_gpu: 2}, two: {max_gpu: 2, max_runtime: 5}}")
    assert read_profile(root, arguments) == Profile("slurm", "one", "", "", None)


def test_without_the_file_nothing_is_submitted(
    root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    _place_site(root, None)
    assert main(["submit", "--", "--profile", "profiles/mine"]) == 1
    assert f"`quadscape partitions > {root / PARTITIONS_FILE}`" in capsys.readouterr().err
    assert cluster.calls("sbatch") == []
    # A profile that gives GPUs itself may leave the rest to SLURM's default partition.
    _place_site(root, None, by_rule="set-resources: {train: {gpu: 1}}\n")
    assert read_profile(root, ["--profile", "profiles/mine"]) == Profile("slurm")


def test_several_profiles(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Snakemake takes them: the later one's keys, and over all those of the workflow's own."""
    for name, text in {
        "first": "executor: slurm\nslurm-qos: a\ndefault-resources: {slurm_partition: x, slurm_account: y}\n",
        "second": "default-resources: {slurm_partition: z}\n",
        "default": "slurm-qos: b\n",
        "other": "executor: local\n",
    }.items():
        (root / "profiles" / name).mkdir()
        (root / "profiles" / name / "config.yaml").write_text(text)
    two = ["--profile", "profiles/first", "--profile", "profiles/second"]
    assert read_profile(root, two) == Profile("slurm", "z", "", "b", None)
    assert read_profile(root, [*two, "--workflow-profile", "none"]) == Profile("slurm", "z", "", "a", None)
    assert read_profile(root, [*two, "--workflow-profile", "other"]).executor == "local"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "--profile", "none"], ["no profile 'none'", "config.yaml"]),
        (["--", "--cores", "2"], ["--profile slurm", "--local"]),
        (["--minutes", "0", "--", "--profile", "profiles/mine"], ["--minutes is 0"]),
        (["--local", "--partition", "gpu", "--", "--cores", "2"], ["--partition", "--local"]),
    ],
)
def test_refused(
    root: Path, cluster: FakeSlurm, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *arguments]) == 1
    message = capsys.readouterr().err
    assert len(message.strip().splitlines()) == 1
    for word in words:
        assert word in message
    assert cluster.calls("sbatch") == []


def test_refused_elsewhere(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(root.parent)
    assert main(["submit", "--", "--profile", "profiles/mine"]) == 1
    assert "no Snakefile" in capsys.readouterr().err
    monkeypatch.chdir(root)
    monkeypatch.setenv("PATH", str(root))
    assert main(["submit", "--", "--profile", "profiles/mine"]) == 1
    assert "`quadscape submit --local`" in capsys.readouterr().err


def test_slurm_job(
    root: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.answer("sbatch", "Submitted batch job 17\n")
    assert main(["submit", "--minutes", "60", "--", "--profile", "profiles/mine", "target"]) == 0
    assert capsys.readouterr().out == "controller: SLURM job 17\nlog: logs/controller/17.log\n"
    ((script,),) = cluster.calls("sbatch")
    assert script.startswith(str(directory_of(root)))
    text = (directory_of(root) / "17_submission.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, flags=re.MULTILINE))
    log = f"{root}/logs/controller/%j.log"
    for option, value in {
        "job-name": "quadscape-controller",
        "requeue": "",
        "open-mode": "append",
        "chdir": str(root),
        "output": log,
        "time": "60",
        "signal": "USR2@120",
        "cpus-per-task": "1",
        "mem": "4GB",
        "partition": "cpu",
        "account": "lab",
    }.items():
        assert options[option] == value, option
    assert f"srun --unbuffered --output {directory_of(root)}" in text
    assert f"--output={log} --open-mode=append" in text
    assert main(["submit", "--partition", "p", "--account", "a", "--", "--profile", "profiles/mine"]) == 0
    text = (directory_of(root) / "17_submission.sh").read_text()
    assert "--partition=p\n" in text
    assert "--account=a\n" in text
    assert "--time=1440\n" in text


def test_quality_of_service_and_what_sbatch_takes_from_the_environment(
    root: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.answer("sbatch", "Submitted batch job 17\n")
    cluster.note_environment("SBATCH_")
    for name in ("QOS", "RESERVATION", "TIMELIMIT", "PARTITION", "OUTPUT"):
        monkeypatch.setenv(f"SBATCH_{name}", "mine")
    assert main(["submit", "--", "--profile", "profiles/mine"]) == 0
    assert "--qos" not in (directory_of(root) / "17_submission.sh").read_text()
    assert main(["submit", "--qos", "long", "--", "--profile", "profiles/mine"]) == 0
    assert "--qos=long\n" in (directory_of(root) / "17_submission.sh").read_text()
    # The profile names a partition, and the time limit is the controller's own: variables would go before them.
    assert cluster.environments() == [{"SBATCH_QOS", "SBATCH_RESERVATION"}, {"SBATCH_RESERVATION"}]


def test_sbatch_refuses(root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.fail("sbatch", "sbatch: error: invalid partition specified: cpu")
    assert main(["submit", "--", "--profile", "profiles/mine"]) == 1
    message = capsys.readouterr().err
    assert message.strip() == (
        "quadscape: The controller could not be submitted: sbatch: error: invalid partition specified: cpu."
    )


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_one_controller_at_a_time(
    root: Path, cluster: FakeSlurm, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.queue(root, f"5 {state} quadscape-controller None (null) 0")
    assert main(["submit", "--", "--profile", "profiles/mine"]) == 1
    assert "A controller is queued or at work in this directory: SLURM job 5" in capsys.readouterr().err
    assert cluster.calls("sbatch") == []


def test_a_local_controller_that_is_starting(root: Path, cluster: FakeSlurm) -> None:
    directory_of(root).mkdir(parents=True)
    write_json(directory_of(root) / "started.json", process_record(directory_of(root), os.getpid()))
    with pytest.raises(ClusterError, match=f"process {os.getpid()} on {socket.gethostname()}"):
        submit(root, ["--cores", "1"], local=True)


def test_silent_slurm(root: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.5)
    cluster.hang()
    with pytest.raises(ClusterError, match="did not answer"):
        submit(root, ["--profile", "profiles/mine"], local=False)


def test_environment() -> None:
    names = ["PATH", "SLURM_CONF", "SLURM_JOB_ID", "SBATCH_TIMELIMIT", "SRUN_X", "SALLOC_X", "SUBMITIT_EXECUTOR"]
    assert set(clean_environment(dict.fromkeys(names, "x"))) == {"PATH", "SLURM_CONF"}


# ---------------------------------------------------------------------------------------------------------------------
# The controller without its process


@pytest.fixture
def keeper(root: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    """A controller in its head's place: what it asks of SLURM can be called by a test."""
    monkeypatch.setattr(controller, "_LOOK_SECONDS", 0.05)
    keeper = Controller(str(root), ["target"], "slurm", True, None)
    keeper._root, keeper._log = root, root / "log"
    keeper._state = State("SLURM job 5", "log", "n1", 0.0, 1, "at work", "starting", 0.0, ())
    keeper._lock = type("Mine", (), {"check": staticmethod(lambda: None)})()
    return keeper


def test_what_can_never_start_is_cancelled(keeper: Controller, root: Path, cluster: FakeSlurm) -> None:
    cluster.queue(
        root,
        "6 PENDING quadscape_ab DependencyNeverSatisfied rule_train_wildcards_a 0",
        "7 PENDING quadscape_ab Priority rule_train_wildcards_b 0",
        "8 RUNNING quadscape_ab None rule_train_wildcards_c 0",
        "9 COMPLETED quadscape_ab None rule_train_wildcards_d 0",
        "5 RUNNING quadscape-controller None (null) 0",
    )
    assert keeper._orphans() == ["6 train a pending", "7 train b pending", "8 train c running"]
    assert cluster.calls("scancel") == [["6"]]


def test_waits_for_orphans_and_for_slurm(
    keeper: Controller, root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = iter(
        [
            lambda: cluster.fail("squeue", "Unable to contact slurm controller"),
            lambda: (cluster.fail("squeue", None), cluster.queue(root, "8 RUNNING quadscape_ab None rule_train 0")),
            lambda: cluster.answer("squeue", "a banner\n"),
            lambda: cluster.queue(root, "8 COMPLETED quadscape_ab None rule_train 0"),
        ]
    )

    def check() -> None:
        state = read_state(root)
        assert state is not None
        seen.append(state.activity)
        next(rounds)()

    seen: list[str] = []
    next(rounds)()
    keeper._lock = type("Mine", (), {"check": staticmethod(check)})()
    keeper._wait_for("orphan", keeper._orphans)
    assert seen[0].startswith("waiting for SLURM: SLURM's squeue failed")
    assert seen[1] == "waiting for 1 orphan"
    assert seen[2].startswith("waiting for SLURM: SLURM's squeue gave a line")
    assert "Waiting for 1 orphan: 8 train running" in capsys.readouterr().out


def test_job_preempted_for_good_is_queued_again(keeper: Controller, root: Path, cluster: FakeSlurm) -> None:
    cluster.queue(root, "6 PREEMPTED quadscape_old None rule_train 0", "7 PREEMPTED quadscape_ab None rule_train 0")
    assert keeper._revive({"quadscape_old"})
    assert cluster.calls("scontrol") == [["requeue", "7"]]
    cluster.fail("scontrol", "Requested operation is presently disabled for job 7")
    assert not keeper._revive({"quadscape_old"})
    cluster.fail("squeue", "Unable to contact slurm controller")
    assert keeper._revive({"quadscape_old"}), "a head is not ended since SLURM is silent"


def test_what_can_never_start_is_cancelled_while_the_head_runs(
    keeper: Controller, root: Path, cluster: FakeSlurm
) -> None:
    cluster.queue(
        root,
        "6 PENDING quadscape_old PartitionTimeLimit rule_train 0",
        "7 PENDING quadscape_ab PartitionTimeLimit rule_train 0",
        "8 PENDING quadscape_ab QOSMaxJobsPerUserLimit rule_train 0",
    )
    assert keeper._revive({"quadscape_old"})
    assert cluster.calls("scancel") == [["7"]]


def test_a_controller_that_holds_the_last_job_of_a_limit_says_so(
    keeper: Controller, root: Path, cluster: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = "7 PENDING quadscape_ab QOSMaxJobsPerUserLimit rule_train 0"
    cluster.queue(root, "5 RUNNING quadscape-controller None - 0", "6 RUNNING quadscape_ab None rule_train 0", waiting)
    keeper._revive(set())
    assert "--local" not in capsys.readouterr().out, "while one runs, the next has its turn"
    cluster.queue(root, "5 RUNNING quadscape-controller None - 0", waiting)
    keeper._revive(set())
    keeper._revive(set())
    said = capsys.readouterr().out
    assert said.count("QOSMaxJobsPerUserLimit") == said.count("--qos") == said.count("--local") == 1
    state = read_state(root)
    assert state is not None
    assert "its jobs wait (QOSMaxJobsPerUserLimit)" in state.activity
    cluster.queue(root, "7 RUNNING quadscape_ab None rule_train 0")
    keeper._revive(set())
    state = read_state(root)
    assert state is not None
    assert state.activity == "head running"


def test_head_that_would_wait_for_ever_is_started_again(
    keeper: Controller, root: Path, cluster: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    monkeypatch.setattr(keeper, "_command", lambda: [sys.executable, "-c", "import time; time.sleep(300)"])
    monkeypatch.setattr(keeper, "_revive", lambda _: False)
    assert keeper._run_head(set()) is None
    assert keeper._head is not None
    assert keeper._head.wait(10) == -signal.SIGKILL
    assert time.monotonic() - began < 30


# ---------------------------------------------------------------------------------------------------------------------
# On this machine, with the workflow itself


class Local:
    """A checkout whose training waits until a file `go` is there."""

    def __init__(self, path: Path) -> None:
        self.checkout = Checkout(path)
        self.path = path
        self.checkout.configure()
        script = path / "workflow_scripts/train.py"
        script.write_text(
            "import os, pathlib, time\npathlib.Path('began').write_text(str(os.getpid()))\n"
            "while not pathlib.Path('go').exists():\n    time.sleep(0.1)\n" + script.read_text()
        )

    def quadscape(self, *arguments: str) -> tuple[int, str]:
        return self.checkout.run(sys.executable, "-m", "quadscape.cli", *arguments, timeout=60)

    def submit(self) -> int:
        """The number that the user is told."""
        arguments = ["--profile", "profiles/local", "--configfile", "tiny.yaml", "--cores", "1"]
        target = "results/tiny/runs/a/trajectory/manifest.json"
        code, text = self.quadscape("submit", "--local", "--", target, *arguments)
        assert code == 0, text
        found = re.match(
            rf"controller: process (\d+) on {socket.gethostname()}\nlog: (logs/controller/.+\.log)\n", text
        )
        assert found is not None, text
        self.log = self.path / found[2]
        return int(found[1])

    def submit_until_training(self) -> tuple[int, int, int]:
        """Numbers of what the user is told, of the controller, and of its head; of `training` too."""
        (self.path / "began").unlink(missing_ok=True)
        told = self.submit()
        wait_until(lambda: (self.path / "began").exists() and (self.path / "began").read_text(), "training began")
        self.training = int((self.path / "began").read_text())
        state = read_state(self.path)
        assert state is not None
        found = re.fullmatch(r"head running \(process (\d+)\)", state.activity)
        assert found is not None
        return told, self.keeper(), int(found[1])

    def keeper(self) -> int:
        """Number of the controller's own process."""
        owner = present_owner(directory_of(self.path))
        assert owner is not None
        return int(owner.record["pid"])

    def phase(self) -> str:
        state = read_state(self.path)
        return "" if state is None else state.phase


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
def test_local_controller_under_kills(tmp_path: Path) -> None:
    here = Local(tmp_path / "checkout")

    told, keeper, head = here.submit_until_training()
    assert os.getsid(told) == os.getsid(keeper) != os.getsid(0), "it would end with this terminal"
    code, text = here.quadscape("status")
    assert code == 3
    assert f"process {told} on {socket.gethostname()}, since" in text
    code, text = here.quadscape("submit", "--local", "--", "--cores", "1")
    assert code == 1
    assert f"queued or at work in this directory: process {told} on" in text

    os.kill(head, signal.SIGKILL)
    wait_until(lambda: not alive(told), "the controller ended")
    assert not alive(here.training), "no second writer beside the next head"
    code, text = here.quadscape("status")
    assert code == 4
    assert "failed: snakemake was killed by SIGKILL" in text
    assert "rule train" in text, "the last lines of the log"

    told, keeper, head = here.submit_until_training()
    os.kill(told, signal.SIGTERM)
    wait_until(lambda: not any(map(alive, (told, keeper, head, here.training))), "SIGTERM ended everything")
    assert here.phase() == "stopped"
    assert here.quadscape("status")[0] == 4

    told = here.submit()
    wait_until(lambda: here.phase() == "at work", "the controller was at work")
    keeper = here.keeper()
    os.kill(told, signal.SIGKILL)
    wait_until(lambda: not alive(keeper), "the controller ended with the process that the user was told")
    assert here.phase() == "stopped"

    told, keeper, head = here.submit_until_training()
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: not alive(head), "the head ended with its controller")
    assert alive(here.training), "nothing is left to sweep: the test shows less than it says"
    assert here.quadscape("status")[0] == 4
    left = here.training
    (here.path / "go").touch()
    os.kill(left, signal.SIGSTOP)
    told = here.submit()
    wait_until(lambda: not alive(told), "the controller finished")
    assert not alive(left)
    assert here.phase() == "finished", here.log.read_text()
    assert "that a killed head had left" in here.log.read_text()
    code, text = here.quadscape("status")
    assert code == 0
    assert re.search(r"trajectory +complete", text)


@pytest.mark.slow
def test_a_locked_directory_says_what_to_do(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    checkout.configure()
    target = "results/tiny/data.zarr/zarr.json"
    command = [sys.executable, "-m", "snakemake", target, "--cores", "1", "--configfile", "tiny.yaml"]

    # What the job makes does not matter here.
    script, text = checkout.path / "workflow_scripts/prepare_data.py", "open(snakemake.output[0], 'w').close()\n"
    script.write_text("import time\ntime.sleep(300)\n" + text)
    child = subprocess.Popen(command, cwd=checkout.path, env=checkout.environment, start_new_session=True)
    record = checkout.path / PLACE / "head.json"
    wait_until(record.exists, "the head had begun")
    code, output = checkout.run(*command)
    assert code == 1
    assert f"Another snakemake (process {child.pid} on {socket.gethostname()}) is at work in this directory" in output
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    script.write_text(text)
    code, output = checkout.run(*command)
    assert code == 1
    assert (
        f"The last snakemake in this directory (process {child.pid} on {socket.gethostname()}) was killed and has left "
        f"its lock, but no jobs; `quadscape submit --local -- {target} --cores 1 --configfile tiny.yaml` unlocks"
    ) in output
    assert "--unlock argument" not in output
    for arguments in (["-n"], ["--nolock", "--rerun-incomplete"]):
        code, output = checkout.run(*command, *arguments)
        assert code == 0, output
        assert "quadscape submit" not in output
    assert json.loads(record.read_text())["state"] == "finished"
