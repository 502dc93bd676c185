"""The README's commands exist and are what CI runs."""

import re
import tomllib
from pathlib import Path

import yaml

README = Path("README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^uv run (.+)$", README, flags=re.MULTILINE)


def test_ci_runs_the_first_two_commands():
    ci = Path(".ci/run").read_text(encoding="utf-8")
    first, second = COMMANDS[:2]
    assert "python -m exp.grokking.train" in first
    assert second.split()[0] == "pytest"
    assert f"uv run {first}" in ci
    assert f"uv run {second}" in ci


def test_the_hosted_ci_runs_the_same_and_the_citation_names_this_version():
    workflow = yaml.safe_load(Path(".github/workflows/ci.yml").read_text(encoding="utf-8"))
    commands = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in commands
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load(Path("CITATION.cff").read_text(encoding="utf-8"))
    assert [citation[key] for key in ("version", "license")] == [
        project[key] for key in ("version", "license")]


def test_it_is_short_and_its_links_lead_somewhere():
    assert README.count("\n") <= 120
    for page in (Path("README.md"), *Path("docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_command_names_a_script_and_a_config_that_are_there():
    scripts = [command.split() for command in COMMANDS if command.startswith("python -m")]
    assert sum("--config" in words for words in scripts) == 3
    for words in scripts:
        path = Path(*words[2].split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
        if "--config" in words:
            assert Path(words[words.index("--config") + 1]).exists()


def test_the_optimizers_that_the_tree_names_are_files():
    """Not the other way round: a new optimizer needs no edit of the README."""
    text = README.split("\noptimizer/   one algorithm per file: ")[1].split("\nmodel/")[0]
    named = re.findall(r"\w+", text.replace("around any", "").split("; and others")[0])
    assert len(named) > 10
    assert {f"{name}.py" for name in named} <= {path.name for path in Path("optimizer").iterdir()}
