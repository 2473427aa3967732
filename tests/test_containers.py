"""The two definitions install and set the same; the scripts are sound; the build command is right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import git

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "containers"


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) of each step, continued lines joined."""
    text = (HERE / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [x for x in text.splitlines() if x.strip() and not x.startswith("#")]
    return [tuple(x.split(None, 1)) for x in lines]


def definition() -> dict[str, str]:
    """The header and the sections of study.def."""
    text = (HERE / "study.def").read_text(encoding="utf-8")
    parts = re.split(r"^%(\w+)\s*$", text, flags=re.M)
    return {"header": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def steps(kind: str) -> list[str]:
    return [rest for name, rest in dockerfile() if name == kind]


def test_both_start_from_the_same_base():
    base = dict(a.split("=", 1) for a in steps("ARG"))["BASE"]
    assert steps("FROM") == ["${BASE}"]
    header = dict(re.findall(r"^(\w+):\s*(\S+)", definition()["header"], re.M))
    assert header["Bootstrap"] == "docker"
    assert base == f"docker.io/library/{header['From']}"


def test_both_copy_the_same_files_and_run_the_same_script():
    (copied,) = steps("COPY")
    *sources, target = copied.split()
    pairs = [line.split() for line in definition()["files"].strip().splitlines()]
    assert sorted(sources) == sorted(source for source, _ in pairs)
    assert all(to == target + Path(source).name for source, to in pairs)
    assert all((ROOT / source).is_file() for source in sources)
    run = definition()["post"].strip()
    assert run in steps("RUN")


def test_both_take_their_environment_from_one_file():
    entry = (HERE / "entrypoint.sh").read_text()
    assert ". /opt/study/environment.sh" in entry
    assert definition()["environment"].strip() == ". /opt/study/environment.sh"
    assert "/opt/study/entrypoint.sh" in steps("ENTRYPOINT")[0]
    assert "/opt/study/entrypoint.sh" in definition()["runscript"]
    for name, value in (e.split("=") for e in steps("ENV")):
        assert f"export {name}={value}" in (HERE / "environment.sh").read_text()


def test_both_do_the_same_without_a_command_and_carry_the_same_labels():
    words = re.findall(r'"([^"]+)"', steps("CMD")[0])
    assert "set -- " + " ".join(words) in definition()["runscript"]
    mine = dict(re.findall(r'(org\S+)="([^"]+)"', steps("LABEL")[0]))
    theirs = dict(line.strip().split(None, 1) for line in definition()["labels"].strip().splitlines())
    assert mine == theirs


def test_the_image_is_not_roots_and_trains_nothing_by_itself():
    assert steps("USER") == ["study"]
    assert not steps("HEALTHCHECK")  # it would disturb the runs beside it


def test_every_requirement_file_is_installed_with_its_constraints():
    script = (HERE / "install.sh").read_text()
    assert "-r requirements.txt -c constraints.txt" in script
    assert "--no-deps -r requirements-nodeps.txt" in script


def test_every_package_has_one_version():
    """A pip install takes its versions from constraints.txt, or its file names them."""
    constraints = (ROOT / "constraints.txt").read_text()
    script = (HERE / "install.sh").read_text()
    for line in re.findall(r"pip install (.*)", script):
        if "-c constraints.txt" not in line:
            (file,) = re.findall(r"-r (\S+)", line)
            packages = re.findall(r"^[^#\s].*", (ROOT / file).read_text(), re.M)
            assert packages
            assert all("==" in package for package in packages), file
    for name in re.findall(r"--no-cache-dir (\w+) -c", script):  # named in the script itself
        assert f"\n{name}==" in constraints
    assert "pip list --format=freeze >/opt/study/packages.txt" in script


def test_the_image_that_was_built_has_the_tested_versions():
    """containers/packages.txt is /opt/study/packages.txt of the last image."""
    built, tested = (
        {n.lower().replace("_", "-"): v for n, v in re.findall(r"^([\w.-]+)==(\S+)", text, re.M)}
        for text in (f.read_text() for f in (HERE / "packages.txt", ROOT / "constraints.txt"))
    )
    assert {"torch", "pesq", "jupyterlab"} <= set(built)
    assert {n for n, v in built.items() if tested.get(n) != v} == {"pip", "setuptools", "resemblyzer"}


def test_no_secret_reaches_a_layer_and_no_server_is_open():
    """Only files on a list are copied; no step names a secret; each JupyterLab keeps its token and localhost."""
    built = "".join(
        (HERE / n).read_text() for n in ("Dockerfile", "study.def", "install.sh", "environment.sh")
    )
    assert not re.search(r"(?i)(token|password|passwd|secret|api_?key)\b\s*[=:]", built)
    pages = [ROOT / "Makefile", *HERE.rglob("*.*"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        assert not re.search(r"(token|password)=(''|\"\"|\s|$)", text), page.name
        for line in (x for x in text.splitlines() if "jupyter lab" in x and "--ip" in x):
            assert "--ip 127.0.0.1" in line or "-p 127.0.0.1:" in line, line


def test_each_run_in_the_guide_mounts_the_repository_and_writes_as_you():
    text = (HERE / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^(?:docker|podman) run .*", text, re.M)
    assert len(commands) >= 5
    for command in commands:
        assert '-v "$PWD":/study' in command
        assert "--user $(id -u):$(id -g)" in command
        assert ("--userns=keep-id" in command) == command.startswith("podman")


def test_only_what_the_build_needs_reaches_the_engine():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    allowed = {x[1:] for x in lines if x.startswith("!")}
    assert "*" in lines
    (copied,) = steps("COPY")
    assert allowed == set(copied.split()[:-1])


@pytest.mark.parametrize("script", sorted(HERE.rglob("*.s*")), ids=lambda p: p.name)
def test_scripts_parse(script):
    if script.suffix not in (".sh", ".sbatch"):
        pytest.skip("not a shell script")
    shell = "bash" if script.suffix == ".sbatch" else "sh"
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def environment(tmp_path, **given):
    """What environment.sh leaves, started from an environment of these variables alone."""
    done = subprocess.run(
        ["sh", "-c", f". {HERE / 'environment.sh'} && env"],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(x.split("=", 1) for x in done.stdout.splitlines() if "=" in x)


def test_the_environment_needs_no_home(tmp_path):
    found = environment(tmp_path, STUDY_CACHE=str(tmp_path / "c"), HOME="/nonexistent")
    assert found["PYTHONNOUSERSITE"] == "1"
    for name in ("HF_HOME", "TORCH_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR",
                 "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):  # fmt: skip
        assert found[name].startswith(str(tmp_path / "c"))
    assert (tmp_path / "c").is_dir()
    assert found["HOME"] == str(tmp_path / "c")  # an account without a home, or none at all
    assert found["USER"]
    assert "HF_HUB_OFFLINE" not in found


def test_compute_nodes_ask_no_hub_and_own_wishes_stand(tmp_path):
    mine = {"STUDY_CACHE": str(tmp_path), "SLURM_JOB_ID": "7", "HF_HOME": "/mine"}
    found = environment(tmp_path, **mine)
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["HF_HOME"] == "/mine"
    assert environment(tmp_path, **mine, HF_HUB_OFFLINE="0")["HF_HUB_OFFLINE"] == "0"


def test_the_entry_point_runs_its_command_within_that_environment(tmp_path):
    script = (HERE / "entrypoint.sh").read_text().replace("/opt/study", str(HERE))
    (tmp_path / "entry.sh").write_text(script)
    done = subprocess.run(
        ["sh", str(tmp_path / "entry.sh"), "sh", "-c", "echo $1 $PYTHONNOUSERSITE", "-", "a b"],
        env={"PATH": os.environ["PATH"], "STUDY_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "a b 1\n"


def build_command(target: str = "container", **variables: str) -> str:
    """What `make container`, or another target, would run."""
    wish = [f"{k}={v}" for k, v in variables.items()]
    done = subprocess.run(["make", "-n", target, *wish], cwd=ROOT, capture_output=True, text=True)
    return " ".join(done.stdout.split())


def test_build_commands():
    docker = build_command(ENGINE="docker")
    assert "docker build -f containers/Dockerfile -t study:latest ." in docker
    buildah = build_command(ENGINE="buildah", BASE="local/base", BUILD="--isolation=chroot")
    assert "buildah bud --build-arg BASE=local/base" in buildah
    assert "-t study:latest --isolation=chroot ." in buildah
    assert "apptainer build study.sif containers/study.def" in build_command(ENGINE="apptainer")


@pytest.mark.parametrize("target", ["container", "container-days"])
def test_no_engine_says_what_to_do(target):
    done = subprocess.run(["make", target, "ENGINE="], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "module load apptainer" in done.stdout


def test_days_in_the_container_are_called_and_measured(tmp_path, monkeypatch):
    """`make container-days` with a stand-in for the engine, whose days take 300 MB; a failed day has no row."""
    from tools import inside, readme_tables, results
    from utils import days
    from utils.logger import read_table

    called = build_command("container-days", ENGINE="apptainer", DAYS="1 2", IMAGE="a.sif", RUN="--nv")
    assert f"apptainer exec --bind {ROOT} --pwd {ROOT} --nv a.sif" in called
    assert "python -m tools inside --days 1 2 --engine" in called
    assert f"-v {ROOT}:/study" in build_command("container-days", ENGINE="docker")

    monkeypatch.setattr(days, "ROOT", tmp_path)
    assert results.container_line(3).startswith("Not run")
    day = tmp_path / "day.sh"
    day.write_text(f"#!/bin/sh\n{sys.executable} -c 'x = bytearray(300_000_000)'\n[ $5 != 4 ]\n")
    day.chmod(0o755)
    monkeypatch.setattr(inside.sys, "executable", str(day))
    assert inside.inside([3, 4], "apptainer 1.4.5") == 1
    assert inside.inside([3], "podman 5.0") == 0
    (row,) = read_table(tmp_path / inside.TABLE)
    assert (row["run"], row["engine"]) == ("Day03_MNIST_CNN", "podman 5.0")
    assert 300 < int(row["peak_mb"]) < 10_000
    assert float(row["seconds"]) < 60
    assert "GB of memory (podman 5.0, threads: " in results.container_line(3)
    assert results.container_line(4).startswith("Not run")
    assert "| Day03_MNIST_CNN |" in readme_tables.container_days()


@pytest.mark.skipif(
    not any(shutil.which(e) for e in ("podman", "buildah", "docker")),
    reason="no container engine on this machine",
)
def test_an_engine_that_is_here_reads_the_dockerfile(tmp_path):
    """The build begins, finds its base missing (no registry, no such image), and says so."""
    engine = next(e for e in ("buildah", "podman", "docker") if shutil.which(e))
    if subprocess.run([engine, "info"], capture_output=True).returncode:
        pytest.skip(f"{engine} is installed but does not run here")
    command = ["make", "container", f"ENGINE={engine}", "BASE=localhost/no-such-base:0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "no-such-base" in done.stdout + done.stderr


def test_a_killed_day_goes_on(tmp_path, monkeypatch):
    """`run --resume`: a finished run is loaded, not trained again, and the states are gone at the end."""
    import torch

    from tools.run import execute_resuming
    from utils import days
    from utils.data import Batches, Split
    from utils.logger import RunLogger
    from utils.training import fit

    monkeypatch.setenv("STUDY_RUNS", str(tmp_path))
    seen = []

    def day_of_two_runs(day, profile):
        log = RunLogger(2, "quick", "sample-x", torch.device("cpu"), ("lr", "accuracy"))
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        part = Split(x, (x[:, 0] > 0).long())
        for lr in (0.1, 0.2):
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 2)
            with log.run(lr=lr) as run:
                optimizer = torch.optim.SGD(model.parameters(), lr)
                started = run.checkpoint.exists()
                fit(model, Batches(part, 16), optimizer, epochs=2, run=run, bar=False)
            seen.append((lr, started, model.weight.detach().clone()))
            if len(seen) == 1:
                return outcome("FAILED")  # killed between the two
        return outcome("ok")

    def outcome(status):
        from tools.run import Outcome

        return Outcome(days.get(2), status, "", 0.0, tmp_path)

    monkeypatch.setattr("tools.run.execute", day_of_two_runs)
    assert execute_resuming(days.get(2), "quick").status == "FAILED"
    assert list(tmp_path.rglob("checkpoint.pt"))
    assert execute_resuming(days.get(2), "quick").status == "ok"
    assert [(lr, started) for lr, started, _ in seen] == [(0.1, False), (0.1, True), (0.2, False)]
    assert torch.equal(seen[0][2], seen[1][2])
    assert not list(tmp_path.rglob("checkpoint.pt"))
    assert "STUDY_RESUME" not in os.environ


def test_only_a_change_of_the_days_code_deletes_its_finished_states(repository, tmp_path, monkeypatch):
    from tools import run
    from utils import days

    monkeypatch.setenv("STUDY_RUNS", str(tmp_path / "runs"))
    day = days.get(8)
    state = days.runs("study", day.name, "abc", "checkpoint.pt")
    failed = run.Outcome(day, "FAILED", "none", 0.0, day.notebook)
    monkeypatch.setattr(run, "execute", lambda day, profile: failed)

    def is_kept_after(file, text):
        (repository / file).write_text(text)
        git(repository, "commit", "-qam", file)
        run.execute_resuming(day, "study")
        return state.exists()

    run.execute_resuming(day, "study")
    state.parent.mkdir()
    state.write_text("a finished run")
    assert is_kept_after("README.md", "More.")
    assert is_kept_after("Day02_Training_Loop/notes.md", "More.")
    assert is_kept_after("utils/c.py", "c = 2")
    assert not is_kept_after("utils/b.py", "b = 2")
