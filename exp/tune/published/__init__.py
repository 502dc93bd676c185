"""The published leaderboard and ablation: read and rendered from their JSON, no longer extended.

Their design was three studies of quasi-random trials per arm; new searches are other boards.
"""

from pathlib import Path

from exp.harness.errors import ConfigError
from exp.harness.recipes import ROOT
from exp.report.jsonfile import read_json
from exp.report.tables import between_marks
from exp.tune.published import ablation, leaderboard, page

README, PAPER = ROOT / "README.md", ROOT / "outputs" / "paper"


def write_pages(paper: Path) -> None:
    """Every page and figure of the leaderboard and of the ablations in a folder, and the README's
    table where these are the project's own. Raises ConfigError for a damaged JSON."""
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
    if paper.resolve() == PAPER:
        readme = README.read_text(encoding="utf-8")
        README.write_text(with_headline(readme, board), encoding="utf-8")


def with_headline(readme: str, board: dict) -> str:
    """The README with the leaderboard in short."""
    return between_marks(readme, "exp.tune", leaderboard.headline(board))
