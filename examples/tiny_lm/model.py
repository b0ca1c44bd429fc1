"""The byte-level language model of train.py, with its kinds of feed-forward block.

Weights are kept in float32.  Activations inside the blocks have the type `compute` (bfloat16 to
train fast where the CPU has AMX, float32 to evaluate); norms, router and the residual stream are
always float32.

Every Mixture-of-Experts kind computes all experts for all tokens and multiplies by gates that are
0 for those not chosen.  At this size that is less work than sorting the tokens by expert, and the
result is the same.  No token is ever dropped.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {"vocabulary": 256, "context": 256, "hidden": 128, "blocks": 4, "heads": 4, "experts": 8,
          "top_k": 2, "intermediate": 192, "rope_theta": 10000, "norm_epsilon": 1e-5}
COMPARED = CONFIG | {"intermediate": 64}   # the smaller experts of the models that compare the routers
SIZES = {"shipped": CONFIG, "compared": COMPARED}
STRATA = 4, 4
KEYS, HEADS, KEPT_ROWS = 36, 8, 12         # of a product-key memory: half keys, heads, rows that a head keeps
KEPT_UNITS = 32                            # of the 128 inner values that dense has in the smaller size


def weight(*shape, scale=1.0):
    """A weight [.., out, in] with standard deviation scale / sqrt(in)."""
    return nn.Parameter(torch.randn(*shape) * (scale / math.sqrt(shape[-1])))


class Linear(nn.Module):
    def __init__(self, fan_in, fan_out, scale=1.0):
        super().__init__()
        self.weight = weight(fan_out, fan_in, scale=scale)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + CONFIG["norm_epsilon"]) * self.weight


class Attention(nn.Module):
    def __init__(self, c, out_scale):
        super().__init__()
        self.heads, self.head = c["heads"], c["hidden"] // c["heads"]
        self.q, self.k, self.v = (Linear(c["hidden"], c["hidden"]) for _ in range(3))
        self.o = Linear(c["hidden"], c["hidden"], out_scale)
        half = self.head // 2
        angle = torch.arange(c["context"]).double()[:, None] * c["rope_theta"] ** (-torch.arange(half).double() / half)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)
        self.register_buffer("mask", torch.full((c["context"],) * 2, -math.inf).triu(1), persistent=False)

    def rotate(self, x):
        cos, sin = (t[: x.shape[-2]].to(x.dtype) for t in (self.cos, self.sin))
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, self.head)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = self.rotate(q) @ self.rotate(k).transpose(2, 3) / math.sqrt(self.head)
        scores = scores.float() + self.mask[: x.shape[1], : x.shape[1]]
        y = scores.softmax(-1).to(x.dtype) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class Fed(NamedTuple):
    """What a feed-forward block returns.  T is the number of tokens."""
    x: torch.Tensor                  # [T, hidden] the residual stream after the block
    regulariser: torch.Tensor        # the loss that keeps the experts in use
    counts: torch.Tensor             # [experts] tokens of each
    first: torch.Tensor              # [T] the first choice of each token (stratified: in its first pass)
    passes: torch.Tensor             # [T] how often the token went through experts


# A feed-forward kind takes the normalised rows u [T, hidden] of type `compute`, the residual stream
# x [T, hidden] that they came from, and `before`, the first choices [T] of the block before.

class Dense(nn.Module):
    """Gated SiLU, as wide as the experts that one token of a top-2 model visits."""
    def __init__(self, c, out_scale, *_):
        super().__init__()
        width = c["top_k"] * c["intermediate"]
        self.gate, self.up = Linear(c["hidden"], width), Linear(c["hidden"], width)
        self.down = Linear(width, c["hidden"], out_scale)

    def keep(self, inner):
        return inner

    def forward(self, u, x, before):
        y = self.down(self.keep(F.silu(self.gate(u)) * self.up(u)))
        none = torch.zeros(len(u), dtype=torch.long)
        return Fed(x + y, x.new_zeros(()), torch.tensor([len(u)]), none, none + 1)


class TopKUnits(Dense):
    """Dense with the top-K activation: only the largest inner values of a token go on, and those that are
    equal to the least of them.  Source: Csordas et al. 2023, Approximating Two-Layer Feedforward Networks.
    Only the choice is theirs; the gated block is that of the other kinds."""
    def keep(self, inner):
        return torch.where(inner >= inner.topk(KEPT_UNITS).values[:, -1:], inner, 0)


class Relu(nn.Module):
    """The plain block that MoEfication was published for: ReLU, four times as wide as the model."""
    def __init__(self, c, out_scale, *_):
        super().__init__()
        width = 4 * c["hidden"]
        self.sizes = {"intermediate": width}
        self.up, self.down = Linear(c["hidden"], width), Linear(width, c["hidden"], out_scale)

    def forward(self, u, x, before):
        none = torch.zeros(len(u), dtype=torch.long)
        return Fed(x + self.down(F.relu(self.up(u))), x.new_zeros(()), torch.tensor([len(u)]), none, none + 1)


class ProductKeyMemory(nn.Module):
    """A table of rows of which each head adds the best, by ReLU of their scores.  The score of row
    i * KEYS + j is the product of the token's first half with the first key i and of its second half with
    the second key j.  All heads read one table.  Initialised as published.
    Source: Csordas et al. 2023, Approximating Two-Layer Feedforward Networks, with heads that choose each for
    itself as in Lample et al. 2019, Large Memory Layers with Product Keys."""
    sizes = {"experts": KEYS * KEYS, "top_k": HEADS * KEPT_ROWS, "intermediate": 1}

    def __init__(self, c, *_):
        super().__init__()
        depth_scale = math.sqrt(2 / c["blocks"])
        self.router = ProductKeys(c["hidden"], depth_scale)
        self.experts = Rows(KEYS * KEYS, c["hidden"], depth_scale)

    def forward(self, u, x, before):
        rows, scores = self.router(u.float())
        gates = x.new_zeros(len(u), KEYS * KEYS).scatter_add(1, rows, scores.relu())
        counts = torch.bincount(rows.flatten(), minlength=KEYS * KEYS)
        return Fed(x + self.experts(u, gates), x.new_zeros(()), counts, rows[:, 0], torch.ones_like(rows[:, 0]))


class ProductKeys(nn.Module):
    """The rows [T, HEADS * KEPT_ROWS] that the heads choose for x [T, hidden], head by head, and their scores.
    The best sums of a head are among those of its best first keys and its best second keys."""
    def __init__(self, hidden, depth_scale):
        super().__init__()
        self.first_keys, self.second_keys = (
            nn.Parameter(torch.randn(HEADS, KEYS, hidden // 2) * (depth_scale / math.sqrt(hidden))) for _ in range(2))

    def forward(self, x):
        (u, i), (v, j) = (F.linear(half, keys.flatten(0, 1)).unflatten(1, keys.shape[:2]).topk(KEPT_ROWS)
                          for half, keys in zip(x.chunk(2, 1), (self.first_keys, self.second_keys)))
        scores, best = (u[..., :, None] + v[..., None, :]).flatten(2).topk(KEPT_ROWS)
        rows = (i[..., :, None] * KEYS + j[..., None, :]).flatten(2).gather(2, best)
        return rows.flatten(1), scores.flatten(1)


class Rows(nn.Module):
    """The sum over rows of gates[t, row] * row.  With values of standard deviation depth_scale / sqrt(rows)."""
    def __init__(self, rows, hidden, depth_scale):
        super().__init__()
        self.values = nn.Parameter(torch.randn(rows, hidden) * (depth_scale / math.sqrt(rows)))

    def forward(self, x, gates):
        return gates.to(x.dtype) @ self.values.to(x.dtype)


class Experts(nn.Module):
    def __init__(self, c, out_scale):
        super().__init__()
        shape = c["experts"], c["intermediate"], c["hidden"]
        self.gate_proj, self.up_proj = weight(*shape), weight(*shape)
        self.down_proj = weight(shape[0], shape[2], shape[1], scale=out_scale)

    def forward(self, x, gates):
        """The sum over experts of gates[t, e] * expert e of x[t].  With fewer gates than experts
        they are those of the last experts."""
        gate, up, down = (w[-gates.shape[1]:].to(x.dtype) for w in (self.gate_proj, self.up_proj, self.down_proj))
        h = F.silu(F.linear(x, gate.flatten(0, 1))) * F.linear(x, up.flatten(0, 1))
        h = h.unflatten(1, gate.shape[:2]) * gates[..., None].to(x.dtype)
        return F.linear(h.flatten(1), down.transpose(0, 1).flatten(1))


class Router(nn.Module):
    """Logits [T, experts] of x [T, hidden], without a bias."""
    def __init__(self, experts, hidden):
        super().__init__()
        self.weight = weight(experts, hidden, scale=0.2)

    def forward(self, x, before=None):
        return F.linear(x, self.weight)


def one_hot(chosen, experts):
    return (chosen[..., None] == torch.arange(experts)).float()


def take_best(scores, top_k):
    """The ids [T, top_k] of the largest scores, best first.  Of equal ones the lower id is first."""
    chosen = []
    for _ in range(top_k):
        chosen.append(scores.argmax(-1))
        scores = scores.masked_fill(one_hot(chosen[-1], scores.shape[1]).bool(), -math.inf)
    return torch.stack(chosen, 1)


def balance_loss(probability, hits):
    """Fedus et al. 2021, Switch Transformers, section 2.2: 1 when all experts are used alike."""
    return hits.shape[-1] * (hits.mean(0) / hits.sum(1).mean() * probability.mean(0)).sum()


class TopKMoE(nn.Module):
    """Softmax over all experts; the top k, renormalised to sum 1."""
    top_k = None                                                             # that of the config
    regulariser = "balance"

    def __init__(self, c, out_scale, block, shared_router):
        super().__init__()
        self.top_k = type(self).top_k or c["top_k"]
        self.router = self.make_router(c, block, shared_router)
        self.experts = Experts(c, out_scale)

    def make_router(self, c, block, shared_router):
        return Router(c["experts"], c["hidden"])

    def weigh(self, logits, chosen):
        return logits.gather(1, chosen).softmax(-1)          # the same as the softmax over all, renormalised

    def regularise(self, logits, hits):
        return balance_loss(logits.softmax(-1), hits)

    def forward(self, u, x, before):
        logits = self.router(u.float(), before)
        chosen = take_best(logits, self.top_k)
        hits = one_hot(chosen, logits.shape[1])                              # [T, k, experts]
        gates = (hits * self.weigh(logits, chosen)[..., None]).sum(1)
        hits = hits.sum(1)
        return Fed(x + self.experts(u, gates), self.regularise(logits, hits), hits.sum(0), chosen[:, 0],
                   torch.ones_like(chosen[:, 0]))


class Switch(TopKMoE):
    """One expert, weighted by its softmax score.  Source: Fedus et al. 2021, Switch Transformers."""
    top_k = 1

    def weigh(self, logits, chosen):
        return logits.softmax(-1).gather(1, chosen)


class Omni(Switch):
    """Switch with one router weight for all blocks.  Source: Gu et al. 2025, Omni-Router."""
    def make_router(self, c, block, shared_router):
        return shared_router


class Sigma(TopKMoE):
    """Independent sigmoid scores, not normalised.  Source: Csordas et al. 2023, Approximating Two-Layer
    Feedforward Networks.  Only the router is theirs; the experts are those of the other kinds."""
    regulariser = "entropy"

    def weigh(self, logits, chosen):
        return logits.gather(1, chosen).sigmoid()

    def regularise(self, logits, hits):
        """Negative entropy of the mean softmax."""
        mean = logits.softmax(-1).mean(0)
        return (mean * mean.log()).sum()


class SigmaWithoutEntropy(Sigma):
    """The same, of which nothing keeps the experts in use."""
    regulariser = None


def dispersion(x, labels, experts):
    """For each cluster and feature, the mean absolute deviation from the cluster's mean
    [experts, hidden], and the number of tokens [experts] of each cluster."""
    members = one_hot(labels, experts)                                       # [T, experts]
    count = members.sum(0)
    share = members / count.clamp_min(1)
    return share.T @ (x - (share.T @ x)[labels]).abs(), count


def feature_weights(spread, count):
    """Large where a cluster is tight.  Empty clusters are in no mean and get the weight 1.
    Source: Nielsen et al. 2025, Tight Clusters Make Specialized Experts, the language model's form."""
    live = (count > 0).float()[:, None]
    w = 1 / (spread + 1e-4)
    w = torch.minimum(w, 10 * (w * live).sum() / (live.sum() * w.shape[1]))
    return torch.where(live > 0, w / ((w * live).sum(0) / live.sum()), 1.0)


class ClusterRouter(Router):
    """Router rows of norm 1; features scaled by the cluster that the token was in one block before.
    The statistics are those of the tokens at hand, or, with `frozen`, of the training text: batch
    statistics see bytes that come later in the text."""
    def __init__(self, experts, hidden):
        super().__init__(experts, hidden)
        self.register_buffer("feature_scale", torch.ones(experts, hidden))
        self.frozen = False

    def scale(self, x, before):
        if self.frozen:
            return self.feature_scale
        return feature_weights(*dispersion(x, before, len(self.weight)))

    def forward(self, x, before):
        with torch.no_grad():
            scale = self.scale(x, before)[before]
        return F.linear(x * scale, F.normalize(self.weight, dim=1, eps=1e-4))


class AdaptiveClustering(TopKMoE):
    """Top-2 whose router knows the block before; in the first block, plain top-2."""
    def make_router(self, c, block, shared_router):
        return (ClusterRouter if block else Router)(c["experts"], c["hidden"])


class Stratified(nn.Module):
    """Experts in strata; a token moves up by its first choice until it leaves the last stratum.
    The second choice is the plain second best.  A stratum's norm also changes the residual that the
    next pass adds, as in the authors' code.
    Source: Xu et al. 2023, Towards Being Parameter-Efficient."""
    regulariser = "balance"

    def __init__(self, c, out_scale, *_):
        super().__init__()
        self.top_k, self.below = c["top_k"], [sum(STRATA[:i]) for i in range(len(STRATA))]
        self.router = nn.ModuleList(Router(c["experts"] - below, c["hidden"]) for below in self.below)
        self.norm = nn.ModuleList(nn.LayerNorm(c["hidden"], eps=1e-5) for _ in STRATA)
        self.experts = Experts(c, out_scale)

    def forward(self, u, x, before):
        h, r, state, passes = u, x, 0, torch.zeros(len(x), dtype=torch.long)
        counts, losses, ran, first = 0.0, 0.0, 0.0, None
        for i, (router, norm, below) in enumerate(zip(self.router, self.norm, self.below)):
            here = torch.ones(len(x), dtype=torch.bool) if i == 0 else state == i
            logits = router(h.float())
            chosen = take_best(logits, self.top_k)
            hits = one_hot(chosen, logits.shape[1]) * here[:, None, None]
            gates = (hits * logits.gather(1, chosen).softmax(-1)[..., None]).sum(1)
            y = r + self.experts(h.to(u.dtype), gates)
            h = torch.where(here[:, None], y, h) if i else y
            # Balance among the tokens of this pass, by their first choices.
            number = here.sum().clamp_min(1)
            probability = (logits.softmax(-1) * here[:, None]).sum(0) / number
            losses = losses + hits.shape[-1] * (hits[:, 0].sum(0) / number * probability).sum()
            ran = ran + here.any().float()
            counts = counts + F.pad(hits.sum((0, 1)), (below, 0))
            first = chosen[:, 0] if first is None else first
            passes = passes + here
            above = sum((chosen[:, 0] + below >= edge).long() for edge in self.below[1:]) + 1
            state = torch.where(here, above, state) if i else above
            h = torch.where((state == i + 1)[:, None], norm(h), h)
            r = h
        return Fed(h, losses / ran, counts, first, passes)


FEED_FORWARD = {"moe": TopKMoE, "dense": Dense, "relu": Relu, "switch": Switch, "omni": Omni, "sigma": Sigma,
                "ac": AdaptiveClustering, "stratified": Stratified, "pkm": ProductKeyMemory, "topk": TopKUnits,
                "sigma_without_entropy": SigmaWithoutEntropy}


class Block(nn.Module):
    def __init__(self, kind, c, index, shared_router):
        super().__init__()
        out_scale = 1 / math.sqrt(2 * c["blocks"])
        self.attention_norm, self.moe_norm = RMSNorm(c["hidden"]), RMSNorm(c["hidden"])
        self.attention = Attention(c, out_scale)
        self.moe = FEED_FORWARD[kind](c, out_scale, index, shared_router)

    def forward(self, x, before, compute):
        x = x + self.attention(self.attention_norm(x).to(compute))
        fed = self.moe(self.moe_norm(x).to(compute).flatten(0, 1), x.flatten(0, 1), before)
        return fed._replace(x=fed.x.view_as(x))


class TinyLM(nn.Module):
    def __init__(self, kind, c=CONFIG):
        super().__init__()
        self.kind, self.config = kind, c
        self.embedding = nn.Embedding(c["vocabulary"], c["hidden"])
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.router = Router(c["experts"], c["hidden"]) if kind == "omni" else None
        self.blocks = nn.ModuleList(Block(kind, c, i, self.router) for i in range(c["blocks"]))
        self.final_norm = RMSNorm(c["hidden"])

    def forward(self, tokens, compute=torch.float32):
        """tokens [batch, length] -> logits, and what each block's feed-forward returned."""
        x, before, fed = self.embedding(tokens), None, []
        for block in self.blocks:
            fed.append(block(x, before, compute))
            x, before = fed[-1].x, fed[-1].first
        return self.output(x, compute), fed

    def output(self, x, compute):
        return F.linear(self.final_norm(x).to(compute), self.embedding.weight.to(compute)).float()

    def cluster_routers(self):
        return [m for m in self.modules() if isinstance(m, ClusterRouter)]

    def tensors(self):
        """Those of the weight file, each once: parameters and the tables of AC."""
        return dict(self.named_parameters()) | {n: b for n, b in self.named_buffers() if "feature_scale" in n}


def shipped_dtype(name):
    """Router and norm weights are shipped in float32, all others in bfloat16."""
    return torch.float32 if "router" in name or "norm" in name else torch.bfloat16


def sizes_of(model):
    """The sizes of a block, as the weight file has them.  top_k counts the experts that one pass visits."""
    c, feed_forward = model.config, model.blocks[0].moe
    return {"experts": c["experts"], "top_k": getattr(feed_forward, "top_k", c["top_k"]),
            "intermediate": c["intermediate"], **getattr(feed_forward, "sizes", {})}


def parameters_of(model, active=False):
    """How many weights the model has, or how many one token meets in one pass through each block."""
    sizes = sizes_of(model)
    met = {".experts.": sizes["top_k"] / sizes["experts"]}
    if model.kind == "topk":
        met[".down."] = KEPT_UNITS / model.blocks[0].moe.down.weight.shape[1]
    return sum(round(p.numel() * next((share for part, share in met.items() if active and part in name), 1))
               for name, p in model.named_parameters())
