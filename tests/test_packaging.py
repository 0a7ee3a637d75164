"""One wheel with three import packages, pins that agree with what is declared, and set-up files that hold together."""

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import interp

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("interp", "interp_kernels", "interp_explorer")
FOLDERS = {"interp": ROOT / "interp", "interp_kernels": ROOT / "kernels", "interp_explorer": ROOT / "apps"}


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pairs}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    assert Path(wheel.filename).name == f"interp-{interp.__version__}-py3-none-any.whl"
    files = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in files} == set(PACKAGES)
    for folder in ("interp", "kernels/interp_kernels", "apps/interp_explorer"):
        sources = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*.py")}
        package = folder.split("/")[-1]
        assert {f"{package}/{source}" for source in sources} <= set(files)
        assert f"{package}/py.typed" in files


def test_the_wheel_names_its_command_and_its_licence(wheel):
    entries = wheel.read(f"interp-{interp.__version__}.dist-info/entry_points.txt").decode()
    assert "interp = interp.cli:main" in entries
    described = Parser().parsestr(wheel.read(f"interp-{interp.__version__}.dist-info/METADATA").decode())
    assert Version(described["Version"]) == Version(interp.__version__)
    assert described["License-Expression"] == "Apache-2.0"
    assert described.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert set(described.get_all("Provides-Extra")) == {"app", "dev", "docs", "gpu", "notebook"}


def test_the_version_is_said_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", interp.__version__)
    sources = [ROOT / "pyproject.toml", *(path for name in PACKAGES for path in FOLDERS[name].rglob("*.py"))]
    saying = [path for path in sources if f'"{interp.__version__}"' in path.read_text(encoding="utf-8")]
    assert saying == [ROOT / "interp" / "__init__.py"]


def test_every_python_that_is_named_is_tested():
    """The oldest by `.ci/run` itself, the others by `make test-python`."""
    classifier = "Programming Language :: Python :: 3."
    named = {f"3.{c.removeprefix(classifier)}" for c in PROJECT["classifiers"] if c.startswith(classifier)}
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    (oldest,) = [step["with"]["python-version"] for step in jobs["run"]["steps"] if "with" in step]
    assert f">={oldest}" == PROJECT["requires-python"]
    assert {oldest, *jobs["python"]["strategy"]["matrix"]["python"]} == named
    assert {"run": ".ci/run"} in jobs["run"]["steps"]


@pytest.mark.parametrize("name", ["bug", "new_method", "wrong_number"])
def test_issue_forms_are_forms(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "labels", "body"} == set(form)
    assert len({part["id"] for part in form["body"]}) == len(form["body"])
    for part in form["body"]:
        assert part["type"] in ("dropdown", "input", "textarea")
        assert part["attributes"]["label"]
        assert (part["type"] == "dropdown") == ("options" in part["attributes"])
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_no_top_level_package_is_called_kernels_or_apps():
    for name in ("kernels", "apps"):
        assert not (ROOT / name / "__init__.py").exists()
    for name in PACKAGES:
        assert importlib.util.find_spec(name).origin.endswith(f"{name}/__init__.py")


def test_every_dependency_is_pinned_within_its_bounds():
    optional = PROJECT["optional-dependencies"]
    pinned = pins()
    for line in [*PROJECT["dependencies"], *optional["dev"], *optional["docs"], *optional["notebook"]]:
        requirement = Requirement(line)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, line
    assert pinned["torch"] == Version("2.13.0")  # without "+cpu": an index may carry it without the suffix
    assert pinned["torch"].local is None


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11), reason="the pins are those of Python 3.11 on Linux"
)
def test_pins_cover_what_the_pinned_packages_need_here():
    pinned = pins()
    for name in pinned.keys() - {"torch"}:  # a CUDA build of torch needs packages that the CPU build does not
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in pinned, f"{name} needs {line}"


def test_make_and_ci_name_what_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    paths = set(re.findall(r"\btests/[\w/]+(?:\.py)?", makefile))
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    run = (ROOT / ".ci/run").read_text(encoding="utf-8")
    asked = re.findall(r"^ *(?:if )?make ([a-z-]+)", run, re.MULTILINE)
    assert {"lint", "test", "test-slow", "test-min", "test-browser"} <= set(asked) <= targets
    assert asked.index("browser") < asked.index("test"), "the explorer's tests draw pictures with it"


def test_make_lists_its_targets_and_starts_the_explorer():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in (
        "venv",
        "demo",
        "test",
        "test-all",
        "test-min",
        "test-python",
        "lint",
        "docs",
        "bench",
        "bench-data",
        "app",
        "clean",
    ):
        assert f"make {target} " in listed
    # Started from another make, this one would say which directory it enters and leaves.
    dry_run = ["make", "--no-print-directory", "--dry-run", "app"]
    started = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert started.splitlines()[-1].endswith("/interp app")
