"""The byte-level language model of train.py, with its kinds of feed-forward block.

Weights are kept in float32.  Activations inside the blocks have the type `compute` (bfloat16 to
train fast where the CPU has AMX, float32 to evaluate); norms, router and the residual stream are
always float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {"vocabulary": 256, "context": 256, "hidden": 128, "blocks": 4, "heads": 4, "experts": 8,
          "top_k": 2, "intermediate": 192, "rope_theta": 10000, "norm_epsilon": 1e-5}


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


class Dispatch(torch.autograd.Function):
    """Copies token t to the row slot[t, i] of each of its k choices; `source` is the token of
    each row.  The gradient is a gather and a sum, much faster than index_add."""
    @staticmethod
    def forward(ctx, x, source, slot):
        ctx.slot = slot
        return x[source]

    @staticmethod
    def backward(ctx, gradient):
        return gradient[ctx.slot].sum(1), None, None


class Collect(torch.autograd.Function):
    """rows[slot], every row being read at most once."""
    @staticmethod
    def forward(ctx, rows, slot):
        ctx.slot, ctx.shape = slot, rows.shape
        return rows[slot]

    @staticmethod
    def backward(ctx, gradient):
        result = gradient.new_zeros(ctx.shape)
        result[ctx.slot.flatten()] = gradient.flatten(0, 1)
        return result, None


# A feed-forward kind takes rows [tokens, hidden] and returns (rows, balance loss, how many
# rows each expert got).

class Dense(nn.Module):
    """Gated SiLU, as wide as the experts that one token of the MoE model visits."""
    def __init__(self, c, out_scale):
        super().__init__()
        width = c["top_k"] * c["intermediate"]
        self.gate, self.up = Linear(c["hidden"], width), Linear(c["hidden"], width)
        self.down = Linear(width, c["hidden"], out_scale)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x)), x.new_zeros(()), torch.tensor([len(x)])


class Experts(nn.Module):
    def __init__(self, c, out_scale):
        super().__init__()
        shape = c["experts"], c["intermediate"], c["hidden"]
        self.gate_proj, self.up_proj = weight(*shape), weight(*shape)
        self.down_proj = weight(shape[0], shape[2], shape[1], scale=out_scale)

    def forward(self, x, counts):
        """Rows sorted by expert, counts[e] of them for expert e."""
        weights = (w.to(x.dtype).unbind() for w in (self.gate_proj, self.up_proj, self.down_proj))
        return torch.cat([F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down)
                          for rows, gate, up, down in zip(x.split(counts), *weights)])


class TopKMoE(nn.Module):
    """Softmax over all experts, the top k renormalised to sum 1, no capacity limit."""
    def __init__(self, c, out_scale):
        super().__init__()
        self.top_k = c["top_k"]
        self.router = Linear(c["hidden"], c["experts"], scale=0.2)
        self.experts = Experts(c, out_scale)

    def route(self, x):
        probability = self.router(x.float()).softmax(-1)                     # [tokens, experts]
        combine, chosen = probability.topk(self.top_k)                       # [tokens, k]
        return combine / combine.sum(-1, keepdim=True), chosen, probability.mean(0)

    def combine(self, rows, weights):
        return (rows.float() * weights[..., None]).sum(1)

    def forward(self, x):
        weights, chosen, mean = self.route(x)
        counts = torch.bincount(chosen.flatten(), minlength=len(mean))
        # In bfloat16 each new matrix shape costs the CPU library a compilation, so the rows of
        # an expert are rounded up to a multiple of 256.
        pad = 256 if x.dtype == torch.bfloat16 else 1
        padded = (counts + pad - 1) // pad * pad
        # Choice n (token n // k) goes to row slot[n]: sorted by expert, each expert's rows after
        # the padded rows of those before it.  Padding rows hold token 0 and are never read.
        order = chosen.flatten().argsort(stable=True)
        shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
        slot = torch.empty_like(order)
        slot[order] = torch.arange(len(order)) + shift.repeat_interleave(counts)
        source = torch.zeros(int(padded.sum()), dtype=torch.long)
        source[slot] = torch.arange(len(slot)) // self.top_k
        slot = slot.view_as(chosen)
        rows = self.experts(Dispatch.apply(x, source, slot), padded.tolist())
        balance = len(mean) * (counts / counts.sum() * mean).sum()
        return self.combine(Collect.apply(rows, slot), weights), balance, counts


FEED_FORWARD = {"moe": TopKMoE, "dense": Dense}


class Block(nn.Module):
    def __init__(self, kind, c):
        super().__init__()
        out_scale = 1 / math.sqrt(2 * c["blocks"])
        self.attention_norm, self.moe_norm = RMSNorm(c["hidden"]), RMSNorm(c["hidden"])
        self.attention = Attention(c, out_scale)
        self.moe = FEED_FORWARD[kind](c, out_scale)

    def attend(self, x, compute):
        x = x + self.attention(self.attention_norm(x).to(compute))
        return x, self.moe_norm(x).to(compute).flatten(0, 1)

    def forward(self, x, compute):
        x, normed = self.attend(x, compute)
        y, balance, counts = self.moe(normed)
        return x + y.view_as(x), balance, counts


class TinyLM(nn.Module):
    def __init__(self, kind, c=CONFIG):
        super().__init__()
        self.embedding = nn.Embedding(c["vocabulary"], c["hidden"])
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.blocks = nn.ModuleList(Block(kind, c) for _ in range(c["blocks"]))
        self.final_norm = RMSNorm(c["hidden"])

    def forward(self, tokens, compute=torch.float32):
        """tokens [batch, length] -> logits, sum of balance losses, rows per expert of each block."""
        x, balances, counts = self.embedding(tokens), [], []
        for block in self.blocks:
            x, balance, count = block(x, compute)
            balances.append(balance)
            counts.append(count)
        return self.output(x, compute), sum(balances), counts

    def output(self, x, compute):
        return F.linear(self.final_norm(x).to(compute), self.embedding.weight.to(compute)).float()


def shipped_dtype(name):
    """Router and norm weights are shipped in float32, all others in bfloat16."""
    return torch.float32 if "router" in name or "norm" in name else torch.bfloat16


def parameters_of(model, active=False):
    """How many weights the model has, or how many one token passes through."""
    return sum(p.numel() * CONFIG["top_k"] // CONFIG["experts"] if active and ".experts." in name else p.numel()
               for name, p in model.named_parameters())
