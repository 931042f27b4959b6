#!/usr/bin/env python3
"""Times torch, on one thread, at what bench/ measures: JSON {"benchmark": seconds}.

Goes to the file that MOTE_PEERS_JSON names, or else to standard output. Without torch the result is {}.
"""

import json
import os
import time

try:
    import torch
except ImportError:
    torch = None

BEYOND_CACHE = 1 << 28  # bytes of weights used in turn


def shortest(function, seconds=0.6, least=5):
    """The shortest of several calls; the first one is not counted."""
    function()
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < least or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


def in_turn(function, items):
    state = {"next": 0}

    def call():
        function(items[state["next"] % len(items)])
        state["next"] += 1

    return call


def matmul(dtype, out, features, tokens):
    x = torch.randn(tokens, features, dtype=dtype)
    count = -(-BEYOND_CACHE // (out * features * x.element_size()))
    weights = [torch.randn(out, features, dtype=dtype) for _ in range(count)]
    return shortest(in_turn(lambda w: torch.nn.functional.linear(x, w), weights))


def route(tokens, experts=256, groups=8, topk_group=4, top_k=8, scaling=2.5):
    """The router of DeepSeek-V3 as published model code computes it."""
    logits, bias = torch.randn(tokens, experts), 0.1 * torch.randn(experts)

    def call():
        scores = logits.sigmoid()
        choice = scores + bias
        group_scores = choice.view(-1, groups, experts // groups).topk(2, dim=-1)[0].sum(dim=-1)
        group_index = torch.topk(group_scores, k=topk_group, dim=-1, sorted=False)[1]
        group_mask = torch.zeros_like(group_scores).scatter_(1, group_index, 1)
        mask = group_mask.unsqueeze(-1).expand(-1, groups, experts // groups).reshape(-1, experts)
        choice = choice.masked_fill(~mask.bool(), 0.0)
        indices = torch.topk(choice, k=top_k, dim=-1, sorted=False)[1]
        weights = scores.gather(1, indices)
        return indices, weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * scaling

    return shortest(call)


def grouped_ffn(tokens, experts=64, top_k=6, hidden=2048, intermediate=1408):
    """A loop over the chosen experts, as published model code has it."""
    dtype, linear = torch.bfloat16, torch.nn.functional.linear
    gate_up = torch.randn(experts, 2 * intermediate, hidden, dtype=dtype) / 45
    down = torch.randn(experts, hidden, intermediate, dtype=dtype) / 38
    x, weights = torch.randn(tokens, hidden, dtype=dtype), torch.rand(tokens, top_k, dtype=dtype)
    routings = [torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)]) for _ in range(16)]

    def call(indices):
        y = torch.zeros_like(x)
        for e in indices.unique().tolist():
            token, slot = torch.where(indices == e)
            gate, up = linear(x[token], gate_up[e]).chunk(2, dim=-1)
            h = linear(torch.nn.functional.silu(gate) * up, down[e])
            y.index_add_(0, token, h * weights[token, slot, None])
        return y

    return shortest(in_turn(call, routings))


def measure():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    times = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        for out, features in ((1408, 2048), (2048, 1408), (10944, 2048), (4096, 7168)):
            for tokens in (1, 4, 16, 64, 512):
                key = f"matmul/{name}/{out}x{features}/tokens:{tokens}/threads:1"
                times[key] = matmul(dtype, out, features, tokens)
    for tokens in (1, 512):
        times[f"route/v3/{tokens}"] = route(tokens)
    for tokens in (1, 16, 128, 512):
        times[f"moe/bf16/tokens:{tokens}/threads:1"] = grouped_ffn(tokens)
    x, gain = torch.randn(512, 2048), torch.randn(2048)
    times["rms_norm/512x2048"] = shortest(lambda: torch.nn.functional.rms_norm(x, (2048,), gain, 1e-6))
    gate, up = torch.randn(512, 1408), torch.randn(512, 1408)
    times["swiglu/512x1408"] = shortest(lambda: torch.nn.functional.silu(gate) * up)
    scores = torch.randn(512, 256)
    times["softmax/512x256"] = shortest(lambda: scores.softmax(-1))
    return times


def main():
    with torch.inference_mode() if torch else open(os.devnull, encoding="utf-8"):
        result = json.dumps(measure() if torch else {}, indent=2)
    path = os.environ.get("MOTE_PEERS_JSON")
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write(result + "\n")
    else:
        print(result)


if __name__ == "__main__":
    main()
