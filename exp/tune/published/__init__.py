"""The published leaderboard and ablation: read and rendered from their JSON, no longer extended.

Their design was three studies of quasi-random trials per arm; new searches are other boards.
"""

from pathlib import Path

from exp.harness.errors import ConfigError
from exp.report.jsonfile import read_json
from exp.tune.published import ablation, leaderboard, page


def write_pages(paper: Path) -> None:
    """Every page and figure of the leaderboard and of the ablations in a folder. Raises ConfigError
    for a damaged JSON."""
    try:
        board = read_json(paper / "leaderboard.json")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for path in sorted(paper.glob("ablation_*.json")):
        ablation.write_page(path)
    if board is None:
        return
    (paper / "leaderboard.md").write_text(leaderboard.render(board), encoding="utf-8")
    (paper / "leaderboard.html").write_text(page.render_html(board), encoding="utf-8")
    for name, task in board["tasks"].items():
        leaderboard.draw(paper / f"leaderboard_{name}.png", task)
