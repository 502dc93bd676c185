"""The optimizers as the wheel ars-optim, its recipes, and checkpoints of version 0.1."""

import os
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from test_optimizers import problem, weights

STEP_WITH_EVERY_CLASS = """
import importlib.util, inspect, sys
import torch
from torch import nn
import ars_optim
from ars_optim import available_optimizers, is_wrapper, optimizer_class
from ars_optim.muon import Muon

def gradients():
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return torch.tensor(1.0)

names = [n for n in available_optimizers() if optimizer_class(n).__module__.startswith("ars_optim")]
for name in names:
    cls = optimizer_class(name)
    assert getattr(ars_optim, cls.__name__) is cls
    required = getattr(sys.modules[cls.__module__], "REQUIRES", None)
    if required and not importlib.util.find_spec(required):
        continue
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model.W_Q, model.W_K = nn.Parameter(torch.ones(2, 2, 3)), nn.Parameter(torch.ones(2, 2, 3))
    model.attention_layers = lambda: [model]
    given = {"model": model} if "model" in inspect.signature(cls).parameters else {}
    params = [p for p in model.parameters()]
    optimizer = cls(Muon(params) if is_wrapper(cls) else params, **given)
    if given and not is_wrapper(cls):
        model[1](model[0](torch.ones(5, 3))).sum().backward()
    before = [p.detach().clone() for p in params]
    optimizer.step(gradients)
    assert any(not torch.equal(p, b) for p, b in zip(params, before)), name
ours = [m for m in sys.modules if m.split(".")[0] in ("optimizer", "exp", "model", "data")]
others = [m for m in ("transformers", "datasets", "matplotlib", "optuna") if m in sys.modules]
print(len(names), ours, others)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds what the wheel installs."""
    folder = tmp_path_factory.mktemp("site")
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    built = subprocess.run([sys.executable, "-c", build, str(folder)], capture_output=True,
                           text=True, check=True)
    with zipfile.ZipFile(folder / built.stdout.split()[-1]) as wheel:
        wheel.extractall(folder)
    return folder


def run(site, folder, code, **environment):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=folder,
                          capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(site), **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_the_optimizers_and_needs_torch_alone(site):
    installed, source = ({path.relative_to(root) for path in root.glob("**/*.*")
                          if path.suffix != ".pyc"}
                         for root in (site / "ars_optim", Path("optimizer")))
    assert installed == source  # with the weights of learned rules
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"ars_optim"}
    metadata = next(site.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    required = [line for line in re.findall(r"^Requires-Dist: (.+)$", metadata, flags=re.MULTILINE)
                if "extra ==" not in line]
    assert len(required) == 1 and required[0].startswith("torch>=")


def test_the_installed_package_steps_with_every_class(site, tmp_path):
    """It imports nothing of this project and no library but torch."""
    count, rest = run(site, tmp_path, STEP_WITH_EVERY_CLASS).split(" ", 1)
    assert int(count) >= 29 and rest == "[] []"


def test_the_recipes_of_the_docs_run_as_they_stand(site, tmp_path):
    """All that need torch alone, in one process, from top to bottom."""
    text = Path("docs/using.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
              if not re.search(r"^(from|import) (transformers|lightning)", block, flags=re.M)]
    assert len(blocks) == 10
    quiet = "import warnings; warnings.filterwarnings('ignore', 'torch.distributed is disabled')\n"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shown = run(site, tmp_path, quiet + "".join(blocks) + "print(loss_fn(model(x), y).item())",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK="0", WORLD_SIZE="1")
    assert 0 < float(shown.splitlines()[-1]) < 2


def of_version_01(optimizer, own):
    """The state_dict as version 0.1 wrote it: `own` keys beside "state", nothing in the groups."""
    state_dict = optimizer.state_dict()
    groups = [{key: value for key, value in group.items() if key != "scalars"}
              for group in state_dict["param_groups"]]
    names = ("shear_force", "slow_weight") if "shear" in str(own) or "slow" in str(own) else ()
    state = {index: {key: value for key, value in entry.items() if key not in names}
             for index, entry in state_dict["state"].items()}
    return {"state": {i: e for i, e in state.items() if e}, "param_groups": groups, **own}


def per_parameter(optimizer, name):
    return [optimizer.state.get(p, {}).get(name)
            for group in optimizer.param_groups for p in group["params"]]


START = ("rho_factor", "gap", "gap_target", "gaps")


def radius_of(optimizer):
    return {key: optimizer.scalars[key] for key in START}


OLD = {
    "muon": ({"name": "muon"}, lambda o: {"scalars": {}}),
    "ars2_neo": ({"name": "ars2_neo", "k": 4, "adaptive_sync": True, "adaptive_lambda": 0.1},
                 lambda o: {"scalars": dict(o.scalars)}),
    "ars": ({"name": "ars", "k": 3}, lambda o: {"scalars": dict(o.scalars)}),
    "tr_muon": ({"name": "tr_muon", "interval": 2}, lambda o: {"scalars": dict(o.scalars)}),
    "kfac": ({"name": "kfac", "factor_interval": 2}, lambda o: {"scalars": dict(o.scalars)}),
    "sam": ({"name": "adamw", "sam": {"rho_schedule": "gap"}},
            lambda o: {"SAM": {"radius": radius_of(o)}}),
    "looksam": ({"name": "sgd", "lr": 0.1, "looksam": {"k": 3}},
                lambda o: {"LookSAM": {"radius": radius_of(o), "steps": o.scalars["steps"],
                                       "shear": per_parameter(o, "shear_force")}}),
    "lookahead": ({"name": "muon", "lookahead": {"k": 3}},
                  lambda o: {"scalars": {},
                             "Lookahead": {"steps": o.scalars["steps"],
                                           "slow": per_parameter(o, "slow_weight")}}),
    "nested": ({"name": "ars2_neo", "k": 0, "looksam": {"k": 2}, "lookahead": {"k": 3}},
               lambda o: {"scalars": dict(o.base.base.scalars),
                          "LookSAM": {"radius": radius_of(o.base),
                                      "steps": o.base.scalars["steps"],
                                      "shear": per_parameter(o, "shear_force")},
                          "Lookahead": {"steps": o.scalars["steps"],
                                        "slow": per_parameter(o, "slow_weight")}}),
}


@pytest.mark.parametrize("name", OLD)
def test_a_checkpoint_of_version_01_continues_bit_for_bit(name):
    settings, own = OLD[name]
    model, optimizer, closure = problem(settings)
    for _ in range(4):
        optimizer.step(closure)
    old = of_version_01(optimizer, own(optimizer))
    other, fresh, fresh_closure = problem(settings)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(old)
    for _ in range(5):
        optimizer.step(closure)
        fresh.step(fresh_closure)
    assert torch.equal(weights(model), weights(other))
    assert fresh.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("name", OLD)
def test_state_and_groups_alone_load(name):
    """Of version 0.1, without what stood beside them: the rest starts anew."""
    settings, _ = OLD[name]
    _, optimizer, closure = problem(settings)
    for _ in range(4):
        optimizer.step(closure)
    _, fresh, fresh_closure = problem(settings)
    fresh.load_state_dict(of_version_01(optimizer, {}))
    assert torch.isfinite(fresh.step(fresh_closure))
