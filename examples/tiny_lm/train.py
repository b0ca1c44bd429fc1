#!/usr/bin/env python3
"""Trains the byte-level language models of this example, on a CPU, offline.

`moe` has Mixture-of-Experts layers (8 experts, top-2) as its feed-forward blocks; `dense` is its
twin with as many *active* parameters.  Both see the same bytes in the same order.  The MoE model
is shipped as tiny_lm.safetensors; of the dense twin only the score is kept.

The text is the King James Bible, which is in the public domain, from Debian's packages bible-kjv
and bible-kjv-text.  To make the text file (4404412 bytes, one verse per line):

    apt-get install bible-kjv                # or: apt-get download, dpkg -x, bible -p DIR
    bible -f Gen1:1-Rev22:21 > kjv.txt

What made the shipped files (both trainings side by side, one thread each, with PyTorch 2.8;
they were stopped once and gone on with by --resume):

    flags="--steps 1800 --decay 0.15 --lr 4e-3 --warmup 150 --precision bfloat16 --compile"
    python3 train.py train --model moe   --text kjv.txt --work /tmp/tiny_lm $flags
    python3 train.py train --model dense --text kjv.txt --work /tmp/tiny_lm $flags
    python3 train.py export --text kjv.txt --work /tmp/tiny_lm
    python3 train.py sample --work /tmp/tiny_lm --prompt "In the beginning"

--resume goes on from the last checkpoint, also with another --steps while the learning rate has
not begun to decay.  Leave out --precision bfloat16 where the CPU has no AMX.

Held-out text: every 48th chapter (the 25th, 73rd, ... of the 1189) is taken out of the training
text whole and joined into held_out.txt: a draw over all the books, made by position alone.  The
score is bits per byte on it (see `evaluate`), with the weights rounded as they are shipped and
all arithmetic in float32.  It chooses no checkpoint: the last step's weights are shipped.

Needs PyTorch 2.6 or later and the standard library.
"""

import argparse
import ctypes
import hashlib
import json
import math
import pathlib
import re
import struct
import sys
import time

import torch
import torch.nn.functional as F

from model import CONFIG, FEED_FORWARD, TinyLM, parameters_of, shipped_dtype

HERE = pathlib.Path(__file__).resolve().parent
FORMAT = "switchyard-tiny-lm-1"


# ---------------------------------------------------------------------------------- the text

def load_text(path):
    """(training bytes, held-out bytes): verses are lines, an empty line parts the chapters."""
    if not path.is_file():
        sys.exit(f"train.py: no text file {path}.  Make it with\n"
                 "    apt-get install bible-kjv && bible -f Gen1:1-Rev22:21 > kjv.txt\n"
                 "and pass it with --text kjv.txt (see train.py --help).")
    chapters = {}
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        match = re.fullmatch(r"(\w+):\d+ (.*)", line) or \
            sys.exit(f"train.py: {path}:{number}: not a verse such as 'Ge1:1 In the ...': {line[:60]!r}")
        chapters.setdefault(match[1], []).append(" ".join(match[2].split()))
    texts = ["\n".join(verses) + "\n" for verses in chapters.values()]
    training = "\n".join(text for i, text in enumerate(texts) if i % 48 != 24)
    held_out = "\n".join(text for i, text in enumerate(texts) if i % 48 == 24)
    return training.encode("ascii"), held_out.encode("ascii")


def batch_at(data, step, args):
    """The batch of a step depends on the seed and the step only: all models see the same bytes."""
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
    starts = torch.randint(len(data) - CONFIG["context"], (args.batch, 1), generator=generator)
    windows = data[starts + torch.arange(CONFIG["context"] + 1)].long()
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def evaluate(model, held_out):
    """Bits per byte.  Windows start at the bytes 0, 256, 512, ...; each is a context of its own,
    and every byte of the text but the first is predicted once.  Also returns, for each block,
    the share of the rows that each expert got."""
    data, context = torch.tensor(list(held_out)), CONFIG["context"]
    count = len(data) - 1
    whole = count - count % context
    batches = [*zip(data[:whole].view(-1, context).split(16), data[1: whole + 1].view(-1, context).split(16)),
               *([(data[None, whole:-1], data[None, whole + 1:])] if whole < count else [])]   # a short last one
    nats, rows = 0.0, torch.zeros(())
    for inputs, targets in batches:
        logits, _, counts = model(inputs)
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").double().sum().item()
        rows = rows + torch.stack(counts)
    share = [[round(v, 4) for v in block] for block in (rows / rows.sum(1, keepdim=True)).tolist()]
    return nats / math.log(2) / count, share


# ------------------------------------------------------------------------------- the actions

def learning_rate(step, args):
    """Warm-up, stable, linear decay to 0 over the last part of the steps."""
    left = (args.steps - step) / max(1, round(args.steps * args.decay))
    return args.lr * min(1.0, (step + 1) / args.warmup, left)


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    training, held_out = load_text(args.text)
    data, compute = torch.frombuffer(bytearray(training), dtype=torch.uint8), getattr(torch, args.precision)
    model = TinyLM(args.model)
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": args.weight_decay},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint, first, seconds, curve = args.work / f"{args.model}.pt", 0, 0.0, []
    if args.resume and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, seconds, curve = saved["step"], saved["seconds"], saved["curve"]
    if args.compile:                                                         # all but the experts
        for module in model.modules():
            for name in ("attend", "route", "combine", "output"):
                if hasattr(module, name):
                    setattr(module, name, torch.compile(getattr(module, name)))
    print(f"{args.model}: {parameters_of(model)} parameters, {parameters_of(model, True)} active; text "
          f"{len(training)} + {len(held_out)} held-out bytes; steps {first} to {args.steps}", flush=True)

    tokens_per_step, losses = args.batch * CONFIG["context"], []
    started, shown, saved_at = time.time() - seconds, (time.time(), first), time.time()
    for step in range(first, args.steps):
        inputs, targets = batch_at(data, step, args)
        logits, balance, _ = model(inputs, compute)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        (loss + args.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses = losses[-99:] + [loss.item() / math.log(2)]
        mean, done, last = sum(losses) / len(losses), step + 1, step + 1 == args.steps
        if done % max(1, args.steps // 20) == 0 or last:
            with torch.compiler.set_stance("force_eager"):
                bits, _ = evaluate(model, held_out)
            curve.append({"step": done, "tokens": done * tokens_per_step, "train_bits_per_byte": round(mean, 4),
                          "held_out_bits_per_byte": round(bits, 4)})
            print(f"{args.model} step {done}: held-out {bits:.4f} bits per byte", flush=True)
        if time.time() - shown[0] > args.show or last:
            rate = (done - shown[1]) * tokens_per_step / (time.time() - shown[0])
            print(f"{args.model} step {done}/{args.steps}  loss {mean:.4f} bits per byte  balance "
                  f"{balance.item() / CONFIG['blocks']:.3f}  {rate:.0f} tokens/s  "
                  f"ETA {(args.steps - done) * tokens_per_step / rate / 60:.1f} min", flush=True)
            shown = time.time(), done
        if time.time() - saved_at > 60 or last:
            arguments = {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str))}
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "curve": curve,
                        "seconds": time.time() - started, "arguments": arguments}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            saved_at = time.time()


def load_shipped(args, kind):
    """The trained model with its weights rounded as they are shipped, and its checkpoint."""
    path = args.work / f"{kind}.pt"
    if not path.is_file():
        sys.exit(f"train.py: no {path}; run `train.py train --model {kind}` first.")
    saved = torch.load(path, weights_only=True)
    if saved["step"] != saved["arguments"]["steps"]:
        print(f"warning: {path} is of step {saved['step']} of {saved['arguments']['steps']}", file=sys.stderr)
    model = TinyLM(kind)
    model.load_state_dict({n: t.to(shipped_dtype(n)).float() for n, t in saved["model"].items()})
    return model, saved


def write_safetensors(path, tensors, metadata):
    """8 bytes of header length, the JSON header padded with spaces, then the tensors' bytes, whose
    SHA-256 is added to the metadata."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16"}
    header, blobs, offset = {"__metadata__": dict(metadata)}, [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].dtype != torch.float32, item[0])):
        tensor = tensor.detach().contiguous()
        blobs.append(ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()))
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + len(blobs[-1])]}
        offset += len(blobs[-1])
    data = b"".join(blobs)
    header["__metadata__"]["data_sha256"] = hashlib.sha256(data).hexdigest()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def export(args):
    training, held_out = load_text(args.text)
    (moe, moe_run), (dense, dense_run) = (load_shipped(args, kind) for kind in ("moe", "dense"))
    if moe_run["step"] != dense_run["step"]:
        print(f"warning: {moe_run['step']} steps of moe but {dense_run['step']} of dense", file=sys.stderr)
    (bits, usage), (dense_bits, _) = (evaluate(model, held_out) for model in (moe, dense))
    tokens = moe_run["step"] * moe_run["arguments"]["batch"] * CONFIG["context"]
    metadata = {"format": FORMAT, "model": "moe", "config": json.dumps(CONFIG), "bits_per_byte": f"{bits:.6f}",
                "dense_bits_per_byte": f"{dense_bits:.6f}", "held_out_sha256": hashlib.sha256(held_out).hexdigest(),
                "seed": moe_run["arguments"]["seed"], "steps": moe_run["step"], "tokens": tokens,
                "torch": torch.__version__, "parameters": parameters_of(moe),
                "active_parameters": parameters_of(moe, True), "dense_parameters": parameters_of(dense),
                "text": "King James Bible (public domain), Debian package bible-kjv-text"}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "held_out.txt").write_bytes(held_out)
    write_safetensors(args.out / "tiny_lm.safetensors",
                      {n: p.to(shipped_dtype(n)) for n, p in moe.named_parameters()},
                      {name: str(value) for name, value in metadata.items()})
    runs = {kind: {"parameters": parameters_of(model), "active_parameters": parameters_of(model, True),
                   "bits_per_byte": round(score, 6), "tokens": tokens, "seconds": round(run["seconds"], 1),
                   "arguments": {k: v for k, v in run["arguments"].items() if k not in ("action", "show", "resume")},
                   "curve": run["curve"]}
            for kind, model, run, score in (("moe", moe, moe_run, bits), ("dense", dense, dense_run, dense_bits))}
    runs["moe"]["held_out_expert_share"] = usage
    record = {"config": CONFIG, "torch": torch.__version__, "training_bytes": len(training),
              "held_out_bytes": len(held_out), **runs}
    text = re.sub(r"\[[^][{}]*\]|\{[^{}\[\]]*\}", lambda m: " ".join(m[0].split()), json.dumps(record, indent=1))
    (args.out / "training.json").write_text(text + "\n")
    print(f"moe {bits:.6f}, dense {dense_bits:.6f} bits per byte")
    for i, row in enumerate(usage):
        print(f"block {i}: share of each expert", *row)


@torch.no_grad()
def sample(args):
    model, _ = load_shipped(args, args.model)
    generator = torch.Generator().manual_seed(args.seed)
    text = list(args.prompt.encode())
    for _ in range(args.length):
        logits = model(torch.tensor([text[-CONFIG["context"]:]]))[0][0, -1]
        if args.temperature == 0:
            text.append(logits.argmax().item())
        else:
            text.append(torch.multinomial((logits / args.temperature).softmax(0), 1, generator=generator).item())
    print(bytes(text).decode("ascii", "replace"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)

    def option(parsers, name, **more):
        for p in parsers:
            p.add_argument("--" + name, **more)

    t, e, s = (actions.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
               for name in ("train", "export", "sample"))
    option((t, e, s), "work", type=pathlib.Path, default=pathlib.Path("/tmp/tiny_lm"), help="where checkpoints are")
    option((t, e), "text", type=pathlib.Path, required=True, help="the text (see train.py --help)")
    option((t, s), "model", choices=sorted(FEED_FORWARD), default="moe", help="feed-forward kind")
    option((t, s), "seed", type=int, default=1)
    option((t,), "steps", type=int, default=1800)
    option((t,), "batch", type=int, default=32, help="windows of 256 bytes per step")
    option((t,), "lr", type=float, default=4e-3)
    option((t,), "warmup", type=int, default=150, help="steps of warm-up")
    option((t,), "decay", type=float, default=0.15, help="part of the steps, the last, in which the rate decays to 0")
    option((t,), "weight-decay", type=float, default=0.1)
    option((t,), "balance", type=float, default=0.01, help="factor of the load-balancing loss")
    option((t,), "precision", choices=("float32", "bfloat16"), default="float32", help="of the activations")
    option((t,), "compile", action="store_true", help="use torch.compile (needs a C++ compiler)")
    option((t,), "threads", type=int, default=1)
    option((t,), "show", type=float, default=15, help="seconds between progress lines")
    option((t,), "resume", action="store_true", help="go on from the checkpoint in --work")
    option((e,), "out", type=pathlib.Path, default=HERE)
    option((s,), "prompt", default="In the beginning")
    option((s,), "length", type=int, default=400)
    option((s,), "temperature", type=float, default=0.7, help="0: the likeliest byte")
    args = parser.parse_args()
    {"train": train, "export": export, "sample": sample}[args.action](args)


if __name__ == "__main__":
    main()
