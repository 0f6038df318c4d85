"""One name for rule, script and function; one signature for rule and function; registries that hold."""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from covermap.models import MODELS
from covermap.providers import PROVIDERS
from covermap.step import FOR_SNAKEMAKE, RESOURCES

RULES = {
    name: body
    for path in Path("workflow/rules").glob("*.smk")
    for name, body in re.findall(
        r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL
    )
}
SCRIPTS = {path.stem: path.read_text() for path in Path("workflow/scripts").glob("*.py")}


def keywords(body, section):
    """Names of a rule's inputs, outputs or params."""
    found = re.search(rf"^    {section}:\n(.*?)(?=^    \w|\Z)", body, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^        (\w+)=", found.group(1), re.MULTILINE)) if found else set()


def test_every_rule_has_a_script_and_the_other_way_round():
    assert set(RULES) == set(SCRIPTS)


@pytest.mark.parametrize("name", RULES)
def test_rule_script_and_function_share_name_and_arguments(name):
    lines = SCRIPTS[name].splitlines()
    module = re.fullmatch(rf"from (covermap[\w.]*) import {name}", lines[0]).group(1)
    assert lines[1:] == ["from covermap.step import run", f"run({name}, snakemake)  # noqa: F821"]
    assert f'"../scripts/{name}.py"' in RULES[name]
    expected = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    given = set().union(*(keywords(RULES[name], section) for section in ("input", "output", "params")))
    unused = FOR_SNAKEMAKE - set(expected)
    assert given - unused == set(expected) - {"threads"} - RESOURCES


@pytest.mark.parametrize("name", RULES)
def test_every_rule_logs_and_has_a_version(name):
    assert re.search(r"^    log:", RULES[name], re.MULTILINE)
    assert "version" in keywords(RULES[name], "params")


MEASURED = ["simulate_demo", "process_s1", "sen2cor", "clip_s2", "stack_block", "pack_tiles", "train", "mosaic"]


@pytest.mark.parametrize("name", [*MEASURED, "predict_block"])
def test_heavy_rules_are_measured(name):
    assert re.search(r"^    benchmark:", RULES[name], re.MULTILINE)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_searches_and_fetches(name):
    module = importlib.import_module(PROVIDERS[name])
    delivered = ["item", "settings", "bands", "grid"]
    assert list(inspect.signature(module.search).parameters) == ["query", "settings"]
    assert list(inspect.signature(module.fetch).parameters) == ["item", "product", *delivered[1:]]
    assert list(inspect.signature(module.costs).parameters) == delivered
    assert list(inspect.signature(module.sources).parameters) == ["item"]
    assert list(inspect.signature(module.check_credentials).parameters) == ["settings"]


def test_the_conda_environment_installs_what_pyproject_names():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    environment = yaml.safe_load(Path("envs/covermap.yaml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    names = {re.split(r"[ >=]", entry)[0]: entry.replace(" ", "") for entry in conda}
    renamed = {"torch": "pytorch", "lightning-fabric": "pytorch-lightning"}  # as conda-forge has them
    for requirement in project["dependencies"]:
        name = re.split(r"[>=]", requirement)[0]
        assert names.get(renamed.get(name, name)) == requirement.replace(name, renamed.get(name, name))
    assert names["python"] == "python" + project["requires-python"]


def test_the_environment_with_snap_adds_the_bridge_alone():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    core, bridged = (yaml.safe_load(Path(f"envs/{name}.yaml").read_text()) for name in ("covermap", "snap"))
    *entries, pip, from_pip = bridged["dependencies"]
    assert (entries, pip) == (core["dependencies"], "pip")
    assert from_pip == {"pip": project["optional-dependencies"]["snap"]}


def test_the_environment_for_exports_adds_its_packages_alone():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    core, more = (
        yaml.safe_load(Path(f"envs/{name}.yaml").read_text())["dependencies"] for name in ("covermap", "export")
    )
    assert more[: len(core)] == core
    assert [entry.replace(" ", "") for entry in more[len(core) :]] == project["optional-dependencies"]["export"]


def test_requirements_pin_what_pyproject_names():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lines = [line for line in Path("requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {re.split(r"==", line)[0].lower().replace("_", "-") for line in lines}
    assert all("==" in line for line in lines)
    assert lines[0].startswith("torch==")
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        assert re.split(r"[\[>=]", requirement)[0].lower() in pins


def test_light_modules_stay_light():
    heavy = {"torch", "rasterio", "xarray", "zarr", "geopandas", "sklearn", "scipy", "numba"}
    light = ("__init__", "config", "section", "area_settings", "label_settings", "model_settings", "grid", "legend")
    light += (
        "scenes",
        "selection",
        "errors",
        "orbits",
        "dates",
        "mapbiomas",
        "attribution",
        "clms_key",
        "hubs",
        "models/__init__",
        "models/options",
        "providers/__init__",
    )
    for name in (*light, "sen2cor", "program"):
        for node in ast.parse(Path(f"covermap/{name}.py").read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {found.split(".")[0] for found in names}, name


def test_the_simulator_imports_nothing_from_the_processing():
    for path in Path("covermap/simulator").glob("*.py"):
        for found in re.findall(r"^\s*(?:from|import) (covermap[\w.]*)", path.read_text(), re.MULTILINE):
            assert found.startswith("covermap.simulator"), path


def test_models_are_importable():
    for target in MODELS.values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))
