"""What a training run would take, without running it."""

import timeit

import torch


def describe_cost(model, steps, tokens, rows, row_tokens, document, passes):
    """Print parameters, FLOPs, memory and time of a training run, for `--dry-run`.

    tokens: of all the steps; rows, row_tokens: of a micro-batch; document: tokens of one. passes: forward
    passes' worth of work for each token (forward and backward are 3). FLOPs: 2 for each pass, parameter and
    token, and 2·L·C·document for causal attention. Memory: fp32 weights, gradients and two moments, and what
    autograd keeps of a micro-batch for its backward pass.
    """
    config, device, gib = model.config, next(model.parameters()).device, 2**30
    n, size = model.num_parameters(), config.num_hidden_layers * config.hidden_size
    flops = passes * tokens * (2 * n + 2 * size * document)
    state, kept = 16 * n, kept_for_backward(model, rows * row_tokens)
    rate = matmul_rate(device, model.compute_dtype)
    print(f"parameters {n:,} ({n - model.model.embed_tokens.weight.numel():,} without the embedding)")
    print(f"tokens     {tokens:,} in {steps:,} steps")
    print(f"FLOPs      {flops:.3g}")
    print(f"memory     about {(state + kept) / gib:.2f} GiB a process")
    print(f"           {state / gib:.2f} weights, gradients and moments")
    print(f"           {kept / gib:.2f} kept of {rows} x {row_tokens} tokens for the backward pass")
    hours = flops / (0.4 * rate) / 3600
    print(f"time       about {hours:.2f} hours at 40% of the {rate / 1e9:,.0f} GFLOP/s measured here")


def kept_for_backward(model, tokens):
    """Bytes of the tensors that autograd keeps of a micro-batch between its forward and backward pass.

    Counted on two short rows, and carried on in a straight line: all of it grows with the tokens, since a
    fused attention keeps no scores.
    """
    a, b = (kept_of_row(model, n) for n in (64, 128))
    return round(a + (b - a) / 64 * (tokens - 64))


def kept_of_row(model, tokens):
    kept, row = [], torch.zeros(1, tokens, dtype=torch.long, device=next(model.parameters()).device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(row, targets=row, loss_only=True)
    storages = [t.untyped_storage() for t in kept if not isinstance(t, torch.nn.Parameter)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def matmul_rate(device, dtype, n=2048):
    """Measured FLOP/s of a large square product, the best of ten."""
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / min(timeit.repeat(lambda: float((a @ a)[0, 0]), number=1, repeat=10))
