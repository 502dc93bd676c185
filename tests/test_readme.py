"""The README's commands exist and are what CI runs."""

import re
from pathlib import Path

from optimizer import available_optimizers

README = Path("README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^uv run (.+)$", README, flags=re.MULTILINE)


def test_ci_runs_the_first_two_commands():
    ci = Path(".ci/run").read_text(encoding="utf-8")
    first, second = COMMANDS[:2]
    assert "python -m exp.grokking.train" in first
    assert second == "pytest"
    assert f"uv run {first}" in ci
    assert f"uv run {second}" in ci


def test_every_command_names_a_script_and_a_config_that_are_there():
    scripts = [command for command in COMMANDS if command.startswith("python -m")]
    assert len(scripts) == 3
    for command in scripts:
        module, config = re.fullmatch(r"python -m (\S+)\s+--config (\S+)", command).groups()
        assert Path(*module.split(".")).with_suffix(".py").exists()
        assert Path(config).exists()


def test_the_tree_names_every_optimizer_file():
    line = README.split("\noptimizer/")[1].split("\nmodel/")[0]
    own = {path.stem for path in Path("optimizer").glob("*.py")} - {"__init__", "__main__"}
    assert own <= set(available_optimizers())
    assert own <= set(re.split(r"[\s;:,]+", line))
