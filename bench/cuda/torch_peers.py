#!/usr/bin/env python3
"""Times what PyTorch users have for the experts of a layer, from tokens to output, on this machine's GPU.

Contenders of one shape take turns in one run, on random data, and their outputs are compared:
  torch        router, sort, gather, torch's grouped_mm, activation, grouped_mm, weighted sum
  transformers the same through transformers' grouped_mm experts, where it is installed
  fused        a fused kernel of the form f(tokens, gate_up, down, weights, ids), named with --fused module:function;
               without it vLLM's fused_experts, where that is installed
  dense        two plain products with as many rows: the ceiling, no layer

bench/run_gpu runs it beside our own bench. Nothing is installed for it; what is not there is left out, and said so.
"""

import argparse
import importlib
import json
import os
import statistics
import time
import types

import torch

# hidden, intermediate, experts, top_k
SHAPES = {
    "mixtral_8x7b": (4096, 14336, 8, 2),
    "olmoe_1b_7b": (2048, 1024, 64, 8),
    "gpt_oss_20b": (2880, 2880, 32, 4),
    "qwen3_30b_a3b": (2048, 768, 128, 8),
}
TOKENS = (512, 2048, 8192, 32768)
GROUPED = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


class Layer:
    """One layer's weights, and tokens that go to random experts. gpt-oss' activation and biases are in its own bench."""

    def __init__(self, shape, tokens, skew, device):
        hidden, inner, experts, top_k = shape
        generator = torch.Generator(device).manual_seed(1)

        def normal(*size, scale):
            return (torch.randn(*size, device=device, generator=generator) * scale).bfloat16()

        self.experts, self.top_k = experts, top_k
        self.gate_up = normal(experts, 2 * inner, hidden, scale=hidden**-0.5)
        self.down = normal(experts, hidden, inner, scale=inner**-0.5)
        self.router = normal(experts, hidden, scale=hidden**-0.5)
        self.tokens = normal(tokens, hidden, scale=1.0)
        shares = torch.ones(experts, device=device)
        if skew == "zipf":
            shares = 1.0 / torch.arange(1, experts + 1, device=device)
        self.ids = torch.multinomial(shares.expand(tokens, -1), top_k, generator=generator)

    def route(self):
        """The router's work; the ids are the prepared ones, so that all contenders have the same."""
        scores = torch.nn.functional.linear(self.tokens, self.router).float().softmax(-1)
        scores.topk(self.top_k)
        weights = scores.gather(1, self.ids)
        return weights / weights.sum(-1, keepdim=True)


def with_torch(layer):
    weights = layer.route()
    flat = layer.ids.flatten()
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=layer.experts).cumsum(0).int()
    rows = layer.tokens[order // layer.top_k]
    gate, up = GROUPED(rows, layer.gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
    inner = torch.nn.functional.silu(gate) * up
    outer = GROUPED(inner, layer.down.transpose(1, 2), offs=ends)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    return (outer[back].view(*layer.ids.shape, -1) * weights.to(outer.dtype)[..., None]).sum(1)


def transformers_contender():
    from transformers.integrations.moe import grouped_mm_experts_forward
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    def run(layer):
        if not hasattr(layer, "module"):
            _, inner2, hidden = layer.gate_up.shape
            with torch.device("meta"):
                layer.module = OlmoeExperts(
                    types.SimpleNamespace(
                        num_local_experts=layer.experts,
                        num_experts=layer.experts,
                        hidden_size=hidden,
                        intermediate_size=inner2 // 2,
                        hidden_act="silu",
                        _experts_implementation="grouped_mm",
                    )
                )
            layer.module.gate_up_proj = torch.nn.Parameter(layer.gate_up, requires_grad=False)
            layer.module.down_proj = torch.nn.Parameter(layer.down, requires_grad=False)
        weights = layer.route()
        return grouped_mm_experts_forward(layer.module, layer.tokens, layer.ids, weights.bfloat16())

    return run


def fused_contender(name):
    module, function = name.split(":")
    fused = getattr(importlib.import_module(module), function)
    return lambda layer: fused(layer.tokens, layer.gate_up, layer.down, layer.route(), layer.ids.int())


def dense(layer):
    rows = layer.ids.numel()
    if not hasattr(layer, "rows"):
        layer.rows = layer.tokens.repeat(layer.top_k, 1)
        layer.inner = torch.randn(rows, layer.down.shape[2], device=layer.rows.device).bfloat16()
    layer.rows @ layer.gate_up[0].T
    return layer.inner @ layer.down[0].T


def seconds(run, layer, device, least):
    """Of one call: as many as take `least` seconds between two events."""
    calls = 1
    while True:
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                run(layer)
            end.record()
            end.synchronize()
            took = begin.elapsed_time(end) / 1e3
        else:
            start = time.perf_counter()
            for _ in range(calls):
                run(layer)
            took = time.perf_counter() - start
        if took >= least:
            return took / calls
        calls *= 2


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", help="writes JSON there")
    options.add_argument("--fused", default="vllm.model_executor.layers.fused_moe:fused_experts", help="module:function")
    options.add_argument("--seconds", type=float, default=120.0, help="begins no case later")
    options.add_argument("--smoke", action="store_true", help="tiny, on the CPU: shows that everything runs")
    chosen = options.parse_args()
    device = "cpu" if chosen.smoke else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        options.error("torch finds no GPU")

    contenders = {}
    for name, make in (
        ("torch", lambda: with_torch),
        ("transformers", transformers_contender),
        ("fused", lambda: fused_contender(chosen.fused)),
        ("dense", lambda: dense),
    ):
        try:
            contenders[name] = make()
        except Exception as error:  # what is not installed, or has another interface in this version
            print(f"{name}: left out, {type(error).__name__}: {error}")

    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    absent = [name for name in ("torch", "transformers", "fused") if name not in contenders]
    context = {"torch": torch.__version__, "gpu": gpu, "left_out": absent}

    def write():  # after every case, so that a run that is stopped leaves what it has measured
        if chosen.out:
            with open(chosen.out + ".part", "w") as file:
                json.dump({"context": context, "lines": lines}, file, indent=1)
            os.replace(chosen.out + ".part", chosen.out)

    shapes = {"tiny": (64, 32, 8, 2)} if chosen.smoke else SHAPES
    begin, lines = time.monotonic(), []
    print(f"{'shape':14} {'tokens':>6} {'skew':8} {'':13} {'us':>10} {'TFLOP/s':>8} {'spread':>7} {'error':>9}")
    for name, shape in shapes.items():
        for tokens in (40,) if chosen.smoke else TOKENS:
            for skew in ("uniform", "zipf"):
                if skew == "zipf" and tokens not in (40, 8192):
                    continue
                if time.monotonic() - begin > chosen.seconds:
                    print("no time left")
                    break
                layer = Layer(shape, tokens, skew, device)
                flops = 6 * tokens * shape[3] * shape[0] * shape[1]
                times, errors, right = {}, {}, None
                for contender, run in list(contenders.items()):
                    try:
                        got = run(layer).float()
                    except Exception as error:
                        print(f"{name:14} {tokens:6} {skew:8} {contender:13} FAILED: {type(error).__name__}: {error}")
                        continue
                    times[contender] = []
                    if contender != "dense":
                        right = got if right is None else right
                        errors[contender] = float((got - right).norm() / right.norm())
                for _ in range(2 if chosen.smoke else 15):
                    for contender in times:
                        times[contender].append(seconds(contenders[contender], layer, device, 0.0 if chosen.smoke else 2e-3))
                for contender, all_of in times.items():
                    median = statistics.median(all_of)
                    spread = (max(all_of) - min(all_of)) / median
                    error = errors.get(contender)
                    lines.append(
                        {"shape": name, "tokens": tokens, "skew": skew, "contender": contender, "seconds": median,
                         "samples": all_of, "flops": flops, "error": error})
                    print(
                        f"{name:14} {tokens:6} {skew:8} {contender:13} {1e6 * median:10.1f} {flops / median / 1e12:8.1f} "
                        f"{100 * spread:6.1f}% "
                        f"{'' if error is None else format(error, '9.1e')}")
                write()
                del layer
    wrong = [line for line in lines if line["error"] is not None and not line["error"] < 2e-2]
    return 1 if wrong or not lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
