import dataclasses

from lab.options import UserError, stream_key

import numpy as np
import pytest
import torch
from conftest import skip_without_interpreter
from test_model import hugging_face, randomise

import sampler
from attention import BACKENDS
from model import ModelConfig, Qwen2
from sampler import Sampling, generate

STOP = 3


def make(vocab=61, std=0.2, seed=0, width=48, layers=2):
    torch.manual_seed(seed)
    return randomise(Qwen2(ModelConfig(vocab, width, 96, layers, 4, 2, 256)), std).eval()


MODEL = make()
LAYERS = {"sdpa": 2, "triton": 1}  # few in Triton's interpreter, which is slow
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(4, 61, size=n).tolist() for n in (5, 17, 1, 9, 30, 17, 2)]


def full_logprobs(model, prompt, ids, temperature=1.0):
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([prompt + ids]))[0][0] / temperature, -1)
    return [float(logp[len(prompt) - 1 + j, t]) for j, t in enumerate(ids)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers_stop_token_included(temperature):
    out = generate(
        MODEL, PROMPTS, group_size=5, max_new_tokens=40, temperature=temperature, stop_id=STOP, seed=1
    )
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
        again = generate(
            MODEL, PROMPTS, group_size=4, max_new_tokens=30, stop_id=STOP, seed=2, batch_size=batch_size
        )
        assert again.ids == together.ids and again.finished == together.finished
        for a, b in zip(again.logprobs, together.logprobs):
            assert a == pytest.approx(b, abs=1e-5)
    other = [PROMPTS[0], *([1, 2, 4] for _ in PROMPTS[1:])]
    assert (
        generate(MODEL, other, group_size=4, max_new_tokens=30, stop_id=STOP, seed=2).ids[:4]
        == together.ids[:4]
    )
    assert generate(MODEL, PROMPTS, group_size=4, max_new_tokens=30, stop_id=STOP, seed=3).ids != together.ids
    assert len({tuple(ids) for ids in together.ids[:4]}) > 1  # a group is not four copies


def as_on_a_gpu(monkeypatch, model, way, chunk):
    """Have the sampler do on a CPU what it does on a GPU.

    A step is done once when it is captured and again when it is replayed, it sees the whole caches with what
    other batches left there, and the flags of stopped rows come a look late.
    """

    class Graph:
        def __init__(self, work):
            self.replay = work
            work()

    class Stream:
        """And its events."""

        def record_event(self):
            return self

        def synchronize(self):
            pass

    captured = []
    monkeypatch.setattr(sampler, "takes_graphs", lambda device: True)
    monkeypatch.setattr(sampler, "capture", lambda work, others: captured.append(work.args) or Graph(work))
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    model.backend = dataclasses.replace(BACKENDS[way], chunk=lambda columns, device: min(columns, chunk))
    return captured


@pytest.mark.parametrize("way, chunk", [("sdpa", 60), ("sdpa", 7), ("triton", 60)])
def test_generation_as_on_a_gpu(way, chunk, monkeypatch):
    """The whole way a GPU takes, on a CPU, for batches of several sizes and lengths."""
    skip_without_interpreter(way)
    model, prompts = make(width=64, layers=LAYERS[way]), PROMPTS if way == "sdpa" else PROMPTS[:3]
    settings = dict(
        group_size=4, max_new_tokens=60 if way == "sdpa" else 10, stop_id=STOP, seed=4, batch_size=8
    )
    want = generate(model, prompts, **settings)
    assert 0 < sum(want.finished) < len(want.ids)
    captured = as_on_a_gpu(monkeypatch, model, way, chunk)
    got = generate(model, prompts, **settings)
    assert captured and len(captured) == len(set(captured))  # each shape is captured once
    assert got.ids == want.ids and got.finished == want.finished
    for a, b in zip(got.logprobs, want.logprobs):
        assert a == pytest.approx(b, abs=3e-5)  # other shapes, other sums: 1.001e-5 on an EPYC


@pytest.mark.parametrize("way, chunk, seed", [("sdpa", 12, 4), ("sdpa", 5, 4), ("triton", 12, 6)])
def test_rows_that_leave_a_batch_as_on_a_gpu(way, chunk, seed, monkeypatch):
    """A step at a time: an earlier and larger batch has left its keys in the caches, and rows leave late."""
    skip_without_interpreter(way)
    model, prompts, columns = make(width=64, layers=LAYERS[way]), sorted(PROMPTS, key=len)[1:4], 12
    settings = Sampling(group_size=3, max_new_tokens=columns, stop_id=STOP, seed=seed)
    want = generate(model, prompts, **vars(settings))
    assert 0 < sum(want.finished) < len(want.ids)
    as_on_a_gpu(monkeypatch, model, way, chunk)
    decoder, sizes = sampler.Decoder(model, settings, 5, 30), set()
    with torch.inference_mode():
        decoder.prefill([[7] * 30] * 5, np.full((15, columns), 0.5))
        for column in range(1, 3 if way == "triton" else columns):  # few, again
            decoder.step(column)
        for cache in decoder.own:
            cache.normal_(std=2.0)
        decoder.prefill(prompts, sampler.uniform_numbers(seed, range(3), 3, columns))
        for column in range(1, columns):
            if column % 4 == 0:
                decoder.drop(decoder.stopped.numpy().copy(), column)
            sizes.add(len(decoder.live))
            decoder.step(column)
    assert decoder.prompt.shape[2:5] == (5, 2, 30) and decoder.buckets == [15, 8] and sizes == {9, 8}
    for row, (ids, logprobs) in enumerate(zip(want.ids, want.logprobs)):
        assert decoder.ids[row, : len(ids)].tolist() == ids
        assert decoder.logprobs[row, : len(ids)].tolist() == pytest.approx(logprobs, abs=1e-5)


def test_a_gpus_copy_of_the_weights_is_as_autocast_would_make_it():
    model = make()
    model.compute_dtype = torch.bfloat16
    copy = sampler.with_cast_weights(model)
    tokens = torch.tensor([PROMPTS[0]])
    assert copy.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.weight.dtype == copy.lm_head.weight.dtype == torch.float32
    assert torch.equal(copy(tokens)[0], model(tokens)[0])


def test_finished_rows_leave_and_the_others_do_not_notice():
    """A large batch of which most stop early: fewer rows are computed, and each is what it is alone."""
    computed, step = [], sampler.Decoder._next_token
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            sampler.Decoder,
            "_next_token",
            lambda self, n, chunks: computed.append(n) or step(self, n, chunks),
        )
        together = generate(
            MODEL, PROMPTS, group_size=24, max_new_tokens=120, stop_id=STOP, seed=5, batch_size=1000
        )
    lengths = [len(ids) for ids in together.ids]
    for column, n in enumerate(computed, 1):  # the smallest of the sizes that holds those which go on
        assert n == min(
            size
            for size in (168, 120, 88, 64, 48, 32, 24, 16, 8)
            if size >= sum(length > column for length in lengths)
        )
    assert computed[0] == 168 and computed[-1] < 88
    alone = generate(MODEL, PROMPTS, group_size=24, max_new_tokens=120, stop_id=STOP, seed=5, batch_size=24)
    assert alone.ids == together.ids


def test_prompts_leave_with_the_last_of_their_rows(monkeypatch):
    """And with the longest of them its columns; each row goes on with its own prompt."""
    prompts, seen, step = sorted(PROMPTS * 3, key=len), set(), sampler.Decoder._next_token

    def record(self, n, chunks):
        here = {row // 2 for row in self.rows[:n].tolist()}
        lengths = [len(prompts[row // 2]) for row in self.rows[:n].tolist()]
        assert self.lengths[self.seats[:n] // 2].tolist() == lengths
        assert n == 42 or self.prompt.shape[2:5:2] == (len(here), max(lengths))
        seen.add(self.prompt.shape[2])
        step(self, n, chunks)

    with monkeypatch.context() as m:
        m.setattr(sampler.Decoder, "_next_token", record)
        together = generate(MODEL, prompts, group_size=2, max_new_tokens=120, stop_id=STOP, seed=5)
    assert 21 in seen and len(seen) > 2
    alone = generate(MODEL, prompts, group_size=2, max_new_tokens=120, stop_id=STOP, seed=5, batch_size=2)
    assert alone.ids == together.ids


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", ["sdpa", "triton"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
def test_graphs_on_a_gpu_give_the_trainers_logprobs(way, dtype, tolerance):
    model = make(width=64).cuda()
    model.backend = BACKENDS[way]
    model.compute_dtype = dtype
    out = generate(model, PROMPTS, group_size=24, max_new_tokens=120, stop_id=STOP, seed=5, batch_size=100)
    for i in range(0, len(out.ids), 5):
        tokens = torch.tensor([PROMPTS[i // 24] + out.ids[i]], device="cuda")
        with torch.no_grad():
            logp = torch.log_softmax(model(tokens)[0][0].float(), -1)[len(PROMPTS[i // 24]) - 1 : -1]
        assert out.logprobs[i] == pytest.approx(
            [float(logp[j, t]) for j, t in enumerate(out.ids[i])], abs=tolerance
        )


def test_greedy_is_the_argmax_and_that_of_transformers():
    out = generate(MODEL, PROMPTS, max_new_tokens=20, temperature=0, stop_id=STOP)
    for prompt, ids in zip(PROMPTS, out.ids):
        tokens = list(prompt)
        for t in ids:
            assert int(MODEL(torch.tensor([tokens]))[0][0, -1].argmax()) == t
            tokens.append(t)
    peer = hugging_face(MODEL.config, MODEL)
    for prompt, ids in zip(PROMPTS, out.ids):
        out = peer.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=STOP,
            pad_token_id=0,
        )
        assert out[0, len(prompt) :].tolist() == ids


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
    out = generate(
        model,
        [prompt],
        group_size=n,
        max_new_tokens=1,
        temperature=temperature,
        top_p=top_p,
        stop_id=STOP,
        seed=7,
        batch_size=n,
    )
    counts = np.bincount([ids[0] for ids in out.ids], minlength=12)
    assert counts[p == 0].sum() == 0
    chi2 = ((counts - n * p)[p > 0] ** 2 / (n * p[p > 0])).sum()
    assert chi2 < 35  # 11 degrees of freedom: 1 in 4,000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_token_without_probability(dtype):
    """Whatever the random number is, the ends of [0, 1] and what rounding makes of them included."""
    logits = torch.full((3, 9), -float("inf"))
    logits[:, 2:5] = torch.tensor([0.3, 0.1, -0.2])
    uniform = torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2, 1.0], dtype=dtype)
    for top_p, last in ((1.0, 4), (0.5, 3), (1e-300, 2)):
        token, logp = sampler.sample_tokens(logits, 1.0, top_p, uniform)
        assert token.tolist() == [2, last, last] and logp.isfinite().all()


def test_random_numbers_are_a_function_of_seed_prompt_and_sample():
    """Every bit of a 64-bit seed counts, and neither the size of a group nor the columns asked for do."""
    seeds = [0, 1, 2**63 + 5, 2**63 + 6, 2**64 - 1, stream_key(1, "rollout", 5), stream_key(1, "rollout", 6)]
    drawn = [sampler.uniform_numbers(seed, [0, 1, 7], 3, 20) for seed in seeds]
    assert len(np.unique(np.concatenate(drawn), axis=0)) == len(seeds) * 9
    assert ((np.stack(drawn) >= 0) & (np.stack(drawn) < 1)).all()
    alone = sampler.uniform_numbers(seeds[3], [7], 2, 11)
    assert (alone == drawn[3].reshape(3, 3, 20)[2, :2, :11]).all()


def test_a_sample_does_not_depend_on_the_size_of_its_group():
    eight = generate(
        MODEL, PROMPTS, group_size=8, max_new_tokens=20, stop_id=STOP, seed=stream_key(3, "evaluate")
    )
    three = generate(
        MODEL, PROMPTS, group_size=3, max_new_tokens=20, stop_id=STOP, seed=stream_key(3, "evaluate")
    )
    assert three.ids == [eight.ids[p * 8 + g] for p in range(len(PROMPTS)) for g in range(3)]
    some = generate(
        MODEL, PROMPTS[4:], group_size=3, max_new_tokens=20, stop_id=STOP, seed=stream_key(3, "evaluate"),
        indices=range(4, len(PROMPTS)),
    )  # fmt: skip
    assert some.ids == three.ids[12:]


@pytest.mark.parametrize(
    "prompts, group, batch_size, sizes",
    [(1024, 6, 2048, [256] * 4), (1026, 6, 2052, [342] * 3), (7, 2, 5, [1, 2, 2, 2]), (3, 8, 4, [1, 1, 1])],
)
def test_batches_are_balanced(prompts, group, batch_size, sizes, monkeypatch):
    """As few as there can be, none larger than asked for, and no single prompt is left over."""
    seen, prefill = [], sampler.Decoder.prefill

    def record(self, some, uniforms):
        seen.append(len(some))
        prefill(self, some, uniforms)

    monkeypatch.setattr(sampler.Decoder, "prefill", record)
    out = generate(
        MODEL, [[5]] * prompts, group_size=group, max_new_tokens=1, stop_id=STOP, batch_size=batch_size
    )
    assert sorted(seen) == sizes and len(out.ids) == prompts * group and all(out.ids)


ERRORS = [
    ([], {}, "no prompt"),
    ([[]], {}, "an empty one"),
    ([[4] * 250], {}, "context of 256"),
    ([[4]], {"temperature": -1.0}, "--temperature"),
    ([[4]], {"temperature": float("nan")}, "--temperature"),
    ([[4]], {"temperature": 1e-45}, "give 0, which is greedy"),
    ([[4]], {"top_p": 0.0}, "--top-p"),
    ([[4]], {"top_p": 1.1}, "--top-p"),
    ([[4]], {"seed": -1}, "--seed"),
    ([[4]], {"seed": 2**64}, "--seed"),
    ([[4]], {"group_size": 0}, "--group-size"),
    ([[4]], {"max_new_tokens": 0}, "--max-new-tokens"),
    ([[4]], {"batch_size": 0}, "--batch-size"),
]


@pytest.mark.parametrize("prompts, settings, words", ERRORS)
def test_errors(prompts, settings, words):
    with pytest.raises(UserError, match=words) as error:
        generate(MODEL, prompts, **{"max_new_tokens": 10, "stop_id": STOP, **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [2, 3, 9])
def test_samples_do_not_depend_on_how_many_work_at_them(workers):
    model, prompts = make(), [[5, 6, 7, 8], [9, 4], [11, 3, 5], [8], [7, 7, 7]]
    how = dict(group_size=3, max_new_tokens=20, stop_id=3, seed=4)
    alone, shared = generate(model, prompts, **how), generate(model, prompts, workers=workers, **how)
    assert alone.ids == shared.ids and alone.finished == shared.finished
    for a, b in zip(alone.logprobs, shared.logprobs):
        assert a == pytest.approx(b, abs=1e-5)
