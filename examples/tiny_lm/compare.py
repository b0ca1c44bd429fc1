"""Compares the trained models of all kinds: `train.py analyse`.

Reads every KIND-SEED.pt that is complete and writes models/comparison.json and comparison.svg.  What was
computed of a run is kept beside its checkpoint, so that a second call reads only the new ones.  Runs whose
checkpoints are not there stay in the comparison as models/comparison.json has them.
All numbers are of the held-out text, with the weights rounded as they are shipped and the tables of AC frozen.
"""

import json
import math
import statistics

import torch

from model import dispersion, feature_weights
from train import evaluate, load_shipped, load_text, read, record_of, write_json

# Each with its name and its colour, in the order of the picture.
KINDS = {"dense": ("dense", "#777777"), "topk": ("top-K", "#e377c2"), "pkm": ("PKM", "#17becf"),
         "moe": ("top-2", "#1f77b4"), "sigma": ("sigma", "#9467bd"),
         "sigma_without_entropy": ("sigma without\nentropy term", "#bcbd22"), "ac": ("AC", "#d62728"),
         "stratified": ("stratified", "#2ca02c"), "switch": ("Switch", "#ff7f0e"), "omni": ("Omni", "#8c564b")}
CORRUPTED = 0.01, 0.05, 0.1


# ------------------------------------------------------------------------- what is measured

def corrupt(text, share):
    """Replaces this share of the bytes, drawn once for all models, by random bytes."""
    generator = torch.Generator().manual_seed(1)
    old = torch.tensor(list(text))
    hit = torch.rand(len(text), generator=generator) < share
    return bytes(torch.where(hit, torch.randint(256, (len(text),), generator=generator), old).tolist())


def information(a, b, experts):
    """Mutual information of two lists of expert ids, and their mean entropy, in nats."""
    joint = torch.bincount(a * experts + b, minlength=experts * experts).view(experts, experts).double() / len(a)
    entropy = [-(p[p > 0] * p[p > 0].log()).sum().item() for p in (joint.flatten(), joint.sum(0), joint.sum(1))]
    return entropy[1] + entropy[2] - entropy[0], (entropy[1] + entropy[2]) / 2


def depth_correlation(a, b, experts):
    """How far the expert choice in one block tells that in the next: the normalised mutual information less
    what shuffled choices give, 0 for independent and 1 for equal up to names; and Cohen's kappa, which
    counts only equal ids."""
    mutual, entropy = information(a, b, experts)
    generator = torch.Generator().manual_seed(1)
    chance = statistics.mean(information(a, b[torch.randperm(len(b), generator=generator)], experts)[0]
                             for _ in range(5))
    p, q = (torch.bincount(x, minlength=experts).double() / len(x) for x in (a, b))
    equal, by_chance = (a == b).double().mean().item(), (p @ q).item()
    return (mutual - chance) / (entropy - chance), (equal - by_chance) / (1 - by_chance)


def tightness(x, labels, experts):
    """Mean absolute deviation within the clusters over that about the mean of all, averaged over the
    features: 1 when the clusters say nothing of x, smaller when they are tight."""
    within, count = dispersion(x, labels, experts)
    overall, _ = dispersion(x, torch.zeros_like(labels), 1)
    return ((count / count.sum()) @ within / overall[0]).mean().item()


def ranks(x):
    """Ranks, equal values sharing their mean rank."""
    _, place, count = x.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2)[place].double()


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()


def used_alike(shares):
    """How evenly each block uses its experts: as many of them, used alike, have the entropy of these shares,
    over the number of the experts.  1 when all are used alike."""
    return [round(math.exp(-sum(v * math.log(v) for v in block if v > 0)) / len(block), 4) for block in shares]


@torch.no_grad()
def measure(model, run, data, held_out):
    experts, kind = model.config["experts"], model.kind
    inputs = [[] for _ in model.blocks]
    watched = kind in ("moe", "ac")
    hooks = [block.moe.router.register_forward_pre_hook(lambda _, seen, i=i: inputs[i].append(seen[0]))
             for i, block in enumerate(model.blocks)] if watched else []
    nats, fed = zip(*read(model, held_out))
    for hook in hooks:
        hook.remove()
    nats = torch.cat(nats)
    first, passes = (torch.stack([torch.cat([getattr(f[i], name) for f in fed]) for i in range(len(model.blocks))])
                     for name in ("first", "passes"))
    bits = nats.double().sum().item() / math.log(2) / len(nats)
    result = record_of(model, run, bits) | {"model": kind, "seed": run["arguments"]["seed"]}
    result["corrupted_bits_per_byte"] = {
        str(share): round(evaluate(model, held_out, corrupt(held_out, share))[0], 6) for share in CORRUPTED}
    if kind in ("dense", "topk"):
        return result
    counts = sum(torch.stack([f.counts for f in batch]) for batch in fed)
    shares = (counts / counts.sum(1, keepdim=True)).tolist()
    if kind == "pkm":
        return result | {"rows_read": (counts > 0).sum(1).tolist(), "used_alike": used_alike(shares)}
    result["expert_share"] = [[round(v, 4) for v in block] for block in shares]
    result["used_alike"] = used_alike(result["expert_share"])
    pairs = [depth_correlation(a, b, experts) for a, b in zip(first, first[1:])]
    result["depth_information"], result["depth_kappa"] = ([round(v, 4) for v in values] for values in zip(*pairs))
    if watched:
        rows = []
        for i in range(1, len(model.blocks)):
            x, before, own = torch.cat(inputs[i]), first[i - 1], first[i]
            scaled = x * feature_weights(*dispersion(x, before, experts))[before]
            rows.append([tightness(v, labels, experts) for v in (x, scaled) for labels in (before, own)])
        names = "before", "own", "before_scaled", "own_scaled"
        result["tightness"] = {name: [round(v, 4) for v in column] for name, column in zip(names, zip(*rows))}
    if kind == "ac":
        for router in model.cluster_routers():
            router.frozen = False
        result["batch_statistics_bits_per_byte"] = round(evaluate(model, held_out)[0], 6)
    if kind == "stratified":
        mean = passes.double().mean(0)
        result["passes"] = [round(v, 4) for v in passes.double().mean(1).tolist()]
        result["passes_by_loss_decile"] = [round(mean[part].mean().item(), 4)
                                           for part in nats.argsort(stable=True).tensor_split(10)]
        result["block_passes_by_loss_decile"] = [
            [round(block[part].double().mean().item(), 4) for part in nats.argsort(stable=True).tensor_split(10)]
            for block in passes]
        result["passes_loss_pearson"] = round(correlation(mean, nats), 4)
        result["passes_loss_spearman"] = round(correlation(ranks(mean), ranks(nats)), 4)
    return result


# --------------------------------------------------------------------------------- together

def spread(values):
    return {"mean": round(statistics.mean(values), 5),
            "sd": round(statistics.stdev(values), 5) if len(values) > 1 else None, "each": list(values)}


def mean_of(values):
    return sum(values) / len(values)


def summarise(runs):
    summary = {"seeds": [run["seed"] for run in runs], "parameters": runs[0]["parameters"],
               "active_parameters": runs[0]["active_parameters"], "seconds": spread([run["seconds"] for run in runs]),
               "bits_per_byte": spread([run["bits_per_byte"] for run in runs])}
    summary["corrupted_increase"] = {share: spread([round(run["corrupted_bits_per_byte"][share] - run["bits_per_byte"], 6)
                                                    for run in runs]) for share in map(str, CORRUPTED)}
    for name in ("used_alike", "rows_read", "depth_information", "depth_kappa", "passes"):
        if name in runs[0]:
            summary[name] = spread([round(mean_of(run[name]), 4) for run in runs])
    for name in ("batch_statistics_bits_per_byte", "passes_loss_pearson", "passes_loss_spearman"):
        if name in runs[0]:
            summary[name] = spread([run[name] for run in runs])
    if "tightness" in runs[0]:
        summary["tightness"] = {name: spread([round(mean_of(run["tightness"][name]), 4) for run in runs])
                                for name in runs[0]["tightness"]}
    return summary


def compare(args):
    torch.set_num_threads(1)
    training, held_out = load_text(args.text)
    data = torch.frombuffer(bytearray(training), dtype=torch.uint8)
    path, earlier = args.out / "models" / "comparison.json", {}
    if path.is_file():
        earlier = json.loads(path.read_text())
        for run in earlier["runs"]:
            if "expert_share" in run:
                run["used_alike"] = used_alike(run["expert_share"])
    runs, config = {(run["model"], run["seed"]): run for run in earlier.get("runs", [])}, earlier.get("config")
    for kind in (kind for kind in KINDS if kind in args.models):
        for checkpoint in sorted((args.work / args.size).glob(f"{kind}-[0-9]*.pt")):
            kept = checkpoint.with_suffix(".json")
            if not kept.is_file() or kept.stat().st_mtime < checkpoint.stat().st_mtime:
                saved = torch.load(checkpoint, weights_only=True)
                if saved["step"] != saved["arguments"]["steps"]:
                    print(f"{checkpoint.stem}: not complete, left out")
                    continue
                model, run = load_shipped(args, kind, saved["arguments"]["seed"], data)
                write_json(kept, measure(model, run, data, held_out) | {"config": model.config})
            run = json.loads(kept.read_text())
            config = run.pop("config")
            runs[kind, run["seed"]] = run
            print(f"{checkpoint.stem}: {run['bits_per_byte']:.4f} bits per byte", flush=True)
    runs = sorted(runs.values(), key=lambda run: (list(KINDS).index(run["model"]), run["seed"]))
    kinds = {kind: summarise([run for run in runs if run["model"] == kind])
             for kind in KINDS if any(run["model"] == kind for run in runs)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path,
               {"config": config, "torch": torch.__version__, "training_bytes": len(training),
                "held_out_bytes": len(held_out), "kinds": kinds, "runs": runs})
    draw(args.out / "comparison.svg", kinds, runs)


# ------------------------------------------------------------------------------ the picture

def draw(path, kinds, runs):
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "switchyard", "font.size": 9,
                         "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
                         "axes.titlelocation": "left", "font.family": "sans-serif"})
    title, colour = ({kind: values[i] for kind, values in KINDS.items()} for i in (0, 1))
    figure, ((score, use), (depth, noise), (passes, rest)) = plt.subplots(3, 2, figsize=(9, 9.9), layout="constrained")

    def name_ticks(panel, kinds):
        panel.set_xticks(range(len(kinds)), [title[kind] for kind in kinds], rotation=45, ha="right",
                         rotation_mode="anchor", fontsize=8)

    names = list(kinds)
    for i, kind in enumerate(names):
        each = kinds[kind]["bits_per_byte"]["each"]
        score.plot([i] * len(each), each, "o", color=colour[kind], markersize=5, alpha=0.8)
        score.plot([i - 0.25, i + 0.25], [kinds[kind]["bits_per_byte"]["mean"]] * 2, color=colour[kind])
    name_ticks(score, names)
    score.set_title("Bits per byte, held out: each seed, and the mean")

    routing = [kind for kind in names if "used_alike" in kinds[kind]]
    for i, kind in enumerate(routing):
        each = kinds[kind]["used_alike"]["each"]
        use.plot([i] * len(each), each, "o", color=colour[kind], markersize=5, alpha=0.8)
        use.plot([i - 0.25, i + 0.25], [kinds[kind]["used_alike"]["mean"]] * 2, color=colour[kind])
    use.axhline(1, color="#bbbbbb", linewidth=0.8)
    name_ticks(use, routing)
    use.set_title("How evenly the experts (of PKM, the rows)\nare used: 1 is all alike")

    routed = [kind for kind in names if "depth_information" in kinds[kind]]
    for i, kind in enumerate(routed):
        for name, shift, marker in (("depth_information", -0.12, "o"), ("depth_kappa", 0.12, "s")):
            each = kinds[kind][name]["each"]
            depth.plot([i + shift] * len(each), each, marker, color=colour[kind], markersize=5,
                       fillstyle="full" if marker == "o" else "none")
    depth.axhline(0, color="#bbbbbb", linewidth=0.8)
    name_ticks(depth, routed)
    depth.set_title("First choices of neighbouring blocks:\ninformation (filled), equal ids (open); 0 is chance")

    for kind in names:
        increase = kinds[kind]["corrupted_increase"]
        noise.plot([0, *(100 * float(share) for share in increase)], [0, *(v["mean"] for v in increase.values())],
                   "o-", color=colour[kind], markersize=4, label=title[kind].replace("\n", " "), linewidth=1.2)
    noise.set_xlabel("input bytes replaced, %")
    noise.set_title("Added bits per byte on corrupted input")
    rest.legend(*noise.get_legend_handles_labels(), loc="center", frameon=False, ncols=2)
    rest.axis("off")

    for run in runs:
        if run["model"] == "stratified":
            for i, block in enumerate(run["block_passes_by_loss_decile"]):
                passes.plot(range(1, 11), block, color="#aaaaaa", linewidth=0.7,
                            label="one block of one seed" if i == 0 and run["seed"] == 1 else None)
    for run in runs:
        if run["model"] == "stratified":
            passes.plot(range(1, 11), run["passes_by_loss_decile"], "o-", color=colour["stratified"], markersize=4,
                        linewidth=1.5, label="mean of the blocks, each seed" if run["seed"] == 1 else None)
    passes.set_xlabel("decile of the byte's loss, 10: the least expected")
    passes.set_xticks(range(1, 11))
    passes.set_title("Stratified: passes of a byte through a block")
    passes.legend(frameon=False, fontsize=8)

    figure.savefig(path, metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
