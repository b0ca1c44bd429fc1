#!/usr/bin/env python3
"""Trains the byte-level language models of this example, on a CPU, offline.

`moe` has Mixture-of-Experts layers (8 experts, top-2) as its feed-forward blocks; `dense` is its
twin with as many *active* parameters.  Both see the same bytes in the same order.  The MoE model
is shipped as tiny_lm.safetensors; of the dense twin only the score is kept.  The other kinds
(switch, omni, ac, stratified, sigma, sigma_without_entropy, topk, pkm) are compared in a smaller
size, see below; relu, in that size, is what MoEfication starts from.

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
not begun to decay.  Leave out --precision bfloat16 where the CPU has no AMX.  The script then
computed only the chosen experts; now it computes all and masks them.

The comparison, for each KIND and SEED (models/*.safetensors are of seed 1):

    flags="--size compared --steps 1000 --batch 4 --lr 3e-3 --warmup 100 --decay 0.3 --scores 4 --compile"
    python3 train.py train --model KIND --seed SEED --text kjv.txt --work /tmp/tiny_lm $flags
    python3 train.py export --size compared --text kjv.txt --work /tmp/tiny_lm
    python3 train.py analyse --text kjv.txt --work /tmp/tiny_lm         # needs matplotlib

Held-out text: every 48th chapter (the 25th, 73rd, ... of the 1189) is taken out of the training
text whole and joined into held_out.txt: a draw over all the books, made by position alone.  The
score is bits per byte on it (see `evaluate`), with the weights rounded as they are shipped and
all arithmetic in float32.  It chooses no checkpoint: the last step's weights are shipped.

Needs PyTorch 2.6 or later and, to draw the comparison, matplotlib.
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

from model import FEED_FORWARD, SIZES, STRATA, TinyLM, dispersion, feature_weights, parameters_of, shipped_dtype, \
    sizes_of

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


def batch_at(data, context, batch, seed, step):
    """The batch of a step depends on the seed and the step only: all models see the same bytes."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(data) - context, (batch, 1), generator=generator)
    windows = data[starts + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def read(model, held_out, seen=None):
    """Yields (nats of each predicted byte, what the blocks' feed-forwards returned) for batches of
    windows.  These start at the bytes 0, 256, 512, ...; each is a context of its own, and every
    byte of the text but the first is predicted once.  The model sees the bytes of `seen`, if given, in
    place of those of the text."""
    targets, context = torch.tensor(list(held_out))[1:], model.config["context"]
    inputs = torch.tensor(list(held_out if seen is None else seen))[:-1]
    count = len(targets)
    whole = count - count % context
    batches = [*zip(inputs[:whole].view(-1, context).split(16), targets[:whole].view(-1, context).split(16)),
               *([(inputs[None, whole:], targets[None, whole:])] if whole < count else [])]   # a short last one
    for x, y in batches:
        logits, fed = model(x)
        yield F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none"), fed


def evaluate(model, held_out, seen=None):
    """Bits per byte, and for each block the share of the rows that each expert got."""
    nats, rows = 0.0, 0
    for losses, fed in read(model, held_out, seen):
        nats += losses.double().sum().item()
        rows = rows + torch.stack([f.counts for f in fed])
    share = [[round(v, 4) for v in block] for block in (rows / rows.sum(1, keepdim=True)).tolist()]
    return nats / math.log(2) / (len(held_out) - 1), share


@torch.no_grad()
def calibrate(model, data):
    """Sets the tables of AC from 16 batches of training text, and has the model score with them.  The
    dispersions are averaged over the batches, weighted by the tokens of each cluster."""
    routers = model.cluster_routers()
    sums = {router: [0.0, 0.0] for router in routers}

    def add(router, inputs):
        spread, count = dispersion(inputs[0], inputs[1], len(router.weight))
        sums[router][0] = sums[router][0] + spread * count[:, None]
        sums[router][1] = sums[router][1] + count

    hooks = [router.register_forward_pre_hook(add) for router in routers]
    for router in routers:
        router.frozen = False
    for i in range(16 if routers else 0):
        model(batch_at(data, model.config["context"], 16, 0, i)[0])
    for hook in hooks:
        hook.remove()
    for router in routers:
        total, count = sums[router]
        router.feature_scale.copy_(feature_weights(total / count.clamp_min(1)[:, None], count))
        router.frozen = True


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
    model = TinyLM(args.model, SIZES[args.size])
    factor = {"balance": args.balance, "entropy": args.entropy, None: 0.0}[
        getattr(FEED_FORWARD[args.model], "regulariser", None)]
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": args.weight_decay},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    checkpoint, first, seconds, curve = checkpoint_of(args, args.model, args.seed), 0, 0.0, []
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if args.resume and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, seconds, curve = saved["step"], saved["seconds"], saved["curve"]
    if args.compile:
        for module in (*model.blocks, model):
            name = "output" if module is model else "forward"
            setattr(module, name, torch.compile(getattr(module, name)))
    print(f"{args.model} {args.seed}: {parameters_of(model)} parameters, {parameters_of(model, True)} active; text "
          f"{len(training)} + {len(held_out)} held-out bytes; steps {first} to {args.steps}", flush=True)

    context, losses = model.config["context"], []
    tokens_per_step = args.batch * context
    started, shown, saved_at = time.time() - seconds, (time.time(), first), time.time()
    for step in range(first, args.steps):
        inputs, targets = batch_at(data, context, args.batch, args.seed, step)
        logits, fed = model(inputs, compute)
        regulariser = sum(f.regulariser for f in fed)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        (loss + factor * regulariser).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses = losses[-99:] + [loss.item() / math.log(2)]
        mean, done, last = sum(losses) / len(losses), step + 1, step + 1 == args.steps
        if done % max(1, args.steps // args.scores) == 0 or last:
            with torch.compiler.set_stance("force_eager"):
                bits, _ = evaluate(model, held_out)
            curve.append({"step": done, "tokens": done * tokens_per_step, "train_bits_per_byte": round(mean, 4),
                          "held_out_bits_per_byte": round(bits, 4)})
            print(f"{args.model} {args.seed} step {done}: held-out {bits:.4f} bits per byte", flush=True)
        if time.time() - shown[0] > args.show or last:
            rate = (done - shown[1]) * tokens_per_step / (time.time() - shown[0])
            print(f"{args.model} {args.seed} step {done}/{args.steps}  loss {mean:.4f} bits per byte  regulariser "
                  f"{regulariser.item() / len(fed):.3f}  {rate:.0f} tokens/s  "
                  f"ETA {(args.steps - done) * tokens_per_step / rate / 60:.1f} min", flush=True)
            shown = time.time(), done
        if time.time() - saved_at > 60 or last:
            arguments = {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str))}
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "curve": curve,
                        "seconds": time.time() - started, "arguments": arguments}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            saved_at = time.time()


def checkpoint_of(args, kind, seed):
    return args.work / args.size / f"{kind}-{seed}.pt"


def load_shipped(args, kind, seed, data):
    """The trained model with its weights rounded as they are shipped, ready to score, and its checkpoint."""
    path = checkpoint_of(args, kind, seed)
    if not path.is_file():
        sys.exit(f"train.py: no {path}; run `train.py train --size {args.size} --model {kind} --seed {seed}` first.")
    saved = torch.load(path, weights_only=True)
    if saved["step"] != saved["arguments"]["steps"]:
        print(f"warning: {path} is of step {saved['step']} of {saved['arguments']['steps']}", file=sys.stderr)
    model = TinyLM(kind, SIZES[args.size])
    model.load_state_dict({n: t.to(shipped_dtype(n)).float() for n, t in saved["model"].items()})
    calibrate(model, data)
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


def metadata_of(model, run, bits, held_out):
    config = model.config | sizes_of(model)
    tokens = run["step"] * run["arguments"]["batch"] * config["context"]
    return {"format": FORMAT, "model": model.kind, "config": json.dumps(config), "bits_per_byte": f"{bits:.6f}",
            "held_out_sha256": hashlib.sha256(held_out).hexdigest(), "seed": run["arguments"]["seed"],
            "steps": run["step"], "tokens": tokens, "torch": torch.__version__, "parameters": parameters_of(model),
            "active_parameters": parameters_of(model, True),
            "text": "King James Bible (public domain), Debian package bible-kjv-text",
            **({"strata": json.dumps(STRATA)} if model.kind == "stratified" else {})}


def write_model(path, model, metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, {n: t.to(shipped_dtype(n)) for n, t in model.tensors().items()},
                      {name: str(value) for name, value in metadata.items()})


def record_of(model, run, bits):
    """What training.json and comparison.json keep of a run."""
    return {"parameters": parameters_of(model), "active_parameters": parameters_of(model, True),
            "bits_per_byte": round(bits, 6),
            "tokens": run["step"] * run["arguments"]["batch"] * model.config["context"],
            "seconds": round(run["seconds"], 1),
            "arguments": {k: v for k, v in run["arguments"].items() if k not in ("action", "show", "resume")},
            "curve": run["curve"]}


def write_json(path, record):
    path.write_text(re.sub(r"\[[^][{}]*\]|\{[^{}\[\]]*\}", lambda m: " ".join(m[0].split()),
                           json.dumps(record, indent=1)) + "\n")


def export(args):
    torch.set_num_threads(1)
    training, held_out = load_text(args.text)
    data = torch.frombuffer(bytearray(training), dtype=torch.uint8)
    if args.size == "compared":
        for kind in args.models:
            model, run = load_shipped(args, kind, args.seed, data)
            bits, _ = evaluate(model, held_out)
            write_model(args.out / "models" / f"{kind}.safetensors", model, metadata_of(model, run, bits, held_out))
            print(f"{kind} {bits:.6f} bits per byte")
        return
    (moe, moe_run), (dense, dense_run) = (load_shipped(args, kind, args.seed, data) for kind in ("moe", "dense"))
    if moe_run["step"] != dense_run["step"]:
        print(f"warning: {moe_run['step']} steps of moe but {dense_run['step']} of dense", file=sys.stderr)
    (bits, usage), (dense_bits, _) = (evaluate(model, held_out) for model in (moe, dense))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "held_out.txt").write_bytes(held_out)
    write_model(args.out / "tiny_lm.safetensors", moe,
                metadata_of(moe, moe_run, bits, held_out)
                | {"dense_bits_per_byte": f"{dense_bits:.6f}", "dense_parameters": parameters_of(dense)})
    runs = {"moe": record_of(moe, moe_run, bits), "dense": record_of(dense, dense_run, dense_bits)}
    runs["moe"]["held_out_expert_share"] = usage
    write_json(args.out / "training.json",
               {"config": moe.config, "torch": torch.__version__, "training_bytes": len(training),
                "held_out_bytes": len(held_out), **runs})
    print(f"moe {bits:.6f}, dense {dense_bits:.6f} bits per byte")
    for i, row in enumerate(usage):
        print(f"block {i}: share of each expert", *row)


def analyse(args):
    from compare import compare                                              # needs matplotlib
    compare(args)


@torch.no_grad()
def sample(args):
    data = torch.frombuffer(bytearray(load_text(args.text)[0]), dtype=torch.uint8) if args.model == "ac" else None
    model, _ = load_shipped(args, args.model, args.seed, data)
    generator = torch.Generator().manual_seed(args.seed)
    text = list(args.prompt.encode())
    for _ in range(args.length):
        logits = model(torch.tensor([text[-model.config["context"]:]]))[0][0, -1]
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

    t, e, a, s = (actions.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
                  for name in ("train", "export", "analyse", "sample"))
    option((t, e, a, s), "work", type=pathlib.Path, default=pathlib.Path("/tmp/tiny_lm"), help="where checkpoints are")
    option((t, e, a, s), "text", type=pathlib.Path, default=pathlib.Path("kjv.txt"), help="the text (see --help)")
    option((t, e, s), "size", choices=sorted(SIZES), default="shipped", help="experts of width 192, or of 64")
    a.set_defaults(size="compared")
    option((e, a), "models", nargs="+", choices=sorted(FEED_FORWARD), default=sorted(FEED_FORWARD))
    option((t, s), "model", choices=sorted(FEED_FORWARD), default="moe", help="feed-forward kind")
    option((t, e, s), "seed", type=int, default=1)
    option((t,), "steps", type=int, default=1800)
    option((t,), "batch", type=int, default=32, help="windows of 256 bytes per step")
    option((t,), "lr", type=float, default=4e-3)
    option((t,), "warmup", type=int, default=150, help="steps of warm-up")
    option((t,), "decay", type=float, default=0.15, help="part of the steps, the last, in which the rate decays to 0")
    option((t,), "weight-decay", type=float, default=0.1)
    option((t,), "balance", type=float, default=0.01, help="factor of the load-balancing loss")
    option((t,), "entropy", type=float, default=0.001, help="factor of sigma's entropy term")
    option((t,), "scores", type=int, default=20, help="how often to score the held-out text")
    option((t,), "precision", choices=("float32", "bfloat16"), default="float32", help="of the activations")
    option((t,), "compile", action="store_true", help="use torch.compile (needs a C++ compiler)")
    option((t,), "threads", type=int, default=1)
    option((t,), "show", type=float, default=15, help="seconds between progress lines")
    option((t,), "resume", action="store_true", help="go on from the checkpoint in --work")
    option((e, a), "out", type=pathlib.Path, default=HERE)
    option((s,), "prompt", default="In the beginning")
    option((s,), "length", type=int, default=400)
    option((s,), "temperature", type=float, default=0.7, help="0: the likeliest byte")
    args = parser.parse_args()
    {"train": train, "export": export, "analyse": analyse, "sample": sample}[args.action](args)


if __name__ == "__main__":
    main()
