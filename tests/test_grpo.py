import copy
import math
import random
from types import SimpleNamespace
from unittest.mock import MagicMock

from lab.device import Processes
from lab.options import UserError, stream_key
from lab.replicas import Replicas
from lab.runs import Guard

import pytest
import torch
from test_model import randomise

import datagen
import sampler
import train_grpo
from attention import BACKENDS
from data import IGNORE, Document, pack
from datagen import Mixture
from model import ModelConfig, Qwen2
from rollout import Problems, Rollout, pack_rollouts, token_logps
from train_grpo import GRPO, Options, group_advantages, grpo_loss, objective


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0]])
    std = group_advantages(rewards)
    # group 1: mean 1/2, standard deviation with G - 1: sqrt(4 · 1/4 / 3)
    assert std[0].tolist() == pytest.approx(
        [0.5 / math.sqrt(1 / 3), -0.5 / math.sqrt(1 / 3)] * 1
        + [-0.5 / math.sqrt(1 / 3), 0.5 / math.sqrt(1 / 3)],
        rel=1e-4,
    )
    assert std[1].tolist() == [0, 0, 0, 0]
    assert std[2].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-4)  # deviation 1/2
    assert group_advantages(rewards, "mean")[2].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_advantages_metamorphic():
    torch.manual_seed(0)
    rewards = torch.rand(5, 6)
    order = torch.randperm(6)
    for normalize in ("std", "mean"):
        a = group_advantages(rewards, normalize)
        torch.testing.assert_close(group_advantages(rewards[:, order], normalize), a[:, order])
        torch.testing.assert_close(group_advantages(rewards + 7, normalize), a, atol=1e-4, rtol=1e-4)
        assert a.sum(1).abs().max() < 1e-5
    torch.testing.assert_close(group_advantages(3 * rewards), group_advantages(rewards), atol=1e-4, rtol=1e-4)
    awkward = torch.full((1, 6), 0.1) * 3  # equal rewards whose mean is not exactly themselves
    assert (group_advantages(awkward) == 0).all()


def test_loss_and_gradient_by_hand_2x2():
    """Two samples of two tokens; the second token of sample 2 is padding. Every number below is worked out by
    hand.
    """
    ratio = [[1.5, 0.5], [0.9, 123.0]]
    old = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    logp = (old + torch.tensor(ratio).log()).requires_grad_()
    ref = old.clone()
    mask = torch.tensor([[1, 1], [1, 0]])
    advantages = torch.tensor([[1.0], [-2.0]])
    loss, stats = grpo_loss(logp, old, ref, advantages, mask, clip_ratio=0.2, kl_coef=0.1)
    # token 1: A = 1, r = 1.5: min(1.5, 1.2) = 1.2, clipped, no gradient
    # token 2: A = 1, r = 0.5: min(0.5, 0.8) = 0.5, gradient of −r is −r = −0.5
    # token 3: A = −2, r = 0.9: min(−1.8, −1.8) = −1.8, gradient of 2r is 1.8
    # k3 with ref = old: 1/r − 1 + log r, gradient 1 − 1/r
    k3 = [1 / r - 1 + math.log(r) for r in (1.5, 0.5, 0.9)]
    assert float(loss) == pytest.approx((-1.2 - 0.5 + 1.8 + 0.1 * sum(k3)) / 3, rel=1e-5)
    loss.backward()
    want = [[0.1 * (1 - 1 / 1.5), -0.5 + 0.1 * (1 - 2)], [1.8 + 0.1 * (1 - 1 / 0.9), 0.0]]
    torch.testing.assert_close(logp.grad, torch.tensor(want) / 3)
    assert float(stats["kl"]) == pytest.approx(sum(k3), rel=1e-5) and float(stats["clip_fraction"]) == 1


def test_dual_clip_bounds_the_loss_of_a_bad_sample():
    old, logp = torch.zeros(1, 1), torch.full((1, 1), math.log(50.0), requires_grad=True)
    args = (old, None, torch.tensor([[-1.0]]), torch.ones(1, 1))
    assert float(grpo_loss(logp, *args)[0]) == pytest.approx(50)
    loss, _ = grpo_loss(logp, *args, dual_clip=3.0)
    loss.backward()
    assert float(loss) == pytest.approx(3) and float(logp.grad) == 0


def test_an_asymmetric_clip_by_hand():
    """Below 1 - 0.2 and above 1 + 0.28 (DAPO's clip-higher): ratios 1.25 and 1.5 of a good sample, 0.7 of both kinds."""
    ratio, advantages = torch.tensor([[1.25, 1.5, 0.7, 0.7]]), torch.tensor([[1.0, 1.0, 1.0, -1.0]])
    logp = ratio.log().requires_grad_()
    args = (torch.zeros(1, 4), None, advantages, torch.ones(1, 4))
    loss, stats = grpo_loss(logp, *args, clip_ratio=(0.2, 0.28))
    loss.backward()
    # min(r, clip(r)): 1.25 is within, 1.5 → 1.28, 0.7; of the bad sample max(0.7, 0.8) = 0.8, clipped
    assert float(loss) == pytest.approx(-(1.25 + 1.28 + 0.7 - 0.8) / 4, rel=1e-6)
    torch.testing.assert_close(logp.grad, torch.tensor([[-1.25, 0.0, -0.7, 0.0]]) / 4)
    assert float(stats["clip_fraction"]) == 2
    assert float(grpo_loss(logp, *args, clip_ratio=0.2)[1]["clip_fraction"]) == 3
    symmetric = [grpo_loss(logp, *args, clip_ratio=clip)[0] for clip in (0.2, (0.2, 0.2))]
    assert torch.equal(*symmetric)


def test_kl_estimators_by_hand():
    """Schulman's k1, k2 and k3 of one token, log-probabilities -1 and -1.5, and their derivatives by the policy's."""
    d = -0.5
    want = {"k1": (0.5, 1.0), "k2": (0.125, 0.5), "k3": (math.exp(d) - d - 1, 1 - math.exp(d))}
    for name, (value, slope) in want.items():
        logp = torch.tensor([[-1.0]], requires_grad=True)
        args = (torch.tensor([[-1.5]]), torch.zeros(1, 1), torch.ones(1, 1))
        loss, stats = grpo_loss(logp, logp.detach(), *args, kl_coef=0.1, kl_estimator=name)
        loss.backward()
        assert float(stats["kl"]) == pytest.approx(value, rel=1e-5)
        assert float(loss.detach()) == pytest.approx(0.1 * value, rel=1e-5)
        assert float(logp.grad) == pytest.approx(0.1 * slope, rel=1e-5)


def test_mean_gradients_of_the_kl_estimators():
    """Where samples are the policy's own: of k1 0, of k2 that of the KL (as grpo_loss says)."""
    torch.manual_seed(4)
    z, q = (
        torch.randn(6, dtype=torch.float64, requires_grad=True),
        torch.softmax(torch.randn(6, dtype=torch.float64), 0),
    )
    p = torch.softmax(z, 0)
    (exact,) = torch.autograd.grad((p * (p / q).log()).sum(), z, retain_graph=True)
    for name, want in (("k1", torch.zeros(6, dtype=torch.float64)), ("k2", exact)):
        loss, _ = grpo_loss(
            p.log(),
            p.log().detach(),
            q.log(),
            torch.zeros(6),
            p.detach(),
            count=1,
            kl_coef=1.0,
            kl_estimator=name,
        )
        (found,) = torch.autograd.grad(loss, z, retain_graph=True)
        torch.testing.assert_close(found, want)


def test_normalisations_by_hand(monkeypatch):
    """Tries of 1 and 3 tokens at a limit of 4, ratio 1, advantages 1 and -2: the loss of `learn` is minus the sum of the
    tokens' weighted advantages.
    """
    want = {"token-mean": -(1 - 6) / 4, "sequence-mean": -(1 - 2) / 2, "fixed-length": -(1 - 6) / 8}
    for name, value in want.items():
        model = make()
        some = [rollout([5, 6], ids, None, advantage) for ids, advantage in (([7], 1.0), ([8, 9, 3], -2.0))]
        for it in some:
            logits = model(torch.tensor([it.prompt_ids + it.completion_ids]))[0][0].log_softmax(-1)
            it.old_logp = [float(logits[1 + i, token].detach()) for i, token in enumerate(it.completion_ids)]
        stats = learner(model, normalisation=name, max_new_tokens=4).learn(some)
        assert stats["loss"] == pytest.approx(value, rel=1e-5), name
    assert learner(make(), max_new_tokens=4).learn(some)["loss"] == pytest.approx(-(1 - 6) / 4, rel=1e-2)


@pytest.mark.parametrize("options", [{"normalisation": "sequence-mean"}, {"normalisation": "fixed-length"},
                                     {"kl_estimator": "k1"}, {"kl_estimator": "k2"}, {"clip_ratio": "0.05,0.4"}])  # fmt: skip
def test_variants_do_not_depend_on_micro_batches(options):
    after = []
    for micro_batch_size in (1, 8):
        it = learner(make(), make(1), micro_batch_size=micro_batch_size, **options)
        it.learn(samples())
        after.append(parameters(it.model))
    torch.testing.assert_close(*after, atol=1e-6, rtol=1e-5)
    plain = learner(make(), make(1))
    plain.learn(samples())
    assert not torch.equal(parameters(plain.model), after[0])


@pytest.mark.parametrize("text", ["0.2,", "0.2,x", "0.2,0.3,0.4", "0,0.2", "0.2,inf", "nan,1", "a", "-0.2"])
def test_a_clip_ratio_that_is_none(text):
    with pytest.raises(UserError, match="--clip-ratio"):
        objective(Options(clip_ratio=text))
    assert (
        objective(Options())["clip_ratio"] == (0.2, 0.2) == objective(Options(clip_ratio="0.2"))["clip_ratio"]
    )
    assert objective(Options(clip_ratio="0.2,0.28"))["clip_ratio"] == (0.2, 0.28)


def test_policy_equal_to_the_reference_has_no_kl_and_ratio_one():
    logp = -torch.rand(3, 5)
    _, stats = grpo_loss(logp, logp, logp, torch.randn(3, 1), torch.ones(3, 5))
    assert float(stats["kl"]) == 0 and float(stats["ratio"]) == 15 and float(stats["clip_fraction"]) == 0


def test_gradient_of_the_kl_term_is_that_of_its_formula():
    """k3 = exp(d) − d − 1 with d = ref − logp: its derivative by logp is 1 − exp(d); and its mean is the KL
    where samples are the policy's.
    """
    torch.manual_seed(3)
    logp, ref = (-torch.rand(3, 4)).requires_grad_(), -torch.rand(3, 4)
    loss, _ = grpo_loss(logp, logp.detach(), ref, torch.zeros(3, 1), torch.ones(3, 4), kl_coef=0.7)
    loss.backward()
    torch.testing.assert_close(logp.grad, 0.7 * (1 - torch.exp(ref - logp.detach())) / 12)
    p, q = torch.softmax(torch.randn(6), 0), torch.softmax(torch.randn(6), 0)
    _, stats = grpo_loss(p.log(), p.log(), q.log(), torch.zeros(6), torch.ones(6))
    d = q.log() - p.log()
    assert float((p * (d.exp() - d - 1)).sum()) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)
    assert float(stats["kl"]) == pytest.approx(float((d.exp() - d - 1).sum()), rel=1e-4)


def test_zero_variance_groups_contribute_only_the_kl():
    torch.manual_seed(0)
    logp, old, ref = (-torch.rand(4, 6) for _ in range(3))
    logp.requires_grad_()
    zero = group_advantages(torch.ones(2, 2)).view(-1, 1)
    loss, _ = grpo_loss(logp, old, ref, zero, torch.ones(4, 6), kl_coef=0.3)
    delta = ref - logp
    torch.testing.assert_close(loss, 0.3 * (delta.exp() - delta - 1).mean())
    assert float(grpo_loss(logp, old, None, zero, torch.ones(4, 6))[0]) == 0


@pytest.mark.parametrize("garbage", [0.0, 1e4, float("inf"), float("nan")])
def test_garbage_in_padding_changes_nothing(garbage):
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    tensors = [-torch.rand(2, 4) for _ in range(3)]
    clean = [t.clone().masked_fill(mask == 0, 0.0) for t in tensors]
    dirty = [t.clone().masked_fill(mask == 0, garbage) for t in tensors]
    out = []
    for logp, old, ref in (clean, dirty):
        logp.requires_grad_()
        loss, stats = grpo_loss(logp, old, ref, torch.tensor([[1.0], [-1.0]]), mask)
        loss.backward()
        out.append((loss, logp.grad, stats["kl"], stats["clip_fraction"]))
    for a, b in zip(*out):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kl, delta", [(0.05, None), (0.0, None)])
def test_agrees_with_trl(kl, delta):
    """TRL's own loss function on the same tensors (token-mean, 'bnpo'). Runs where TRL is installed; it is no
    dependency.
    """
    trl = pytest.importorskip("trl")
    torch.manual_seed(2)
    old, ref = -torch.rand(4, 7), -torch.rand(4, 7)
    logp = (old + 0.5 * torch.randn(4, 7)).requires_grad_()
    mask = (torch.rand(4, 7) < 0.8).long()
    advantages = torch.randn(4)
    stub = MagicMock()
    stub._get_per_token_logps_and_entropies = lambda *a, **k: (logp, torch.zeros(4, 7), None)
    stub.__dict__.update(
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=kl, loss_type="bnpo",
        epsilon_low=0.2, epsilon_high=0.2, use_vllm=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        aux_loss_enabled=False, args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, report_to=[]))  # fmt: skip
    stub.accelerator.gather = lambda x: x
    inputs = {"prompt_ids": torch.zeros(4, 1), "prompt_mask": torch.ones(4, 1), "completion_ids": torch.zeros(4, 7), "completion_mask": mask,
              "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": ref}  # fmt: skip
    theirs = trl.GRPOTrainer._compute_loss(stub, None, inputs)
    (their_grad,) = torch.autograd.grad(theirs, logp)
    ours, _ = grpo_loss(logp, old, ref if kl else None, advantages[:, None], mask, kl_coef=kl)
    (our_grad,) = torch.autograd.grad(ours, logp)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_grad, their_grad)


ONE = Processes(torch.device("cpu"))


def make(seed=0):
    torch.manual_seed(seed)
    return randomise(Qwen2(ModelConfig(40, 32, 64, 2, 4, 2, 128)))


def samples(n=8, vocab=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    out = []
    for i in range(n):
        prompt, completion = (torch.randint(4, vocab, (k,), generator=g).tolist() for k in (3 + i % 4, 2 + i))
        old, advantage = -torch.rand(len(completion), generator=g), torch.randn(1, generator=g)
        out.append(rollout(prompt, completion, old.tolist(), float(advantage)))
    return out


def rollout(prompt, completion, old_logp, advantage):
    return Rollout(None, prompt, completion, old_logp, True, "", None, advantage=advantage)


def learner(model, reference=None, optimizer=None, **options):
    """A GRPO run without its folder: what `learn` needs."""
    it = GRPO.__new__(GRPO)
    it.o = Options(**{"row_tokens": 64, "kl": 0.1 if reference else 0.0, "lr": 0.1, **options})
    it.model, it.reference, it.device, it.processes = model, reference, torch.device("cpu"), ONE
    it.objective = objective(it.o)
    it.optimizers = [optimizer or torch.optim.SGD(model.parameters(), lr=0.1)]
    it.replicas = Replicas(model, it.o.replicas)
    it.tokenizer, it.guard, it.step, it.updates = SimpleNamespace(pad_id=0), Guard(10), 0, 0
    return it


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_permuting_a_minibatch_changes_nothing():
    after = []
    for order in (range(8), [5, 2, 7, 0, 1, 6, 3, 4]):
        it, some = learner(make(), make(1)), samples()
        it.learn([some[i] for i in order])
        after.append(parameters(it.model))
    torch.testing.assert_close(*after, atol=1e-6, rtol=1e-5)


def test_an_update_that_is_not_finite_leaves_the_weights():
    it, some = learner(make()), samples()
    before = parameters(it.model)
    some[0].advantage = float("nan")
    assert not math.isfinite(it.learn(some)["loss"])
    assert torch.equal(before, parameters(it.model)) and it.guard.skipped == 1


def test_micro_batches_change_nothing():
    """Gradient of one minibatch in micro-batches of 1 row and of 8: the same parameters after the step."""
    after = []
    for micro_batch_size in (1, 3, 8):
        it = learner(make(), make(1), micro_batch_size=micro_batch_size)
        stats = it.learn(samples())
        after.append((parameters(it.model), stats))
    for weights, stats in after[1:]:
        torch.testing.assert_close(weights, after[0][0], atol=1e-6, rtol=1e-5)
        assert stats == pytest.approx(after[0][1], rel=1e-4)


def test_samples_without_advantage_are_not_computed_where_they_change_nothing(monkeypatch):
    """Without a KL: the same gradient and loss as with them; with all advantages 0 a step with a gradient of
    0, not none.
    """
    scored, score = [], train_grpo.token_logps

    def counting(model, micro, temperature):
        scored.append(int((micro.targets >= 0).sum()))
        return score(model, micro, temperature)

    monkeypatch.setattr(train_grpo, "token_logps", counting)
    some, none, after = samples(), samples(), []
    for i, (a, b) in enumerate(zip(some, none)):
        a.advantage, b.advantage = a.advantage if i % 3 else 0.0, 0.0
    for kl in (0.0, 1e-30):  # so small a weight adds nothing, but every sample is computed
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        it = learner(model, make() if kl else None, optimizer, kl=kl, lr=0.01, row_tokens=64)
        for batch in (some, none):
            stats = it.learn(batch)
            assert kl or batch is some or stats["grad_norm"] == 0
        after.append((parameters(model), stats["loss"]))
    torch.testing.assert_close(after[0], after[1], atol=1e-6, rtol=1e-5)
    used = sum(len(s.completion_ids) for s in some if s.advantage)
    assert sum(scored[:1]) <= used and sum(scored) > 3 * used


def test_packed_logps_are_those_of_each_sample_alone():
    model, some = make(), samples()
    (micro,) = pack_rollouts(some, 64, 0, 99, torch.device("cpu"))
    logp, _ = token_logps(model, micro, 0.7)
    mask = micro.targets != IGNORE
    assert int(mask.sum()) == micro.trained == sum(len(s.completion_ids) for s in some)
    assert ((micro.values["old_logp"] != 0) == mask).all() and (
        (micro.values["advantage"] != 0) == mask
    ).all()
    found, want = {}, {}
    for old, new, advantage in zip(
        *(x[mask].tolist() for x in (micro.values["old_logp"], logp, micro.values["advantage"]))
    ):
        found[round(old, 5), round(advantage, 5)] = new
    for s in some:
        alone = torch.log_softmax(model(torch.tensor([s.prompt_ids + s.completion_ids]))[0][0] / 0.7, -1)
        for j, token in enumerate(s.completion_ids):
            key = round(s.old_logp[j], 5), round(s.advantage, 5)
            want[key] = float(alone[len(s.prompt_ids) - 1 + j, token].detach())
    assert found == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("row_tokens", [20, 43, 400])  # most groups cut, some, none
@pytest.mark.parametrize("way", ["reference", "sdpa"])
def test_a_shared_prompt_changes_neither_loss_nor_gradient(way, row_tokens, kl):
    """Against rows in which every sample stands behind a prompt of its own."""
    rand, some = random.Random(1), []
    for p in range(4):
        prompt = [rand.randrange(4, 30) for _ in range((1, 2, 9, 5)[p])]
        for _ in range((5, 1, 4, 6)[p]):
            ids = [rand.randrange(3, 30) for _ in range(rand.randrange(1, 9))]
            some.append(rollout(prompt, ids, [-3.0 - 0.1 * rand.random() for _ in ids], rand.uniform(-1, 1)))

    def alone():
        for s in some:
            before, n = len(s.prompt_ids), len(s.completion_ids)
            values = {
                "old_logp": [0.0] * before + s.old_logp,
                "advantage": [0.0] * before + [s.advantage] * n,
            }
            document = Document(s.prompt_ids + s.completion_ids, [False] * before + [True] * n, values)
            yield from pack([document], 64, 0).micro_batches(9, torch.device("cpu"))

    def loss_and_gradients(micro_batches):
        model, reference, total = make(), make(1), 0.0
        model.backend = reference.backend = BACKENDS[way]
        for micro in micro_batches:
            mask = micro.targets != IGNORE
            logp, _ = token_logps(model, micro, 0.9)
            ref_logp = token_logps(reference, micro, 0.9)[0].detach() if kl else None
            old_logp, advantage = micro.values["old_logp"], micro.values["advantage"]
            loss, _ = grpo_loss(logp, old_logp, ref_logp, advantage, mask, count=50, kl_coef=kl)
            loss.backward()
            total += loss.detach()
        return total, [p.grad for p in model.parameters()]

    batches = [*pack_rollouts(some, row_tokens, 0, 2, torch.device("cpu"))]
    assert sum(batch.trained for batch in batches) == sum(len(s.completion_ids) for s in some)
    assert sum(len(batch.tokens) for batch in batches) == {20: 8, 43: 3, 400: 1}[row_tokens]
    shared = loss_and_gradients(batches)
    torch.testing.assert_close(shared, loss_and_gradients(alone()), atol=2e-6, rtol=1e-4)


def test_the_sampling_temperature_is_the_one_that_is_scored():
    model, prompts = make(), [[5, 6, 7], [9, 4]]
    out = sampler.generate(
        model, prompts, group_size=3, max_new_tokens=12, temperature=0.6, stop_id=3, seed=1
    )
    rollouts = [rollout(prompts[i // 3], ids, out.logprobs[i], 1.0) for i, ids in enumerate(out.ids)]
    (micro,) = pack_rollouts(rollouts, 64, 0, 99, torch.device("cpu"))
    logp, _ = token_logps(model, micro, 0.6)
    torch.testing.assert_close(logp.detach(), micro.values["old_logp"], atol=1e-5, rtol=0)


def test_gradient_ascends_the_reward():
    """A bandit: one prompt, reward for one token. The chance of that token must rise."""
    model, prompt, good = make(), [5, 6, 7], 11
    it = learner(model, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3), lr=3e-3)
    chance = []
    for step in range(15):
        out = sampler.generate(model, [prompt], group_size=64, max_new_tokens=1, stop_id=3, seed=step)
        rewards = torch.tensor([[float(ids[0] == good) for ids in out.ids]])
        chance.append(float(torch.softmax(model(torch.tensor([prompt]))[0][0, -1], -1)[good].detach()))
        advantages = group_advantages(rewards)[0].tolist()
        it.learn([rollout(prompt, *s) for s in zip(out.ids, out.logprobs, advantages)])
    assert chance[-1] > 5 * chance[0]


def test_edge_selection_keeps_what_is_neither_solved_nor_hopeless():
    o = Options(select="edge", select_pool=20, select_bound=0.5, prompts=6)
    problems = Problems(o, Mixture.parse("op 2-10"), ())
    found = problems.refresh(lambda some: [{0: 0.0, 1: 0.25, 2: 1.0}[p.op % 3] for p in some])
    pool = [problems._problem("candidate", i) for i in problems.pool]
    assert {p.op % 3 for p in pool} == {1} and len(pool) == 20 and 0.2 < found < 0.5

    def ids(step):
        return [p.id for p in problems.of_step(step, range(6))]

    assert set(ids(3)) <= {p.id for p in pool} and len(ids(3)) == 6 and ids(3) == ids(3) != ids(4)
    before = set(problems.pool)
    problems.refresh(lambda some: [0.25] * len(some))
    assert not before & set(problems.pool)  # estimated anew, on new problems
    with pytest.raises(UserError, match="edge"):
        problems.refresh(lambda some: [1.0] * len(some))


def test_problems_are_a_function_of_the_step_and_of_the_rl_split():
    problems = Problems(Options(prompts=5), Mixture.parse("op 2-4"), ())
    a, b = problems.of_step(7, range(5)), copy.deepcopy(problems).of_step(7, range(5))
    assert [p.id for p in a] == [p.id for p in b] and all(datagen.split_of(p) == "rl" for p in a)
    assert [p.id for p in problems.of_step(7, range(1, 5, 2))] == [a[1].id, a[3].id]
    assert {p.problem for p in a}.isdisjoint(p.problem for p in problems.of_step(8, range(5)))


def test_no_two_purposes_share_their_noise(monkeypatch):
    """Samples of a step, of another step, of another seed, of a pass rate, of another round: streams of their
    own.
    """
    streams = []

    def sampled(model, tokenizer, problems, group_size, stream, numbers, **sampling):
        streams.append(stream_key(*stream))
        stand_in = dict(verdict=SimpleNamespace(solved=False), prompt_ids=[1], completion_ids=[2, 3])
        return [SimpleNamespace(**stand_in)] * (len(problems) * group_size)

    monkeypatch.setattr(train_grpo, "roll_out", sampled)
    for seed in (0, 1):
        for step in (4, 5):
            it = learner(make())
            it.o, it.step, it.sampling = Options(seed=seed, prompts=4, select_samples=2), step, {}
            it.tokens = 0
            it.problems = Problems(it.o, Mixture.parse("op 2"), ())
            for it.problems.candidates in (0, 256):
                it.pass_rates([None] * 4)
            assert it.tokens == 2 * 4 * 2 * 3  # what is sampled to choose problems is paid for too
            it.mine = range(4)
            with pytest.raises(AttributeError):  # the stand-ins have no reward: the stream is known by then
                it.take_step()
    assert len(set(streams)) == len(streams) == 12
