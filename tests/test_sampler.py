import numpy as np
import pytest
import torch
from test_model import hugging_face, randomise

import cli
from model import ModelConfig, Qwen2
from sampler import generate

STOP = 3


def make(vocab=61, std=0.2, seed=0):
    torch.manual_seed(seed)
    return randomise(Qwen2(ModelConfig(vocab, 48, 96, 2, 4, 2, 256)), std).eval()


MODEL = make()
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(4, 61, size=n).tolist() for n in (5, 17, 1, 9, 30, 17, 2)]


def full_logprobs(model, prompt, ids, temperature=1.0):
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([prompt + ids]))[0][0] / temperature, -1)
    return [float(logp[len(prompt) - 1 + j, t]) for j, t in enumerate(ids)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers_stop_token_included(temperature):
    out = generate(MODEL, PROMPTS, group_size=5, max_new_tokens=40, temperature=temperature, stop_id=STOP, seed=1)
    stopped = 0
    for i, (ids, logprobs, finished) in enumerate(zip(out.ids, out.logprobs, out.finished)):
        assert len(ids) == len(logprobs) and finished == (ids[-1] == STOP) and STOP not in ids[:-1]
        assert finished or len(ids) == 40
        stopped += finished
        assert logprobs == pytest.approx(full_logprobs(MODEL, PROMPTS[i // 5], ids, temperature), abs=1e-5)
    assert 5 < stopped < 35  # both ways of ending occurred


def test_a_row_does_not_depend_on_its_neighbours_or_the_batch_size():
    together = generate(MODEL, PROMPTS, group_size=4, max_new_tokens=30, stop_id=STOP, seed=2, batch_size=64)
    for batch_size in (1, 4, 8):
        again = generate(MODEL, PROMPTS, group_size=4, max_new_tokens=30, stop_id=STOP, seed=2, batch_size=batch_size)
        assert again.ids == together.ids and again.finished == together.finished
        for a, b in zip(again.logprobs, together.logprobs):
            assert a == pytest.approx(b, abs=1e-5)
    other = [PROMPTS[0], *([1, 2, 4] for _ in PROMPTS[1:])]
    assert generate(MODEL, other, group_size=4, max_new_tokens=30, stop_id=STOP, seed=2).ids[:4] == together.ids[:4]
    assert generate(MODEL, PROMPTS, group_size=4, max_new_tokens=30, stop_id=STOP, seed=3).ids != together.ids
    assert len({tuple(ids) for ids in together.ids[:4]}) > 1  # a group is not four copies


def test_greedy_is_the_argmax_and_that_of_transformers():
    out = generate(MODEL, PROMPTS, max_new_tokens=20, temperature=0, stop_id=STOP)
    for prompt, ids in zip(PROMPTS, out.ids):
        tokens = list(prompt)
        for t in ids:
            assert int(MODEL(torch.tensor([tokens]))[0][0, -1].argmax()) == t
            tokens.append(t)
    peer = hugging_face(MODEL.config, MODEL)
    for prompt, ids in zip(PROMPTS, out.ids):
        got = peer.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                            max_new_tokens=20, eos_token_id=STOP, pad_token_id=0)[0, len(prompt) :].tolist()  # fmt: skip
        assert got == ids


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_samples_have_the_distribution(temperature, top_p):
    model, n = make(vocab=12, std=0.4, seed=5), 6000
    prompt = [4, 7, 9]
    p = torch.softmax(model(torch.tensor([prompt]))[0][0, -1].double() / temperature, -1).detach().numpy()
    if top_p < 1:
        order = np.argsort(-p)
        nucleus = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
        p = np.where(np.isin(np.arange(12), nucleus), p, 0.0)
        p /= p.sum()
        assert (p == 0).any()
    out = generate(model, [prompt], group_size=n, max_new_tokens=1, temperature=temperature, top_p=top_p, stop_id=STOP, seed=7, batch_size=n)
    counts = np.bincount([ids[0] for ids in out.ids], minlength=12)
    assert counts[p == 0].sum() == 0
    chi2 = ((counts - n * p)[p > 0] ** 2 / (n * p[p > 0])).sum()
    assert chi2 < 35  # 11 degrees of freedom: 1 in 4,000


def test_errors():
    for prompts, arguments in (
        ([], {}), ([[]], {}), ([[4] * 250], {}), ([[4]], {"temperature": -1.0}), ([[4]], {"top_p": 0.0}),
    ):  # fmt: skip
        with pytest.raises(cli.UserError):
            generate(MODEL, prompts, max_new_tokens=10, stop_id=STOP, **arguments)
