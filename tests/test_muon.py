"""lab/muon.py beside torch.optim.Muon."""

import io

from lab import muon

import pytest
import torch

SHAPES = ((16, 16), (48, 16), (16, 48), (16, 16), (5, 7), (7, 5), (1, 9), (128, 384), (384, 128), (384, 128))
HOW = dict(lr=0.02, weight_decay=0.5, momentum=0.95)


def matrices():
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(0.1 * torch.randn(shape, generator=g)) for shape in SHAPES]


def learn(parameters, optimizer, steps):
    for step in steps:
        g = torch.Generator().manual_seed(step)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=g)
        for group in optimizer.param_groups:
            group["lr"] = HOW["lr"] / (1 + step)
        optimizer.step()


def copied(optimizer):
    """Its state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


# A sum in another order rounds a few numbers of bfloat16 to their neighbours, 2**-8 away; float32 is what bfloat16
# rounds at each of 15 products.
@pytest.mark.parametrize("bfloat16, tolerance", [(True, 2**-8), (False, 2**-5)])
def test_the_update_is_torchs(monkeypatch, bfloat16, tolerance):
    monkeypatch.setattr(muon, "BFLOAT16_CPU", bfloat16)
    ours, theirs = matrices(), matrices()
    learn(ours, muon.Muon(ours, **HOW), range(10))
    learn(theirs, torch.optim.Muon(theirs, **HOW), range(10))
    for p, q, start in zip(ours, theirs, matrices()):
        assert (p - q).norm() <= tolerance * (q - start).norm(), p.shape


def test_a_matrix_without_a_gradient_stays():
    ours = matrices()[:3]
    for p in ours[::2]:
        p.grad = torch.ones_like(p)
    before, optimizer = ours[1].clone(), muon.Muon(ours, **HOW)
    optimizer.step()
    assert torch.equal(ours[1], before) and ours[1] not in optimizer.state and ours[0] in optimizer.state


@pytest.mark.parametrize("saved_by", [muon.Muon, torch.optim.Muon])
def test_it_goes_on_from_a_checkpoint(saved_by):
    """Its own to the last bit; one of torch.optim.Muon's as torch.optim.Muon does."""
    whole, parts = matrices(), matrices()
    learn(whole, saved_by(whole, **HOW), range(10))
    first = saved_by(parts, **HOW)
    learn(parts, first, range(5))
    second = muon.Muon(parts, **HOW)
    second.load_state_dict(copied(first))
    assert all(
        torch.equal(second.state[p]["momentum_buffer"], first.state[p]["momentum_buffer"]) for p in parts
    )
    learn(parts, second, range(5, 10))
    for p, q, start in zip(parts, whole, matrices()):
        error = (p - q).norm() / (q - start).norm()
        assert error == 0 if saved_by is muon.Muon else error < 2**-5
