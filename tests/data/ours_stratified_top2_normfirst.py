"""Writes ours_stratified_top2_normfirst.safetensors, a golden file that no published code computed.

It has the inputs and weights of stratified_top2_drop.safetensors, and combine weights that are divided by their sum before
capacity drops any. Computed here in double, from the paper (Xu et al. 2023, Towards Being Parameter-Efficient, section 3).
Tokens of which a choice could hang on rounding are left out, until none is left.
"""
import json
import math
import pathlib
import struct

FOLDER = pathlib.Path(__file__).parent
BASE = FOLDER / "stratified_top2_drop.safetensors"
CASE = pathlib.Path(__file__).stem
WIDTH = {"F32": ("f", 4), "I32": ("i", 4), "U8": ("B", 1)}


def read(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        letter, width = WIDTH[entry["dtype"]]
        values = struct.unpack(f"<{(end - begin) // width}{letter}", data[begin:end])
        tensors[name] = (entry["dtype"], entry["shape"], list(values))
    return metadata, tensors


def write(path, metadata, tensors):
    header, body = {"__metadata__": metadata}, b""
    for name, (dtype, shape, values) in tensors.items():
        packed = struct.pack(f"<{len(values)}{WIDTH[dtype][0]}", *values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(packed)]}
        body += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def rows(tensor):
    _, shape, values = tensor
    width = shape[-1]
    return [values[i : i + width] for i in range(0, len(values), width)]


def apply(matrix, x):
    return [math.fsum(w * v for w, v in zip(row, x)) for row in matrix]


def softmax(x):
    highest = max(x)
    powers = [math.exp(v - highest) for v in x]
    return [p / math.fsum(powers) for p in powers]


def layer_norm(x, weight, bias, epsilon):
    mean = math.fsum(x) / len(x)
    variance = math.fsum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / math.sqrt(variance + epsilon) * w + b for v, w, b in zip(x, weight, bias)]


class Layer:
    def __init__(self, config, tensors):
        self.strata, self.epsilon = config["experts_per_stratum"], config["norm_eps"]
        self.fraction, self.hidden, self.inner = config["capacity_fraction"], config["d"], config["I"]
        self.router = [rows(tensors[f"router.{i}.weight"]) for i in range(len(self.strata))]
        self.norm = [[tensors[f"norm.{i}.{part}"][2] for part in ("weight", "bias")] for i in range(len(self.strata))]
        self.up, self.down = rows(tensors["experts.up"]), rows(tensors["experts.down"])
        self.up_bias, self.down_bias = rows(tensors["experts.up_bias"]), rows(tensors["experts.down_bias"])

    def expert(self, e, x):
        up = self.up[e * self.inner : (e + 1) * self.inner]
        down = self.down[e * self.hidden : (e + 1) * self.hidden]
        inner = [max(v + b, 0.0) for v, b in zip(apply(up, x), self.up_bias[e])]
        return [v + b for v, b in zip(apply(down, inner), self.down_bias[e])]

    def one_pass(self, stratum, tokens, h):
        """Choices, weights, dropped, outputs, the loss of the pass, and tokens whose choices are too close."""
        closed = sum(self.strata[:stratum])
        choices, weights, unclear, importance = {}, {}, set(), None
        for t in tokens:
            p = softmax(apply(self.router[stratum], h[t]))
            order = sorted(range(len(p)), key=lambda e: -p[e])
            margin = 1e-3 if stratum == 0 else 5e-2
            if any(p[a] - p[b] <= margin * p[a] for a, b in zip(order[:2], order[1:3])):
                unclear.add(t)
            choices[t] = [closed + e for e in order[:2]]
            total = p[order[0]] + p[order[1]]
            weights[t] = [p[order[0]] / total, p[order[1]] / total]  # over both choices, dropped or not
            importance = [a + b for a, b in zip(importance or [0.0] * len(p), p)]
        slots = math.ceil(self.fraction * len(tokens) - 1e-9)
        queue, dropped = {}, {t: [0, 0] for t in tokens}
        for k in range(2):
            for t in tokens:
                place = queue.get(choices[t][k], 0)
                queue[choices[t][k]] = place + 1
                dropped[t][k] = int(place >= slots)
        outputs = {}
        for t in tokens:
            weights[t] = [0.0 if d else w for w, d in zip(weights[t], dropped[t])]
            results = [self.expert(e, h[t]) for e in choices[t]]
            outputs[t] = [sum(w * r[i] for w, r in zip(weights[t], results)) for i in range(self.hidden)]
        first = [sum(choices[t][0] == closed + e for t in tokens) for e in range(len(importance))]
        loss = len(first) * sum(f * p for f, p in zip(first, importance)) / len(tokens) ** 2
        return choices, weights, dropped, outputs, loss, unclear, slots

    def block(self, x, residual):
        count = len(x)
        h, kept, state, passes, unclear = dict(enumerate(x)), dict(enumerate(residual)), [0] * count, [], set()
        while min(state) < len(self.strata):
            current = min(state)
            tokens = [t for t in range(count) if state[t] == current]
            made = self.one_pass(current, tokens, h)
            unclear |= made[5]
            for t in tokens:
                sums = [a + b for a, b in zip(made[3][t], kept[t])]
                while state[t] < len(self.strata) and sum(self.strata[: state[t]]) <= made[0][t][0]:
                    state[t] += 1
                h[t] = layer_norm(sums, *self.norm[state[t] - 1], self.epsilon)
                kept[t] = h[t]
            passes.append((current, tokens, made))
        return [h[t] for t in range(count)], passes, unclear


def main():
    metadata, tensors = read(BASE)
    config = json.loads(metadata["config"])
    layer = Layer(config, tensors)
    x, residual = rows(tensors["x"]), rows(tensors["residual"])
    while True:
        y, passes, unclear = layer.block(x, residual)
        if not unclear:
            break
        x, residual = ([row for t, row in enumerate(of) if t not in unclear] for of in (x, residual))

    count, flat = len(x), lambda of: [v for row in of for v in row]
    ids, weights, dropped, processed = [], [], [], []
    for _, tokens, made in passes:
        for t in range(count):
            ids += made[0].get(t, [-1, -1])
            weights += made[1].get(t, [0.0, 0.0])
            dropped += made[2].get(t, [0, 0])
            processed.append(int(t in tokens))
    shape = [len(passes), count]
    tensors.update({
        "x": ("F32", [count, config["d"]], flat(x)),
        "residual": ("F32", [count, config["d"]], flat(residual)),
        "expected.y": ("F32", [count, config["d"]], flat(y)),
        "expected.topk_ids": ("I32", shape + [2], ids),
        "expected.topk_weights": ("F32", shape + [2], weights),
        "expected.aux_loss": ("F32", [], [sum(made[4] for _, _, made in passes) / len(passes)]),
        "expected.dropped": ("U8", shape + [2], dropped),
        "expected.processed": ("U8", shape, processed),
    })
    config.update({
        "T": count,
        "normalise": "sum_before_dropping",
        "capacities": [made[6] for _, _, made in passes],
        "dropped_total": sum(dropped),
        "passes": len(passes),
        "strata_of_passes": [stratum for stratum, _, _ in passes],
    })
    write(FOLDER / f"{CASE}.safetensors", {
        "format": "moe-golden-1",
        "case": CASE,
        "set": "ours",
        "source": f"computed by {CASE}.py; inputs and weights of {BASE.name}, {metadata['source']}",
        "config": json.dumps(config),
        "dtype": metadata["dtype"],
    }, tensors)
    print(f"{CASE}: {count} tokens, {sum(dropped)} dropped pairs, strata {config['strata_of_passes']}")


if __name__ == "__main__":
    main()
