"""What a training run would take, without running it."""

import timeit

import torch

EXPECTED = 0.4  # share of the matmul rate that training is expected to reach


def describe_cost(models, reference, steps, tokens, rows, row_tokens, document, passes):
    """Print parameters, FLOPs, memory and time of a training run, for `--dry-run`.

    tokens: of all the steps; rows, row_tokens: of a micro-batch, of which each replica, of the
    models, computes one; reference: a frozen model, or None. document, passes: as of `count_flops`.
    """
    model = models[0]
    device, gib, n = next(model.parameters()).device, 2**30, model.num_parameters()
    flops = count_flops(model, tokens, document, passes)
    copies, rows = len(models) - 1 + (reference is not None), rows * len(models)
    state, kept = count_memory(model, rows * row_tokens, copies)
    rate = matmul_rate(device, model.compute_dtype)
    print(f"parameters {n:,} ({n - model.model.embed_tokens.weight.numel():,} without the embedding)")
    print(f"tokens     {tokens:,} in {steps:,} steps")
    print(f"FLOPs      {flops:.3g}")
    print(f"memory     about {(state + kept) / gib:.2f} GiB of tensors a process")
    print(f"           {state / gib:.2f} weights, gradients and moments")
    print(f"           {kept / gib:.2f} kept of {rows} x {row_tokens} tokens for the backward pass")
    if device.type == "cpu":
        print("           glibc may hold up to twice as much: it cannot always use again what is freed")
    hours, measured = flops / (EXPECTED * rate) / 3600, f"{rate / 1e9:,.0f} GFLOP/s measured here"
    print(f"time       about {hours:.2f} hours at {EXPECTED:.0%} of the {measured}")


def count_flops(model, tokens, document, passes):
    """FLOPs of training: 2 for each pass, parameter and token, and 2·L·C·document for causal attention.

    document: tokens of one. passes: forward passes' worth of work for each token (forward and backward: 3).
    """
    size = model.config.num_hidden_layers * model.config.hidden_size
    return passes * tokens * (2 * model.num_parameters() + 2 * size * document)


def count_memory(model, tokens, copies=0):
    """Bytes of tensors: (fp32 weights, gradients and two moments; what a backward pass needs of the tokens).

    Muon keeps one moment of its matrices, so that a little less is taken.
    copies: how many more there are of the weights or gradients: a frozen reference, further replicas.
    """
    return (16 + 4 * copies) * model.num_parameters(), kept_for_backward(model, tokens)


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
    places = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in kept)}
    # a transposed view of a weight is kept too, and takes no place of its own
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for place, size in places.items() if place not in weights)


def matmul_rate(device, dtype, n=2048):
    """Measured FLOP/s of a large square product, the best of ten."""
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / min(timeit.repeat(lambda: float((a @ a)[0, 0]), number=1, repeat=10))
