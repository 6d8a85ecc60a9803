import numpy as np
import pytest
import torch
from test_model import hugging_face, randomise

import attention
import cli
import sampler
from model import ModelConfig, Qwen2
from sampler import generate

STOP = 3


def make(vocab=61, std=0.2, seed=0, width=48):
    torch.manual_seed(seed)
    return randomise(Qwen2(ModelConfig(vocab, width, 96, 2, 4, 2, 256)), std).eval()


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


@pytest.mark.parametrize("way", ["sdpa", "triton"])
def test_a_step_as_a_graph_replays_it(way, monkeypatch):
    """What a GPU does to a step: the first time it is done twice, it sees the whole caches with what other batches left there, rows leave late."""
    if way == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(attention, "_backend", way)
    model, prompts, group, columns = make(width=64), sorted(PROMPTS, key=len)[1:4], 3, 12
    want = generate(model, prompts, group_size=group, max_new_tokens=columns, stop_id=STOP, seed=4)
    assert 0 < sum(want.finished) < len(want.ids)
    decoder = sampler.Decoder(model, 5, group, 30, columns, 1.0, 1.0, STOP)
    with torch.inference_mode():
        decoder.start([[7] * 30] * 5, np.full((15, columns), 0.5))  # an earlier batch
        for column in range(1, columns):
            decoder.step(column)
        decoder.start(prompts, sampler.randomness(4, range(9), columns))
        decoder.shape, sizes = (5, 30), set()
        for column in range(1, columns):
            if column % 4 == 0:
                decoder.leave(decoder.stopped.numpy().copy(), column - 1)
            sizes.add(len(decoder.live))
            decoder.at.fill_(column)
            for _ in range(2):
                decoder._step(len(decoder.live), columns)
    assert decoder.buckets == [15, 8] and sizes == {9, 8}
    for row, (ids, logprobs) in enumerate(zip(want.ids, want.logprobs)):
        assert decoder.ids[row, : len(ids)].tolist() == ids
        assert decoder.logprobs[row, : len(ids)].tolist() == pytest.approx(logprobs, abs=1e-5)


def test_finished_rows_leave_and_the_others_do_not_notice():
    """A large batch of which most stop early: fewer rows are computed, and each is what it is alone."""
    computed, step = [], sampler.Decoder._step
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sampler.Decoder, "_step", lambda self, n, window: computed.append(n) or step(self, n, window))
        together = generate(MODEL, PROMPTS, group_size=24, max_new_tokens=120, stop_id=STOP, seed=5, batch_size=1000)
    lengths = [len(ids) for ids in together.ids]
    for column, n in enumerate(computed, 1):  # the smallest of the sizes that holds those which go on
        assert n == min(size for size in (168, 120, 88, 64, 48, 32, 24, 16, 8) if size >= sum(length > column for length in lengths))
    assert computed[0] == 168 and computed[-1] < 88
    alone = generate(MODEL, PROMPTS, group_size=24, max_new_tokens=120, stop_id=STOP, seed=5, batch_size=24)
    assert alone.ids == together.ids


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", ["sdpa", "triton"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
def test_graphs_on_a_gpu_give_the_trainers_logprobs(way, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(attention, "_backend", way)
    model = make(width=64).cuda()
    model.compute_dtype = dtype
    out = generate(model, PROMPTS, group_size=24, max_new_tokens=120, stop_id=STOP, seed=5, batch_size=100)
    for i in range(0, len(out.ids), 5):
        tokens = torch.tensor([PROMPTS[i // 24] + out.ids[i]], device="cuda")
        with torch.no_grad():
            logp = torch.log_softmax(model(tokens)[0][0].float(), -1)[len(PROMPTS[i // 24]) - 1 : -1]
        assert out.logprobs[i] == pytest.approx([float(logp[j, t]) for j, t in enumerate(out.ids[i])], abs=tolerance)


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
