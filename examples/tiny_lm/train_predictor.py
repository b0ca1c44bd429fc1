#!/usr/bin/env python3
"""Trains SiDA's predictor for the shipped model: from the embedding rows of a whole window it tells which experts
each byte will visit in each block.

    python3 train_predictor.py --text kjv.txt --work /tmp/tiny_lm     # the text is that of train.py

That is what made models/sida_predictor.safetensors, with PyTorch 2.15 on one thread of a busy machine: 20 minutes to
record the logits, 17 to train.

1. Runs the model over the training text, cut at every 256 bytes, and records the logits of its routers.  The
   held-out chapters are in none of it.
2. Trains the predictor on them by truncated knowledge distillation: of the K = min(30, experts) largest logits of
   the teacher, the mean absolute difference of the softmaxes of teacher and student over those, and 0.005 times the
   cross entropy with the teacher's best expert.
3. Rounds the weights to bfloat16, as they are shipped, counts how often it is right on the held-out text, and writes
   the file, which predictor.hpp reads.

The network is the published one: linear and ReLU, a two-layer LSTM, attention without projections whose weights are
the SparseMax of the scores divided by their sum, a linear map of what went into the LSTM as the residual, and a linear
head for each block.  It is narrower (64 where the publication has 256), and learns at a higher rate over fewer epochs
(the publication: Adam, 5e-5, 15).  The attention sees the whole window, bytes that come later, too: it predicts for
text that is known, not while generating.

Source: Du et al. 2024, SiDA-MoE: Sparsity-Inspired Data-Aware Serving, and its published code.
Needs PyTorch 2.6 or later.
"""

import argparse
import json
import math
import pathlib
import struct
import time

import torch
import torch.nn.functional as F
from torch import nn

from model import TinyLM
from train import HERE, load_text, write_safetensors

FORMAT = "switchyard-sida-predictor-1"
KEPT, CROSS_ENTROPY_WEIGHT = 30, 0.005


def sparsemax(z, published=False):
    """Projects the last dimension onto the probabilities (Martins and Astudillo 2016).  The published code of SiDA
    subtracts 1 twice, so that more entries are left and their sum is above 1."""
    with torch.no_grad():
        best = z.sort(dim=-1, descending=True).values
        ranks = torch.arange(1, z.shape[-1] + 1)
        support = (1 + ranks * best > best.cumsum(-1)).sum(-1, keepdim=True)
        members = z >= best.gather(-1, support - 1)
    count = members.sum(-1, keepdim=True)
    threshold = ((z * members).sum(-1, keepdim=True) - (2 if published else 1)) / count
    return (z - threshold).relu()


class Predictor(nn.Module):
    """Logits [layers, batch, length, experts] of embedding rows [batch, length, width]."""
    def __init__(self, c):
        super().__init__()
        hidden, self.published = c["hidden"], c["sparsemax"] == "published"
        self.compress = nn.Linear(c["d"], hidden)
        self.lstm = nn.LSTM(hidden, hidden, c["lstm_layers"], batch_first=True)   # gates: input, forget, cell, output
        self.residual = nn.Linear(hidden, hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, c["E"]) for _ in range(c["layers"]))

    def forward(self, x):
        c = self.compress(x).relu()
        o = self.lstm(c)[0]
        weights = sparsemax(o @ o.mT, self.published)
        context = weights / weights.sum(-1, keepdim=True) @ o + self.residual(c)
        return torch.stack([head(context) for head in self.heads])

    def tensors(self):
        """By the names of the file."""
        names = {f"lstm.{part}_l{i}": f"lstm.{i}.{part}" for i in range(self.lstm.num_layers)
                 for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        return {names.get(name, name): p for name, p in self.named_parameters()}


def distillation_loss(student, teacher):
    """Both [.., experts]."""
    best, kept = teacher.topk(min(KEPT, teacher.shape[-1]))
    difference = (student.gather(-1, kept).softmax(-1) - best.softmax(-1)).abs().mean()
    return difference + CROSS_ENTROPY_WEIGHT * F.cross_entropy(student.flatten(0, -2), kept[..., 0].flatten())


# ------------------------------------------------------------------------------------ the teacher

def read_model(path):
    """The shipped model, as the program reads it: all weights widened to float32."""
    file = path.read_bytes()
    length, = struct.unpack_from("<Q", file)
    header = json.loads(file[8:8 + length])
    model, types = TinyLM("moe"), {"F32": torch.float32, "BF16": torch.bfloat16}
    for name, parameter in model.named_parameters():
        first, last = (8 + length + at for at in header[name]["data_offsets"])
        values = torch.frombuffer(bytearray(file[first:last]), dtype=types[header[name]["dtype"]])
        parameter.data.copy_(values.view(header[name]["shape"]))
    return model


def windows_of(text, context):
    """Whole windows at the bytes 0, 256, 512, ..."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return data[:len(data) // context * context].view(-1, context)


@torch.no_grad()
def record(model, windows):
    """The logits of all routers, [blocks, windows, context, experts]."""
    recorded, batches = [[] for _ in model.blocks], windows.split(32)
    hooks = [block.moe.router.register_forward_hook(
                 lambda router, inputs, logits, rows=rows: rows.append(logits.half()))
             for rows, block in zip(recorded, model.blocks)]
    started = time.time()
    for i, batch in enumerate(batches):
        model(batch)
        if i % 50 == 49:
            print(f"recorded {i + 1} of {len(batches)} batches, {time.time() - started:.0f} s", flush=True)
    for hook in hooks:
        hook.remove()
    return torch.stack([torch.cat(rows).view(*windows.shape, -1) for rows in recorded])


# ---------------------------------------------------------------------------------- how often it is right

def hits(predicted, teacher, visited):
    """Of each block: how often the predicted best expert is the router's; and which part of the experts that a byte
    visits are among the best 1, 2, 3, ... predicted."""
    best = predicted.argsort(dim=-1, descending=True, stable=True)
    chosen = teacher.topk(visited).indices
    found = (best[..., None] == chosen[..., None, :]).any(-1).float().cumsum(-1) / visited
    first = (best[..., 0] == chosen[..., 0]).float()
    return first.mean((1, 2)), found.mean((1, 2))


def by_byte(windows, logits):
    """The mean probabilities of each byte's experts, [blocks, vocabulary, experts]: what a table would predict."""
    sums = torch.zeros(logits.shape[0], 256, logits.shape[-1])
    for total, of_block in zip(sums, logits):
        total.index_add_(0, windows.flatten(), of_block.flatten(0, 1).float().softmax(-1))
    return sums


@torch.no_grad()
def predict(predictor, embedding, windows):
    return torch.cat([predictor(embedding[batch]) for batch in windows.split(32)], 1)


@torch.no_grad()
def score(model, windows, logits=None):
    """Bits per byte of whole windows but for their first bytes; `logits` take the place of the routers', if given."""
    batches, nats, hooks = windows.split(32), 0.0, []
    for i, block in enumerate(model.blocks if logits is not None else []):
        given = iter(logits[i].split(32))
        hooks.append(block.moe.router.register_forward_hook(
            lambda router, inputs, own, given=given: next(given).flatten(0, 1)))
    for batch in batches:
        predicted = model(batch)[0][:, :-1]
        nats += F.cross_entropy(predicted.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    for hook in hooks:
        hook.remove()
    return nats / math.log(2) / windows[:, 1:].numel()


def train(args, config, embedding, windows, teacher):
    predictor = Predictor(config)
    optimizer = torch.optim.Adam(predictor.parameters())
    steps, order, started, losses = round(args.epochs * len(windows) / args.batch), torch.empty(0), time.time(), []
    for step in range(steps):
        if len(order) < args.batch:
            order = torch.randperm(len(windows))
        batch, order = order[:args.batch], order[args.batch:]
        loss = distillation_loss(predictor(embedding[windows[batch]]), teacher[:, batch].float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        rate = args.lr * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses = losses[-99:] + [loss.item()]
        if step % 100 == 99 or step + 1 == steps:
            seconds = time.time() - started
            print(f"step {step + 1}/{steps}  loss {sum(losses) / len(losses):.5f}  {seconds:.0f} s, "
                  f"{seconds / (step + 1) * (steps - step - 1):.0f} s to go", flush=True)
    return predictor


def export(args, predictor, config, model, training, teacher, held_out, truth):
    visited, embedding = model.config["top_k"], model.embedding.weight.detach()
    for parameter in predictor.parameters():
        parameter.data = parameter.data.bfloat16().float()
    predicted = predict(predictor, embedding, held_out)
    first, found = hits(predicted, truth, visited)
    table = by_byte(training, teacher)[:, held_out]
    table_first, table_found = hits(table, truth, visited)
    for name, (a, b) in {"predictor": (first, found), "table of bytes": (table_first, table_found)}.items():
        for block in range(len(a)):
            print(f"{name}, block {block}: top-1 {a[block]:.4f}; of the experts visited, among the best "
                  + ", ".join(f"{k + 1}: {b[block, k]:.4f}" for k in range(1, 4)))
    print(f"bits per byte by the model's routers {score(model, held_out):.4f}, by the predictor "
          f"{score(model, held_out, predicted):.4f}, by the table {score(model, held_out, table.log()):.4f}")
    rounded = [[round(v, 4) for v in block] for block in found.tolist()]
    # What a reader of the file compares itself with: the best expert of each byte of the first window, a digit each.
    window = ["".join(str(e) for e in block) for block in predicted[:, 0].argmax(-1).tolist()]
    metadata = {"format": FORMAT, "config": json.dumps(config), "first_window": json.dumps(window),
                "top_1": json.dumps([round(v, 4) for v in first.tolist()]), "found_among_best": json.dumps(rounded),
                "epochs": args.epochs, "seed": args.seed, "batch": args.batch, "lr": args.lr,
                "torch": torch.__version__}
    write_safetensors(args.out, {name: t.bfloat16() for name, t in predictor.tensors().items()},
                      {name: str(value) for name, value in metadata.items()})
    print(f"{args.out}: {args.out.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, default=pathlib.Path("kjv.txt"))
    parser.add_argument("--model", type=pathlib.Path, default=HERE / "tiny_lm.safetensors")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/tiny_lm"),
                        help="recorded logits stay here")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "models" / "sida_predictor.safetensors")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--sparsemax", choices=("correct", "published"), default="correct")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=16, help="windows of a step")
    parser.add_argument("--lr", type=float, default=4e-3, help="after a warm-up, falls to 0 by a cosine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    model = read_model(args.model)
    embedding = model.embedding.weight.detach()
    training, held_out = (windows_of(text, model.config["context"]) for text in load_text(args.text))
    args.work.mkdir(parents=True, exist_ok=True)
    recorded = args.work / "router_logits.pt"
    if not recorded.is_file():
        torch.save(record(model, training), recorded)
    teacher = torch.load(recorded, weights_only=True)
    config = {"d": embedding.shape[1], "hidden": args.hidden, "lstm_layers": 2, "layers": len(model.blocks),
              "E": model.config["experts"], "sparsemax": args.sparsemax, "gate_order": "input, forget, cell, output"}
    predictor = train(args, config, embedding, training, teacher)
    export(args, predictor, config, model, training, teacher, held_out, record(model, held_out))


if __name__ == "__main__":
    main()
