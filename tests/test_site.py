"""The web page and the pages of optimizers: by hand, in a browser, and as they are committed."""

import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from exp.harness.config import Experiment
from exp.report import web
from exp.site import config, optimizers
from exp.site.__main__ import read_boards, site
from optimizer import optimizer_class

PAPER = Path("outputs/paper")

BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SITE_CLICKS = """<script>
addEventListener("load", () => {
  const button = document.querySelectorAll("thead button")[1];
  const names = () => [...document.querySelectorAll("tbody th")].map(c => c.textContent).join("");
  const found = [];
  for (let i = 0; i < 2; i++) {
    button.click();
    found.push(names() + button.parentElement.getAttribute("aria-sort"));
  }
  const frame = document.createElement("iframe");
  frame.width = 390;
  frame.onload = () => {
    found.push(frame.contentDocument.documentElement.scrollWidth <= 390);
    document.title = found.join(";");
  };
  frame.srcdoc = SOURCE;
  document.body.append(frame);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_web_page_sorts_fits_a_phone_and_logs_no_error(tmp_path):
    lines = [("optimizer", "cost", "verdict"), ("a", "12 [1, 20]", "**holds**" + 60 * " long"),
             ("b", "never", ""), ("c", "9.5", "")]
    source = web.document({"Board: toy": web.table("toy", lines) + web.forest(
        "ratio", [("c", 0.5, 0.4, 0.7)]) + web.details("c", web.code("x" * 200))})
    clicks = SITE_CLICKS.replace("SOURCE", json.dumps(source).replace("</", "<\\/"))
    path = tmp_path / "page.html"
    path.write_text(source.replace("</body>", clicks + "</body>"), encoding="utf-8")
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--enable-logging=stderr",
                           "--virtual-time-budget=5000", "--dump-dom", path.as_uri()],
                          capture_output=True, text=True, timeout=60)
    assert "<title>cabascending;bacdescending;true</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_the_web_page_escapes_text_and_places_the_plot_by_hand():
    assert web.inline("`a<b` **holds** *cost* & <sub>x</sub>") == (
        '<code>a&lt;b</code> <strong class="holds">holds</strong> <em>cost</em> &amp; '
        " <small>x</small>")
    assert web.paragraphs("a\nb\n\n- **c**\n  d\n- e") == (
        "<p>a\nb</p>\n<ul><li><strong>c</strong>\n  d</li><li>e</li></ul>")
    drawn = web.forest("ratio", [("<c>", 1.0, 0.5, 2.0)])  # 1 is halfway from 190 to 620 pixels
    assert 'x1="190.0" x2="620.0"' in drawn and 'cx="405.0"' in drawn and "&lt;c&gt;" in drawn


def test_boards_in_progress_are_shown_without_verdicts(tmp_path):
    axes = {"lr": [1e-4, 1e-2, "log"], "memory": {"choices": ["fast", "slow"]}}
    study = {"number": 1, "machine": "CPU", "torch": "2", "commit": "abc", "data": "d", "winner": 0,
             "trials": [{"params": {"lr": 0.002, "memory": "slow"}}], "fresh": []}
    terms = {"task": "wikitext2", "regime": "anneal", "metric": "eval_perplexity", "mode": "min",
             "horizon": 984, "studies": 6, "trials": 12, "fresh_seeds": 2, "baseline": "adamw",
             "config": "c.toml", "set": []}
    arm = {"axes": axes, "defaults": {"lr": 1e-3}, "studies": [study]}
    rows = {"cost": 49.25, "reached": [2, 2], "spent": 12}
    board = {"schema": "ars-arena/1 in progress", "terms": terms, "arms": {"adamw": arm},
             "results": {"arms": {"adamw": rows}}}
    path = tmp_path / "arena" / "in_progress" / "wikitext2.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(board))
    html = site(tmp_path)
    assert "Board in progress: wikitext2" in html and "1 of the 6 announced studies" in html
    assert "49.25" in html and "python -m exp.tune wikitext2 --optimizers adamw" in html
    assert "No board is complete yet" not in html and "How to read this board" not in html


def test_curves_are_placed_by_hand_and_described():
    """0 to 100 lies from 48 to 352 pixels across, 1 to 100 on a log axis from 210 to 8 up."""
    line = web.Line("#123456", "6 3", (50, 100), (100.0, 10.0), (100.0, 1.0), (100.0, 10.0))
    drawn = web.curves("t", "Toy", "steps", "loss", {"<c>": line}, log=True)
    assert 'stroke="#123456" stroke-dasharray="6 3" points="200,8 352,109"' in drawn
    assert 'fill="#123456" points="200,8 352,109 352,210 200,8"' in drawn
    assert re.findall(r">([\d.]+)</text>", drawn) == [
        "1", "2", "5", "10", "20", "50", "100", "0", "20", "40", "60", "80", "100"]
    assert '<title id="t-title">Toy: loss over steps</title>' in drawn
    assert "&lt;c&gt;: 100 to 10 at 100.</desc>" in drawn


def test_the_committed_web_page_is_made_of_the_committed_records():
    html = (PAPER / "index.html").read_text(encoding="utf-8")
    assert html == site(), "python -m exp.site makes it again"
    assert not re.search(r'(src|href)="(?!#|data:|https://)', html)


def test_the_reference_of_config_keys_is_made_of_the_signatures():
    text = config.reference()
    line = next(line for line in text.splitlines() if line.startswith("| `stop_at`"))
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "`stop_at`", "a number", "–", config.comments(Experiment)["stop_at"]]
    assert set(config.comments(Experiment)) == {field.name for field in fields(Experiment)}
    for words in ("| `subset` ", "| `hidden_gain` ", "| `batch_scaling` ", '| `"addition"` '):
        assert words in text
    assert config.FILE.read_text(encoding="utf-8") == text, "python -m exp.site makes it again"


def test_the_page_of_every_optimizer_is_made_of_its_file():
    board = {"arms": {"x": {"optimizer": {"name": "muon", "sam": {}}}}, "results": {"arms": {
        "x": {"cost": 120.0, "ratio": 0.5, "low": 0.25, "high": 1.0, "bound": "at least"}}}}
    line = r"\| toy +\| x +\| 120 +\| ≥ 0.5 \[0.25, 1\] +\|"
    for name in ("muon", "sam"):
        text = optimizers.optimizer_page(name, optimizer_class(name), {"toy": board})
        assert re.search(line, text)
    made = optimizers.pages(read_boards())
    kept = {path.name: path.read_text(encoding="utf-8") for path in optimizers.FOLDER.glob("*.md")}
    assert kept == made, "python -m exp.site makes them again"
