import threading

from lab.replicas import Replicas

import pytest
import torch


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1, bias=False))


def learn(model, x):
    loss = model(x).square().sum()
    loss.backward()
    return float(loss.detach()), threading.get_ident()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 2, 5])
def test_replicas_give_what_one_model_gives(count, items):
    inputs = [torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) for i in range(items)]
    alone, shared = model(), model()
    wanted = [learn(alone, x)[0] for x in inputs]
    replicas, after = Replicas(shared, count), []
    for _ in range(2):  # nothing of one step is left for the next
        got = replicas.map(learn, iter(inputs))
        assert [loss for loss, _ in got] == wanted
        assert len({thread for _, thread in got}) <= count
        after.append([p.grad for p in shared.parameters()])
        shared.zero_grad(set_to_none=True)
    for a, b, p in zip(*after, alone.parameters()):
        assert (a is None) == (p.grad is None) and (a is None or torch.equal(a, b))
        if a is not None:
            torch.testing.assert_close(a, p.grad)


def test_replicas_have_the_models_weights_when_they_change():
    shared = model()
    replicas, optimizer = Replicas(shared, 2), torch.optim.AdamW(shared.parameters(), lr=0.1)
    x = torch.ones(3, 5)
    for _ in range(3):
        replicas.map(learn, [x, x])
        optimizer.step()
        optimizer.zero_grad()
        (a, _), (b, _) = replicas.map(learn, [x, x])
        assert a == b and all(map(torch.equal, replicas.models[1].parameters(), shared.parameters()))
    shared.load_state_dict(model().state_dict())
    assert all(map(torch.equal, replicas.models[1].parameters(), shared.parameters()))


def test_an_error_in_a_replica_is_raised_here():
    def fail(model, item):
        raise MemoryError(item)

    with pytest.raises(MemoryError, match="5"):
        Replicas(model(), 2).map(fail, [5, 5])
