"""What lies around the workflow: odd folders, locales, the user's settings of libraries, disks that cannot do all."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_stage import Toy

from quadscape.cli import main
from quadscape.cluster.snakemake_shell import check_working_directory
from quadscape.errors import ConfigError, StageError
from quadscape.numerics import apply_numerics
from quadscape.planning.experiment_file import parse_experiment
from quadscape.planning.problem import MOST_PARAMETERS, Problem, check_places
from quadscape.stage.run import run_stage
from tests.checkouts import ROOT, Checkout
from tests.experiments import SMALL, TINY


def command(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "quadscape.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
    )


# Settings of libraries

HOSTILE = {
    "ZARR_ARRAY__ORDER": "F",
    "ZARR_ARRAY__WRITE_EMPTY_CHUNKS": "True",
    "ZARR_JSON_INDENT": "0",
    "ZARR_DEFAULT_ZARR_FORMAT": "2",
    "ZARR_CODEC_PIPELINE__BATCH_SIZE": "3",
    "NVIDIA_TF32_OVERRIDE": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":0:0",
    "PYTHONHASHSEED": "7",
    "LC_ALL": "C",
}


def _digests(root: Path) -> dict[str, str]:
    """Digests of everything but times and locks."""
    files = [path for path in root.rglob("*") if path.is_file() and "lock" not in path.parts]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "events.jsonl"
    }


@pytest.mark.slow
def test_settings_of_the_user_change_no_byte(
    made_results: Path, make_apart: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "home/.config/zarr").mkdir(parents=True)
    (tmp_path / "home/.config/zarr/zarr.yaml").write_text("array: {order: F}\njson_indent: 7\n")
    make_apart(tmp_path / "hostile", HOME=str(tmp_path / "home"), **HOSTILE)
    clean = _digests(made_results)
    assert len(clean) > 100
    assert _digests(tmp_path / "hostile") == clean


def test_defaults_that_a_factory_sets_are_put_back() -> None:
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        apply_numerics(1)
        assert torch.zeros(1).dtype == torch.float32
        assert torch.zeros(1).device.type == "cpu"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


# Locales


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_commands_write_in_any_locale(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "results/a/lock").mkdir(parents=True)
    (tmp_path / "results/a/events.jsonl").write_text('{"time": 1, "event": "start", "units": 3, "done": 1}\n')
    (tmp_path / "x.yaml").write_text("näme: 1\n", encoding="utf-8")
    for arguments, codes in ((["status"], {0, 4}), (["reference"], {0}), (["validate", "x.yaml"], {1})):
        done = command(*arguments, cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert done.returncode in codes, done.stderr
        assert b"Traceback" not in done.stderr
    reference = command("reference", PYTHONIOENCODING=encoding).stdout
    assert reference == (ROOT / "docs/configuration.md").read_bytes()


_NOBODY = """
import pwd, sys
def unknown(who):
    raise KeyError(who)
pwd.getpwuid = pwd.getpwnam = unknown
from quadscape.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_user_without_a_name_and_a_home(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**TINY, "data": {"source": "image_folder", "path": "~/none"}}))
    environment = {
        key: value for key, value in os.environ.items() if key not in {"HOME", "USER", "LOGNAME", "USERNAME"}
    }
    for words, expected in ((["status"], 0), (["validate", "x.yaml"], 1), (["submit", "--", "--profile", "none"], 1)):
        done = subprocess.run(
            [sys.executable, "-c", _NOBODY, *words],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr


# Folders


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a b", "it's", '"$HOME`x`&;(', "ünï%cent"])
def test_the_repository_may_lie_in_a_folder_of_any_name(name: str, made_results: Path, tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / name / "checkout")
    checkout.configure(**SMALL)
    shutil.copytree(made_results / "results", checkout.path / "results")
    # An interpreter in it, as `make install` puts it.
    real, packages = Path(sys.executable).resolve(), Path(yaml.__file__).parents[1]
    (checkout.path / ".venv/bin").mkdir(parents=True)
    (checkout.path / ".venv/bin/python").symlink_to(real)
    (checkout.path / ".venv/pyvenv.cfg").write_text(f"home = {real.parent}\ninclude-system-site-packages = false\n")
    library = checkout.path / ".venv/lib" / packages.parent.name
    library.mkdir(parents=True)
    (library / "site-packages").symlink_to(packages)
    code, output = checkout.run(
        *(str(checkout.path / ".venv/bin/python"), "-m", "snakemake", "results/small/figures/spectrum.svg"),
        *("--profile", "profiles/local", "--cores", "1", "--configfile", "tiny.yaml"),
    )
    assert code == 0, output
    assert (checkout.path / "results/small/figures/spectrum.svg").exists()
    jobs = set(re.findall(r"rule (\w+):", output))
    assert jobs == {"draw_figure"}, "the cheapest job is enough"


@pytest.mark.parametrize(
    ("path", "on_slurm", "refused"),
    [
        ("/a b/it's", True, False),
        ("/100%/x", False, False),
        ("/100%/x", True, True),
        ("/a{b}", False, True),
        ("/a}", True, True),
        ("/a\nb", False, True),
        ("/$x", True, True),
        ("/`x`", False, False),
    ],
)
def test_characters_that_cannot_be_escaped_are_refused(path: str, on_slurm: bool, refused: bool) -> None:
    if not refused:
        check_working_directory(Path(path), on_slurm=on_slurm)
        return
    with pytest.raises(ConfigError, match="working directory") as caught:
        check_working_directory(Path(path), on_slurm=on_slurm)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["results", "logs", "results/tiny"])
def test_places_that_are_no_folder_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    check_places(parse_experiment(TINY))
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(ConfigError, match=f"{name} is a link to 'gone', which leads nowhere"):
        check_places(parse_experiment(TINY))
    (tmp_path / name).unlink()
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=f"{name} is a file"):
        check_places(parse_experiment(TINY))


def _foreign(path: str) -> dict[str, Any]:
    return {**TINY, "runs": [{"name": "a", "path": path, "checkpoints": [3]}]}


def test_braces_and_home_in_the_path_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w{seed}_3.pt").write_text("")
    (tmp_path / "w_3.pt").write_text("")
    (tmp_path / "folder.pt").mkdir()
    assert Problem.of(parse_experiment(_foreign("~/w_{iteration}.pt"))).parameters == 235
    for path, words in (
        ("w{seed}_{iteration}.pt", "braces"),
        ("folder.pt", "is a folder"),
        ("~/none.pt", str(tmp_path)),
    ):
        with pytest.raises(ConfigError, match=words):
            Problem.of(parse_experiment(_foreign(path)))


@pytest.mark.slow
def test_snakemake_refuses_keys_given_twice_before_any_job(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    checkout.configure()
    file = checkout.path / "tiny.yaml"
    text = file.read_text()
    file.write_text(text + "name: other\n")
    code, output = checkout.snakemake("-n")
    assert code != 0
    assert "gives the key 'name' twice" in output
    file.write_text(text)
    profile = checkout.path / "profiles/local/config.yaml"
    profile.write_text(profile.read_text() + "nolock: false\n")
    code, output = checkout.snakemake("-n")
    assert code != 0
    assert "gives the key 'nolock' twice" in output


# Sizes that cannot be


def _sized(**model: Any) -> Problem:
    return Problem.of(parse_experiment({**TINY, "model": model}))


def test_networks_too_large_for_a_dense_matrix_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    large = _sized(factory="mlp", hidden=[30000, 30000])
    assert large.parameters == 902_280_010
    with pytest.raises(ConfigError, match=r"902,280,010 parameters.* EB on disk.* of memory.*density"):
        large.check_dense()
    assert main(["validate", _file(tmp_path, {**TINY, "model": {"factory": "mlp", "hidden": [30000, 30000]}})]) == 1
    _sized(factory="mlp", hidden=[3]).check_dense()
    no_checkpoints = parse_experiment({**TINY, "model": {"factory": "mlp", "hidden": [9000]}, "runs": [{"name": "a"}]})
    Problem.of(no_checkpoints).check_dense()


def test_a_matrix_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problem = _sized(factory="mlp", hidden=[300])
    assert problem.parameters < MOST_PARAMETERS
    problem.check_dense()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"total": 10**9, "free": 10**8, "used": 0}))
    with pytest.raises(ConfigError, match="1 GB"):
        problem.check_dense()


def test_a_factory_is_counted_without_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "too_large_factory.py").write_text(
        "from torch import nn\n"
        "def huge(shape, classes):\n"
        "    layers = nn.Linear(64, 10**6), nn.Linear(10**6, 10**6), nn.Linear(10**6, classes)\n"
        "    return nn.Sequential(nn.Flatten(), *layers)\n"
        "def odd(shape, classes):\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
        "    float(model[1].weight.sum())\n"
        "    return model\n"
    )
    assert _sized(factory="too_large_factory:odd").parameters == 650
    with pytest.raises(ConfigError, match="parameters these take"):
        _sized(factory="too_large_factory:huge").check_dense()
    with pytest.raises(ConfigError, match="smaller sizes"):
        _sized(factory="mlp", hidden=[10**17, 10**4])


def _file(tmp_path: Path, content: dict[str, Any]) -> str:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "x.yaml")


# Disks


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
def test_a_file_system_that_cannot_sync_folders_is_good_enough(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert run_stage(Toy(), tmp_path / "toy", log=lambda _: None)["units"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_files_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StageError, match="cannot make sure that it is stored") as caught:
        run_stage(Toy(), tmp_path / "toy", log=lambda _: None)
    assert str(tmp_path / "toy") in str(caught.value)


def test_a_stage_whose_place_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "toy").write_text("")
    with pytest.raises(StageError, match="cannot be used"):
        run_stage(Toy(), tmp_path / "toy", log=lambda _: None)
    with pytest.raises(StageError, match="cannot be used"):
        run_stage(Toy(), tmp_path / "toy" / "below", log=lambda _: None)
