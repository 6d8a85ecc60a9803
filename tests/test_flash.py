"""The Triton kernels against attention.reference in float64: through Triton's interpreter on a CPU in fp32, and, where there is a GPU, on it in bf16."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
GPU = torch.cuda.is_available()
pytest.importorskip("triton")

import attention  # noqa: E402
import cli  # noqa: E402
import flash  # noqa: E402
from attention import reference  # noqa: E402
from flash import CONFIGS, agrees, doc_ends, flash_attention, forced  # noqa: E402

DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
TOLERANCE = 1e-2 if GPU else 2e-6  # relative to the largest entry (or 1)


def starts(lengths):
    return torch.tensor([[sum(lengths[:i]) for i, n in enumerate(lengths) for _ in range(n)]], dtype=torch.int32)


def close(got, want):
    error = float((got.double().cpu() - want.cpu()).abs().max() / want.abs().max().clamp(min=1))
    assert error <= TOLERANCE, error


def check(lengths, H=2, K=1, D=16, config=None, fill=None):
    """Forward, dq, dk, dv of a batch of two rows: these documents, and the same backwards."""
    torch.manual_seed(0)
    T = sum(lengths)
    doc_start = torch.cat((starts(lengths), starts(lengths[::-1])))
    q, k, v, g = (torch.randn(2, T, h, D, dtype=torch.float64) if fill is None else fill(2, T, h, D) for h in (H, K, K, H))
    exact = [x.to(DTYPE).double().requires_grad_() for x in (q, k, v)]  # the reference gets what the kernel gets
    want = reference(*exact, doc_start)
    want_grads = torch.autograd.grad(want, exact, g.to(DTYPE).double())
    mine = [x.detach().to(DEVICE, DTYPE).requires_grad_() for x in exact]
    doc_start = doc_start.to(DEVICE)
    with forced(**({} if config is None else dict.fromkeys(CONFIGS, config))):
        got = flash_attention(*mine, (doc_start, doc_ends(doc_start)))
        grads = torch.autograd.grad(got, mine, g.to(DEVICE, DTYPE))
    for a, b in zip((got, *grads), (want, *want_grads)):
        close(a, b)
    return got, grads


@pytest.mark.parametrize("arch", [80, 90])
def test_every_configuration_compiles_for_a_gpu(arch):
    """By Triton's compiler, which needs none: what the interpreter accepts, the GPU's compiler may not. Nothing of it spills much on Hopper."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "bench/gpu_resources.py", "--arch", str(arch)]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    rows = [line.split() for line in out.stdout.splitlines()[2:]]
    assert len(rows) == sum(map(len, CONFIGS.values())) + 2
    if arch == 90:
        assert max(int(row[-3]) for row in rows) <= 64 and max(int(row[-2]) for row in rows) <= 227
        assert sum(row[-1] == "yes" for row in rows) >= len(rows) - 3


def test_doc_ends():
    assert doc_ends(starts([3, 1, 2])).tolist() == [[3, 3, 3, 4, 6, 6]]
    assert doc_ends(starts([5])).tolist() == [[5] * 5] and doc_ends(starts([1, 1])).tolist() == [[1, 2]]


EVERY = sorted({c for configs in CONFIGS.values() for c in configs})


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_every_configuration_that_the_tuner_may_choose(config):
    check([50, 1, 130, 17, 3], config=config)
    check([201], config=config)


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (4, 2), (6, 1), (8, 2)], ids=str)
def test_heads(heads):
    check([7, 40, 1, 22], *heads, config=(32, 32, 4, 2))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 33, 63, 65, 100])
def test_odd_lengths(length):
    check([length], config=(32, 16, 4, 2))
    check([1] * length, config=(16, 32, 4, 2))


@pytest.mark.parametrize("end", range(1, 33))
def test_a_document_that_ends_at_every_position_of_a_block(end):
    """Blocks of 16: the boundary falls on each place of the second and third."""
    check([15 + end, 64 - end], config=(16, 16, 4, 2))


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_head_widths(width):
    check([20, 45], D=width, config=(32, 32, 4, 2))


def test_a_head_width_that_is_none_is_a_user_error():
    with pytest.raises(cli.UserError, match="sdpa"):
        check([4], D=12)


@pytest.mark.parametrize("fill", [lambda *s: torch.ones(s, dtype=torch.float64), lambda *s: torch.randint(-3, 4, s).double()], ids=["ones", "integers"])
def test_ones_and_integers(fill):
    """Exact inputs: what a miscompiled dot(trans(x), y) gets visibly wrong."""
    for config in EVERY if GPU else EVERY[:2]:
        check([33, 64, 20], D=64, config=config, fill=fill)


def test_two_runs_give_the_same_bits():
    first, second = (check([50, 1, 77], H=4, K=2) for _ in range(2))
    assert torch.equal(first[0], second[0]) and all(torch.equal(a, b) for a, b in zip(first[1], second[1]))


def test_many_random_layouts():
    g = torch.Generator().manual_seed(1)
    for _ in range(12):
        lengths = torch.randint(1, 40, (int(torch.randint(1, 6, (1,), generator=g)),), generator=g).tolist()
        m, n = (2 ** int(torch.randint(4, 7, (1,), generator=g)) for _ in range(2))
        check(lengths, config=(m, n, 4, 2))


def test_the_tuner_takes_only_what_is_right(monkeypatch):
    shape = (2, 1, 16, False, 64, DTYPE)
    assert all(agrees(kind, configs[-1], shape, DEVICE) for kind, configs in CONFIGS.items())
    with monkeypatch.context() as planted:  # as if the kernels were the ones in error
        planted.setattr(flash, "reference", lambda q, k, v, starts: 1.02 * reference(q, k, v, starts))
        assert not any(agrees(kind, configs[-1], shape, DEVICE) for kind, configs in CONFIGS.items())
    monkeypatch.setattr(flash, "agrees", lambda kind, config, shape, device: config == CONFIGS["dq"][3])
    assert flash._tune("dq", None, shape) == CONFIGS["dq"][3]
    with pytest.raises(cli.UserError, match="sdpa"):
        flash._tune("forward", None, shape)


@pytest.mark.parametrize("way", ["sdpa", "triton"])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (12, 2), (6, 1), (40, 1)], ids=str)
def test_decode(heads, way, monkeypatch):
    """Some rows of five groups of four, each over its prompt and its own columns, whatever lies outside them."""
    monkeypatch.setattr(attention, "_backend", way)
    torch.manual_seed(0)
    (H, K), G, P, D, filled = heads, 4, 5, 32, 70
    rows = torch.tensor([0, 1, 2, 3, 5, 12, 13, 16, 17, 19])  # of the third group none is left
    lengths = torch.tensor([1, 64, 7, 150, 130], dtype=torch.int32)
    q, own, prompt = torch.randn(len(rows), H, D), torch.randn(2, 20, K, 90, D)[:, : len(rows)], torch.randn(2, 8, K, 160, D)[:, :P, :, :150]
    q, own, prompt = (x.to(DTYPE) for x in (q, own, prompt))
    want = []
    for i, row in enumerate(rows.tolist()):
        k, v = (torch.cat((prompt[part, row // G, :, : lengths[row // G]], own[part, i, :, :filled]), 1)[None].double() for part in (0, 1))
        want.append(torch.nn.functional.scaled_dot_product_attention(q[i, None, :, None].double(), k, v, enable_gqa=True)[0, :, 0])
    own[:, :, :, filled:] = 1e3
    for p, length in enumerate(lengths):
        prompt[:, p, :, length:] = 1e3
    arguments = [x.to(DEVICE) for x in (q, own, prompt, lengths, rows)]
    for window in (filled, 90):
        close(attention.decode(*arguments, G, torch.tensor([filled], device=DEVICE), window), torch.stack(want))
