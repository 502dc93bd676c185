"""run.json's account of the code: which commit, and whether the code that ran is in it."""

import subprocess
import sys

import pytest

from exp.harness import facts


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one committed source, loaded; returns (its root, a git command)."""
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
                       cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(facts, "ROOT", tmp_path)
    monkeypatch.delenv("ARS_COMMIT", raising=False)
    git("init", "-q")
    load(tmp_path, monkeypatch, "known")
    (tmp_path / "README.md").write_text("text")
    git("add", ".")
    git("commit", "-qm", "first")
    return tmp_path, git


def load(root, monkeypatch, name):
    path = root / "optimizer" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    module = type(sys)(f"optimizer.{name}")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return path


def test_code_that_is_in_the_commit_is_not_marked(repository):
    root, _ = repository
    (root / "README.md").write_text("other text")  # not what ran
    (root / "optimizer" / "not_loaded.py").write_text("")
    commit, uncommitted = facts.code_version()
    assert len(commit) == 40 and not uncommitted
    assert facts.short_commit() == commit[:7]


def test_an_untracked_rule_an_ignored_one_and_a_changed_file_are_uncommitted(
        repository, monkeypatch):
    root, git = repository
    mine = load(root, monkeypatch, "mine")
    assert facts.code_version()[1] and facts.short_commit().endswith("+")
    git("add", "optimizer/mine.py")
    assert facts.code_version()[1]  # staged is not committed
    git("commit", "-qm", "second")
    assert not facts.code_version()[1]
    mine.write_text("changed")
    assert facts.code_version()[1]
    git("checkout", "optimizer/mine.py")
    load(root, monkeypatch, "private")
    (root / ".gitignore").write_text("private.py\n")
    assert facts.code_version()[1]


def test_neither_a_link_nor_a_file_that_git_overlooks_hides_a_change(repository, monkeypatch):
    root, git = repository
    git("update-index", "--skip-worktree", "optimizer/known.py")
    assert not facts.code_version()[1]
    (root / "optimizer" / "known.py").write_text("changed")
    assert facts.code_version()[1]
    (root / "optimizer" / "known.py").write_text("")
    linked = load(root, monkeypatch, "linked")
    linked.unlink()
    linked.symlink_to(root / "README.md")
    git("add", "optimizer/linked.py")
    git("commit", "-qm", "a link")
    assert facts.code_version()[1]  # what it points to may be any text
    monkeypatch.delitem(sys.modules, "optimizer.linked")
    assert not facts.code_version()[1]
    deep = load(root, monkeypatch, "parts/näher")
    assert facts.code_version()[1]
    git("add", ".")
    git("commit", "-qm", "a name that git quotes")
    assert not facts.code_version()[1] and deep.exists()


@pytest.mark.parametrize(("given", "version"), [
    (None, (None, False)), ("0123456789", ("0123456789", False)),
    ("0123456789+", ("0123456789", True))])
def test_without_git_the_commit_comes_from_the_environment(tmp_path, monkeypatch, given, version):
    monkeypatch.setattr(facts, "_git", lambda *_: None)
    monkeypatch.delenv("ARS_COMMIT", raising=False)
    if given:
        monkeypatch.setenv("ARS_COMMIT", given)
    assert facts.code_version() == version
    assert facts.short_commit() == ("0123456" + given[10:] if given else "unknown")
