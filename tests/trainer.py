"""Hugging Face's Trainer with our optimizers: a run of eight steps, and one of four resumed.

uv run --with accelerate python -m tests.trainer

Prints a row per rule: whether the resumed run ends at the same weights as the uninterrupted one,
and the loss before and after. Exit status 1 if one does not.
"""

import sys
import tempfile
import warnings

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from optimizer import build_optimizer

RULES = {
    "Muon": {"name": "muon"}, "NorMuon": {"name": "normuon"}, "SOAP": {"name": "soap"},
    "Lion": {"name": "lion"}, "ARS2-Neo, k = 0": {"name": "ars2_neo", "k": 0},
    "Lookahead around AdamW": {"name": "adamw", "lr": 0.01, "lookahead": {}},
    "ARS2-Neo, k = 1": {"name": "ars2_neo", "k": 1},
    "SAM around Muon": {"name": "muon", "sam": {}},
    "LookSAM around AdamW": {"name": "adamw", "lr": 0.01, "looksam": {"k": 3}}}
TWO_GRADIENTS = list(RULES)[-3:]
STEPS, EXAMPLES = 8, 64


class TwoGradients(Trainer):
    """Trainer for rules that may need a second gradient, at perturbed weights."""

    def training_step(self, model, inputs, *arguments):
        """The gradient at the weights, and where `first_step` asks for it the second one."""
        loss = super().training_step(model, inputs, *arguments)
        if self.optimizer.optimizer.first_step():
            super().training_step(model, inputs, *arguments)
        return loss


class Net(nn.Module):
    """Two hidden layers; a loss, as Trainer asks for it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(),
                                    nn.Linear(16, 2))

    def forward(self, x, labels):
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples():
    """Whether the mean of eight numbers is positive."""
    x = torch.randn(EXAMPLES, 8, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": int(row.mean() > 0)} for row in x]


def trained(name, folder, steps, resume=False):
    """The network after so many steps in all."""
    model = Net()
    optimizer = build_optimizer(RULES[name], model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (2 * STEPS))
    kind = TwoGradients if name in TWO_GRADIENTS else Trainer
    trainer = kind(model=model, train_dataset=examples(), optimizers=(optimizer, schedule),
                   args=TrainingArguments(
                       output_dir=folder, max_steps=steps, per_device_train_batch_size=16,
                       save_steps=STEPS // 2, logging_strategy="no", report_to=[], use_cpu=True,
                       disable_tqdm=True, seed=3))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return model


def row(name):
    """A line of the table, and whether the rule works."""
    def loss(model):
        batch = examples()
        x, labels = (torch.stack([torch.as_tensor(e[key]) for e in batch])
                     for key in ("x", "labels"))
        return float(model(x, labels)["loss"])

    with tempfile.TemporaryDirectory() as folder:
        whole = trained(name, f"{folder}/whole", STEPS)
        trained(name, f"{folder}/cut", STEPS // 2)
        resumed = trained(name, f"{folder}/cut", STEPS, resume=True)
    same = all(map(torch.equal, whole.parameters(), resumed.parameters()))
    before, after = loss(Net()), loss(whole)
    words = f"| {name} | {before:.3f} | {after:.3f} | {'the same' if same else 'DIFFERENT'} |"
    return words, same and after < before


def main():
    """The table; 1 if a rule fails."""
    warnings.simplefilter("ignore")
    print("| optimizer | loss | after 8 steps | resumed after 4: weights |\n|---|---|---|---|")
    fine = True
    for name in RULES:
        line, works = row(name)
        print(line, flush=True)
        fine = fine and works
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
