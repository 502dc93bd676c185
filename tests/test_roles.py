"""Roles and routing of any nn.Module: embeddings, heads, ties, norms, biases, repeated blocks."""

import pytest
import torch
from test_optimizers import Net
from torch import nn

from optimizer import build_optimizer, parameter_groups, routing_table
from optimizer.muon import Muon
from optimizer.parts.roles import roles_of


class Block(nn.Module):
    def __init__(self, d, causal_bias=False):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(d), nn.MultiheadAttention(d, 2, add_bias_kv=True)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)


class GPT(nn.Module):
    """A stranger's transformer: learned positions, blocks, a head that may be tied."""

    def __init__(self, tied, d=8):
        super().__init__()
        self.wte, self.pos_embed = nn.Embedding(11, d), nn.Parameter(torch.zeros(1, 5, d))
        self.blocks = nn.ModuleList(Block(d) for _ in range(2))
        self.norm, self.lm_head = nn.LayerNorm(d), nn.Linear(d, 11, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


class Inner(nn.Module):
    """Layers named by what they are, in a stack, and no head at all."""

    def __init__(self):
        super().__init__()
        self.entry = nn.Linear(3, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))


def roles(model):
    return {name: role.role for name, role in roles_of(model).items()}


def of_role(model, role):
    return {name for name, found in roles(model).items() if found == role}


@pytest.mark.parametrize("tied", [True, False])
def test_a_transformer_of_a_stranger(tied):
    model = GPT(tied)
    assert of_role(model, "embedding") == {"wte.weight", "pos_embed"}
    assert of_role(model, "head") == (set() if tied else {"lm_head.weight"})
    assert of_role(model, "hidden") == {
        f"blocks.{i}.{name}" for i in range(2) for name in (
            "attention.in_proj_weight", "attention.out_proj.weight", "up.weight", "down.weight")}
    assert "tied" in routing_table(model) or not tied



def test_a_tied_head_is_the_output_layer_wherever_it_was_made():
    model = nn.Module()
    model.table, model.out, model.hidden = nn.Embedding(9, 4), nn.Linear(4, 9), nn.Linear(4, 4)
    model.out.weight = model.table.weight
    assert of_role(model, "hidden") == {"hidden.weight"}
    assert of_role(model, "embedding") == {"table.weight"} and of_role(model, "head") == set()

def test_a_convolutional_network_and_a_plain_one():
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
                                  nn.Linear(16, 10))
    assert of_role(convolutional, "hidden") == {"0.weight"}
    assert of_role(convolutional, "head") == {"3.weight"}
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert of_role(plain, "hidden") == {"0.weight", "2.weight"}
    assert of_role(plain, "head") == {"4.weight"}


def test_the_last_of_repeated_blocks_is_no_head():
    model = Inner()
    assert of_role(model, "head") == set()
    assert "layers.2.0.weight" in of_role(model, "hidden")
    assert of_role(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2,
                                         enable_nested_tensor=False), "head") == set()


def test_a_head_before_the_blocks_is_found_by_its_name():
    model = Inner()
    model.classifier = nn.Linear(8, 2)
    model.tail = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
    assert of_role(model, "head") == {"classifier.weight"}


def test_recurrent_networks_and_norms_of_more_dimensions():
    model = nn.ModuleDict({"cells": nn.LSTM(4, 8), "norm": nn.LayerNorm((3, 8)),
                           "decoder": nn.Linear(8, 5)})
    assert of_role(model, "hidden") == {"cells.weight_ih_l0", "cells.weight_hh_l0"}
    assert of_role(model, "head") == {"decoder.weight"}
    assert roles(model)["norm.weight"] == "vector"


def test_models_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(vocab_size=20, hidden_size=8, intermediate_size=16,
                                      num_hidden_layers=2, num_attention_heads=2,
                                      num_key_value_heads=1, head_dim=4, tie_word_embeddings=False)
    model = transformers.Qwen3ForCausalLM(config)
    assert of_role(model, "head") == {"lm_head.weight"}
    assert of_role(model, "embedding") == {"model.embed_tokens.weight"}
    hidden = of_role(model, "hidden")
    assert len(hidden) == 2 * 7 and all(".layers." in name for name in hidden)
    small = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    tied = transformers.GPT2LMHeadModel(small)
    assert of_role(tied, "embedding") == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert len(of_role(tied, "hidden")) == 2 * 4


def test_a_model_that_says_so_itself_is_believed():
    model = Net()
    assert roles(model) == model.roles()
    assert {role.reason for role in roles_of(model).values()} == {"model.roles()"}


def test_groups_of_any_model_train_it_and_the_table_says_what_went_where():
    model = GPT(tied=True)
    optimizer = Muon(parameter_groups(model, lr=1e-3), lr=0.02)
    matrix, rest = optimizer.param_groups
    assert (matrix["track"], matrix["lr"], rest["track"], rest["lr"]) == (
        "matrix", 0.02, "adamw", 1e-3)
    assert len(matrix["params"]) == len(of_role(model, "hidden"))
    lines = routing_table(model).splitlines()
    assert len(lines) == len(list(model.parameters()))
    line = next(line for line in lines if "wte.weight" in line)
    assert line.startswith("adamw") and "(11, 8)" in line and "Embedding and Linear" in line
    built = build_optimizer({"name": "muon"}, model)
    assert [len(g["params"]) for g in built.param_groups] == [len(matrix["params"]),
                                                              len(rest["params"])]
    assert "2 dimensions" in routing_table(model, "all")


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_embedding_head_and_vectors_may_have_settings_of_their_own(name):
    model = GPT(tied=False)
    adamw = {"lr": 0.1, "betas": [0.8, 0.95], "embedding": {"lr": 0.7},
             "vector": {"lr": 0.01, "betas": [0.9, 0.99]}}
    built = build_optimizer({"name": name, "lr": 0.02, "weight_decay": 0.3, "adamw": adamw}, model)
    names = {id(p): name for name, p in model.named_parameters()}
    by_role = {role: {names[id(p)] for p in group["params"]} for role, group in zip(
        ("hidden", "head", "embedding", "vector"), built.param_groups, strict=True)}
    assert by_role == {role: of_role(model, role) for role in by_role}
    assert [group["lr"] for group in built.param_groups] == [0.02, 0.1, 0.7, 0.01]
    assert [list(group["betas"]) for group in built.param_groups[1:]] == [
        [0.8, 0.95], [0.8, 0.95], [0.9, 0.99]]
    assert {group["weight_decay"] for group in built.param_groups} == {0.3}


def test_settings_for_a_role_that_adamw_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"adamw.head has no effect"):
        build_optimizer({"name": "muon", "adamw": {"head": {"lr": 0.1}}}, GPT(tied=True))
