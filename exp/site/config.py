"""docs/config.md: every key of a config, from the signatures that the tables are passed to."""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from exp.harness import schema
from exp.harness.config import GIVEN_TO_SCHEDULE, Experiment
from exp.harness.schedule import Schedule
from exp.harness.task import task_named, tasks
from exp.harness.toml import to_toml
from exp.report.tables import markdown, page
from model import available_models, model_class

FILE = Path("docs/config.md")
INTRODUCTION = """\
Every key of a config (a TOML file, see [running](running.md)), the value that it takes and its \
default. A key without a default is required; a dash means that the key is not set by default. \
A table accepts no other keys. `--set table.key=value` sets one on the command line."""
DATA = """\
The task decides which keys there are. In every task, `batch_size` is the number of examples per \
step, over all processes. Where they exist, `drop_last` leaves out the last batch of an epoch if \
it is smaller than the others, and `epochs_per_pass` is the number of equal epochs in one shuffled \
pass over the training set, so that a short run is evaluated more often."""
OPTIMIZER = """\
`name` is a file in `optimizer/`, a name of torch.optim in snake case, or `package:Class` of an \
installed library. The other keys are that optimizer's arguments: \
[optimizers](optimizers/README.md), `python -m optimizer NAME`. Also accepted:

- `routing`: which tensors a matrix rule gets; AdamW gets the others. "role" (default): hidden \
matrices. "shape": those of two or more dimensions and no side of 10,000 or more, as in the \
published runs. "all": those of two or more dimensions.
- `[optimizer.adamw]`: `lr`, `betas`, `eps` and `weight_decay` of that AdamW; rate and decay are \
the matrix rule's by default. `[optimizer.adamw.embedding]`, `.head` and `.vector` override it per \
role.
- `[optimizer.<wrapper>]`, such as `[optimizer.sam]`: puts a wrapper around the optimizer; its \
keys are the wrapper's arguments. Several wrap in the order of the file, innermost first."""
MADE = "Made by `python -m exp.site` from the signatures in the code."


def reference() -> str:
    """The text of docs/config.md."""
    data = [part for task in map(task_named, tasks()) for part in (
        f"### Task {task.name}: `{task.data.__name__}`", _text(task.data),
        _keys(schema.keywords(task.data, ("seed", "device"))))]
    sizes = [size for task in map(task_named, tasks()) for size in task.sizes]
    models = [part for name in available_models() for part in (
        f'### `name = "{name}"`', _text(model_class(name)),
        _keys(schema.keywords(model_class(name), sizes)))]
    return page(
        "# Config keys", INTRODUCTION,
        "## [experiment]", _keys(schema.keywords(Experiment), comments(Experiment)),
        "## [data]", DATA, *data,
        "## [model]", "`name` decides which other keys there are. Sizes that the data determine "
        "(the number of tokens or classes) are not keys.", *models,
        "## [optimizer]", OPTIMIZER,
        "## [schedule]", _text(Schedule),
        _keys(schema.keywords(Schedule, GIVEN_TO_SCHEDULE)), MADE)


def comments(cls: type) -> dict[str, str]:
    """Field -> the comment on its line in the source of a dataclass."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(cls), re.MULTILINE))


def _text(of: Callable) -> str:
    return f"```text\n{inspect.getdoc(of)}\n```"


def _keys(accepted: Mapping[str, inspect.Parameter], effects: Mapping[str, str] | None = None
          ) -> str:
    head = ("key", "value", "default", *(["effect"] if effects else []))
    return markdown([head, *(
        (f"`{name}`", _cell(schema.describe(parameter.annotation)), _default(parameter),
         *([_cell(effects.get(name, ""))] if effects else []))
        for name, parameter in accepted.items())])


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    known = schema.defaults({"key": parameter})
    return f"`{to_toml(known).removeprefix('key = ').strip()}`" if known else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
