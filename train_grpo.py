"""GRPO with rewards from the judge. The mathematics is on top, as pure functions; the loop is below.

    python train_grpo.py --preset tiny --init-from out/base/latest --out out/grpo

One step: prompts → G samples each → judge → rewards (P, G) → advantages (P, G) → minibatches of the clipped objective.
Shapes: P prompts, G group, N = P*G samples, T positions.
"""

import copy
import random
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

import cli
import common
import data
import datagen
import verify
from attention import BACKENDS

# ----------------------------------------------------------------------------------------------------------------------
# The mathematics


def group_advantages(rewards, normalize="std", eps=1e-6):
    """Advantage of each sample over its group (DeepSeekMath, section 4.1.2): rewards (P, G) → advantages (P, G).

    normalize: "std" divides by the group's standard deviation (with G - 1), "mean" does not (Dr. GRPO).
    A group of equal rewards gets exactly 0.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    centred = rewards - rewards.mean(1, keepdim=True)
    centred = torch.where(rewards == rewards[:, :1], 0.0, 1.0).amax(1, keepdim=True) * centred  # no rounding left in equal groups
    if normalize == "mean" or rewards.shape[1] == 1:
        return centred
    return centred / (rewards.std(1, keepdim=True) + eps)


def grpo_loss(logp, old_logp, ref_logp, advantages, mask, *, count=None, clip=0.2, dual_clip=None, kl_coef=1e-3):
    """Clipped policy objective plus KL to the reference, summed over tokens and divided by one global count.

    logp, old_logp, ref_logp: log-probabilities of the sampled tokens under the policy, the sampler and the frozen
    reference (None: no KL); advantages broadcast over tokens; mask: 1 where a token was sampled. All of one shape.
    count: the number of sampled tokens that the loss is a mean over (default: of this mask); give that of the whole
    minibatch when the loss is taken in micro-batches.
    loss = Σ mask · (−min(r·A, clip(r, 1−ε, 1+ε)·A) + β·k3) / count        r = exp(logp − old_logp)
    k3 = exp(ref − logp) − (ref − logp) − 1 (Schulman 2020); dual_clip c: the first term is at most c·|A| where A < 0.
    Returns loss and stats: sums over tokens, to be divided by the count (kl, clipped, ratio).
    """
    mask = mask.to(logp.dtype)
    count = mask.sum() if count is None else count
    keep = mask > 0
    ratio = torch.exp(torch.where(keep, logp - old_logp, 0.0))
    policy = torch.maximum(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages)
    if dual_clip is not None:
        policy = torch.where(advantages < 0, torch.minimum(policy, -dual_clip * advantages), policy)
    loss = torch.where(keep, policy, 0.0).sum()
    clipped = ((ratio - 1) * advantages.sign() > clip) & keep
    stats = {"clip_fraction": clipped.sum().detach(), "ratio": (ratio * mask).sum().detach()}
    if ref_logp is not None:
        delta = torch.where(keep, ref_logp - logp, 0.0)
        k3 = torch.exp(delta) - delta - 1
        loss = loss + kl_coef * k3.sum()
        stats["kl"] = k3.sum().detach()
    return loss / count, stats


# ----------------------------------------------------------------------------------------------------------------------
# The loop


@dataclass(frozen=True)
class Options:
    preset: str = cli.opt("tiny", "defaults of all other options: " + ", ".join(common.PRESETS))
    out: str = cli.opt("out/grpo", "run folder: checkpoints step_N, latest, best; metrics.jsonl, samples.txt")
    resume: bool = cli.opt(False, "go on with the run in --out, with its options, if there is one")
    init_from: str = cli.opt("out/base/latest", "checkpoint folder of the policy to start from; also the frozen reference")
    seed: int = cli.opt(0, "seed of prompts and samples")
    device: str = cli.opt("auto", "auto, cpu, cuda or mps")
    threads: int = cli.opt(0, "CPU threads (0: torch's default)")
    attention: str = cli.opt("auto", "triton, sdpa, reference, or auto: the Triton kernels on a CUDA GPU; results differ in rounding only", BACKENDS)
    dtype: str = cli.opt("auto", "of matrix products: float32, bfloat16, or auto: bfloat16 on a CUDA GPU, else float32", common.DTYPES)
    mixture: str = cli.opt("op 11-14", "problems to learn from (split rl): see data.Mixture")
    data: str | None = cli.opt(None, "take the problems from this JSONL file (GSM-Infinite keys) instead")
    steps: int = cli.opt(100, "GRPO steps", group="rollouts")
    prompts: int = cli.opt(1024, "prompts of a step, P")
    group: int = cli.opt(6, "samples of a prompt, G")
    temperature: float = cli.opt(1.0, "of sampling and of the scored distribution")
    max_new_tokens: int = cli.opt(1024, "longest completion, in tokens")
    sample_rows: int = cli.opt(512, "rows that are sampled together")
    reward: str = cli.opt("strict", "outcome, process, mixed, strict or faithful: see verify.reward",
                          ("outcome", "process", "mixed", "strict", "faithful"), group="reward and objective")  # fmt: skip
    alpha: float = cli.opt(0.2, "weight of the outcome in the mixed reward")
    advantage: str = cli.opt("std", "std: divide by the group's standard deviation; mean: do not", ("std", "mean"))
    minibatch: int = cli.opt(256, "prompts of a minibatch; one optimizer step each")
    compile: bool = cli.opt(False, "have torch.compile fuse the layers (on a GPU)")
    micro_batch_size: int = cli.opt(4, "packed rows of a micro-batch, for memory; results do not depend on it")
    row_tokens: int = cli.opt(2048, "tokens of a packed row")
    clip: float = cli.opt(0.2, "PPO clip of the probability ratio")
    dual_clip: float | None = cli.opt(None, "bound of the loss of a bad sample whose ratio explodes, such as 3")
    kl: float = cli.opt(1e-3, "weight of the KL to the reference")
    lr: float = cli.opt(1e-6, "learning rate (constant after --warmup-steps)")
    warmup_steps: int = cli.opt(0, "optimizer steps with rising learning rate")
    weight_decay: float = cli.opt(0.0, "of AdamW")
    beta2: float = cli.opt(0.999, "of AdamW")
    max_norm: float = cli.opt(1.0, "largest gradient norm")
    select: str = cli.opt("all", "all problems, or those at the edge of competence: 0 < pass rate <= bound", ("all", "edge"),
                          group="edge of competence")  # fmt: skip
    select_samples: int = cli.opt(8, "samples per candidate to estimate its pass rate")
    select_bound: float = cli.opt(0.5, "largest pass rate of an edge problem")
    select_pool: int = cli.opt(256, "edge problems to find before each round of training")
    select_every: int = cli.opt(20, "steps of a round; then the edge is estimated anew")
    max_bad_steps: int = cli.opt(10, "updates in a row with a loss or gradient that is not finite (each skipped) before giving up")
    save_every: int = cli.opt(50, "steps between checkpoints", group="looking and saving")
    show: int = cli.opt(2, "samples to write to samples.txt at each checkpoint, judged")
    keep: int = cli.opt(2, "checkpoints to keep, besides the best")
    tensorboard: bool = cli.opt(False, "write metrics for TensorBoard too (if it is installed)")
    wandb: bool = cli.opt(False, "send metrics to Weights & Biases too (if it is installed)")
    dry_run: bool = cli.opt(False, "print parameters, tokens (at most), FLOPs, memory and steps, and stop")

    def __post_init__(self):
        cli.at_least(self, 1, "steps", "prompts", "group", "max_new_tokens", "sample_rows", "minibatch", "micro_batch_size", "row_tokens", "select_samples",
                     "select_pool", "select_every", "save_every", "keep", "max_bad_steps")  # fmt: skip
        cli.at_least(self, 0, "alpha", "clip", "kl", "lr", "warmup_steps", "weight_decay", "threads", "show")
        if self.temperature <= 0:
            raise cli.UserError(f"--temperature must be positive, not {self.temperature}: greedy samples have no group to learn from")


class Prompts:
    """The problems of each step: a pure function of (seed, step), or of the edge pool that `refresh` found."""

    def __init__(self, o, mixture, records, pool=None, next_candidate=1 << 40):
        """pool: indices of the pool's problems; candidates for it, from next_candidate on, are none of the plain stream's."""
        self.o, self.mixture, self.records, self.pool, self.next_candidate = o, mixture, records, pool, next_candidate

    def problem(self, index):
        if self.records:
            return self.records[index % len(self.records)]
        rand = random.Random(f"{self.o.seed}/{index}").random
        return datagen.generate(self.o.seed, index, split="rl", **self.mixture.arguments(rand))

    def step(self, step):
        """The `prompts` problems of a step."""
        if self.pool is None:
            return [self.problem(step * self.o.prompts + j) for j in range(self.o.prompts)]
        rand = random.Random(f"{self.o.seed}/pool/{step}")
        return [self.problem(self.pool[rand.randrange(len(self.pool))]) for _ in range(self.o.prompts)]

    def refresh(self, pass_rates):
        """Find `select_pool` problems with 0 < pass rate <= bound: failed at one try, solved at some.

        pass_rates: problems → list of rates. Raises UserError if 40 pools of candidates do not yield one edge problem each.
        """
        pool, tried = [], 0
        while len(pool) < self.o.select_pool:
            candidates = range(self.next_candidate, self.next_candidate + self.o.select_pool)
            self.next_candidate += len(candidates)
            tried += len(candidates)
            rates = pass_rates([self.problem(i) for i in candidates])
            pool += [i for i, rate in zip(candidates, rates) if 0 < rate <= self.o.select_bound]
            if tried >= 40 * self.o.select_pool and len(pool) < tried // 40:
                raise cli.UserError(f"--select edge found {len(pool)} problems with 0 < pass rate <= {self.o.select_bound} among {tried}; "
                                    "choose easier problems (--mixture) or more samples (--select-samples)")  # fmt: skip
        self.pool = pool[: self.o.select_pool]
        return len(pool) / tried


def pack_samples(prompts, completions, per_token, per_sample, row_tokens, pad_id):
    """Pack samples into rows without padding between them, and what belongs to their tokens beside them.

    prompts, completions: lists of N id lists; per_token: arrays of N lists, one value per completion token;
    per_sample: lists of N values. Returns Batch and one (B, T) float array per list, 0 where nothing was sampled.
    """
    documents = [(p + c, len(p)) for p, c in zip(prompts, completions)]
    longest = max(len(ids) for ids, _ in documents)
    places, rows = data.place([len(ids) for ids, _ in documents], max(row_tokens, longest))
    batch = data.fill(documents, places, rows, max(row_tokens, longest), pad_id, solution_only=True)
    arrays = [np.zeros(batch.tokens.shape, np.float32) for _ in range(len(per_token) + len(per_sample))]
    for i, ((row, start), (ids, prompt)) in enumerate(zip(places, documents)):
        where = slice(start + prompt - 1, start + len(ids) - 1)  # the positions that predict the completion
        for array, values in zip(arrays, per_token + per_sample):
            array[row, where] = values[i]
    return batch, arrays


def token_logprobs(model, batch, temperature, device):
    """log p of each target at this temperature, and the entropy there: (B, T), 0 where there is no target."""
    tokens, targets, doc_start = common.to_device(batch, device)
    mask = targets != data.IGNORE
    logp = torch.log_softmax(model.logits(tokens, doc_start, mask).float() / temperature, -1)
    out = torch.zeros(targets.shape, device=device).masked_scatter(mask, logp.gather(-1, targets[mask][:, None])[:, 0])
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum()
    return out, mask, entropy


def update(model, reference, optimizer, samples, o, pad_id, world, passes):
    """One minibatch: the gradient of grpo_loss over all its micro-batches and processes, then one optimizer step. Returns stats.

    samples: (prompt ids, completion ids, sampler's log-probs, advantage) of each of this process's samples; passes: whether a loss
    and a gradient norm are fit for a step. Without a KL, a sample of advantage 0 has no gradient: its tokens count, but are not computed.
    """
    device, totals, count = world.device, {}, world.sum([sum(len(ids) for _, ids, _, _ in samples)])[0]
    samples = [s for s in samples if reference is not None or s[3] != 0]
    computed = world.sum([sum(len(ids) for _, ids, _, _ in samples)])[0]
    if samples:
        prompts, completions, old, advantages = map(list, zip(*samples))
        batch, (old_logp, advantage) = pack_samples(prompts, completions, [old], [advantages], o.row_tokens, pad_id)
    for i in range(0, len(batch.tokens) if samples else 0, o.micro_batch_size):
        rows = slice(i, i + o.micro_batch_size)
        micro = data.Batch(*(a[rows] for a in batch))
        logp, mask, entropy = token_logprobs(model, micro, o.temperature, device)
        ref_logp = None
        if reference is not None:
            with torch.no_grad():
                ref_logp = token_logprobs(reference, micro, o.temperature, device)[0]
        loss, stats = grpo_loss(
            logp, torch.from_numpy(old_logp[rows]).to(device), ref_logp, torch.from_numpy(advantage[rows]).to(device), mask,
            count=count, clip=o.clip, dual_clip=o.dual_clip, kl_coef=o.kl)  # fmt: skip
        loss.backward()
        for name, value in {**stats, "entropy": entropy, "loss": loss.detach() * count}.items():
            totals[name] = totals.get(name, 0.0) + value  # no number is asked for before the end: a GPU would be waited for
    names = ["clip_fraction", "ratio", "entropy", "loss"] + ["kl"] * (reference is not None)
    totals = dict(zip(names, world.sum([float(totals.get(name, 0.0)) for name in names])))
    totals = {name: value / (count if name == "loss" else max(1, computed)) for name, value in totals.items()}
    for p in model.parameters():  # no gradient is a gradient of 0: the optimizer's moments fade all the same
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    world.sum_gradients(model)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_norm))
    if passes(totals["loss"], norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": norm, **totals}


def main():
    o, found = common.parse(Options, "grpo", __doc__)
    device = common.setup(o.device, o.seed, o.threads, o.attention)
    world = common.World(device)
    run = common.Run(o, world)
    if min(o.minibatch, o.prompts) % world.size or o.prompts % o.minibatch % world.size:
        raise cli.UserError(f"--prompts {o.prompts} and --minibatch {o.minibatch} must be multiples of the {world.size} processes")
    mixture = data.Mixture.parse(o.mixture)
    records = data.read_records(o.data) if o.data else None
    resumed = common.load_checkpoint(found, device, o.dtype) if found else None
    start = resumed or common.load_checkpoint(o.init_from, device, o.dtype)
    model, tokenizer, reference = start.model, start.tokenizer, None
    common.compile_layers(model, o, device)
    if o.kl:  # kept in the run folder, since the checkpoint we start from may be gone when the run is resumed
        reference = common.load_checkpoint(run.path / "reference", device, o.dtype).model if resumed else copy.deepcopy(model)
        reference.eval().requires_grad_(False)
    if o.dry_run:  # a pass to sample, three to learn, one of the reference
        longest = min(model.config.max_position_embeddings, 2 * o.max_new_tokens)
        common.describe_cost(model, o.steps * o.prompts * o.group * longest, o.steps, o.micro_batch_size * o.row_tokens, longest, passes=5 if o.kl else 4)
        return
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.lr, betas=(0.9, o.beta2), weight_decay=o.weight_decay, fused=True)
    first, updates, score, prompts_of, guard = 0, 0, [], Prompts(o, mixture, records), common.Guard(o.max_bad_steps)
    if resumed:
        resumed.load_optimizers([optimizer])
        first, updates, score = (resumed.state[name] for name in ("step", "updates", "rewards"))
        prompts_of = Prompts(o, mixture, records, resumed.state["pool"], resumed.state["next_candidate"])
        guard = common.Guard(o.max_bad_steps, resumed.state["skipped"], resumed.state["skipped_in_a_row"])
    run.open(resumed)
    if o.kl and not resumed and world.rank == 0:
        common.save_checkpoint(run.path / "reference", model, tokenizer, o, {"step": 0})

    def rollout(problems, indices, seed, group):
        return common.solve(model, tokenizer, problems, group, max_new_tokens=o.max_new_tokens, temperature=o.temperature, seed=seed,
                            batch_size=o.sample_rows, indices=indices)  # fmt: skip

    def pass_rates(problems):
        mine = range(world.rank, len(problems), world.size)
        *_, verdicts = rollout([problems[i] for i in mine], mine, o.seed, o.select_samples)
        rates = np.zeros(len(problems))
        rates[mine] = np.array([v.correct for v in verdicts]).reshape(len(mine), -1).mean(1)
        return world.sum(rates)

    bar = tqdm(total=o.steps, initial=first, desc=run.path.name, unit="step", disable=world.rank > 0)
    for step in range(first, o.steps + 1):
        stopping, due = run.should_stop(), step % o.save_every == 0 or step == o.steps
        if ((due and step) or stopping) and not (resumed and step == first):
            state = {"updates": updates, "rewards": score, "pool": prompts_of.pool, "next_candidate": prompts_of.next_candidate, **guard.state()}
            run.save(step, model, tokenizer, state, [optimizer], score=sum(score) / len(score) if due and score else None)
            score = [] if due else score
        if step == o.steps or stopping:
            break
        clock = time.perf_counter()
        if o.select == "edge" and step % o.select_every == 0:
            run.log(step, {"select/yield": prompts_of.refresh(pass_rates)})
        mine = range(world.rank, o.prompts, world.size)  # this process's prompts
        problems = [prompts_of.step(step)[i] for i in mine]
        prompts, samples, texts, verdicts = rollout(problems, mine, o.seed + 1 + step, o.group)
        sampled = time.perf_counter()
        rewards = torch.tensor([verify.reward(v, o.reward, o.alpha) for v in verdicts]).view(-1, o.group)  # (P, G)
        advantages = group_advantages(rewards, o.advantage)  # (P, G)

        stats = []
        for begin in range(0, o.prompts, o.minibatch):
            chosen = [n for n, i in enumerate(mine) if begin <= i < begin + o.minibatch]
            for group in optimizer.param_groups:
                group["lr"] = o.lr * min(1.0, (updates + 1) / max(1, o.warmup_steps))
            minibatch = [(prompts[n], samples.ids[i], samples.logprobs[i], float(advantages.view(-1)[i]))
                         for n in chosen for i in range(n * o.group, (n + 1) * o.group)]  # fmt: skip
            stats.append(update(model, reference, optimizer, minibatch, o, tokenizer.pad_id, world, partial(guard.passes, step, run)))
            updates += 1

        if world.rank == 0 and ((step + 1) % o.save_every == 0 or step + 1 == o.steps):
            for n in range(min(o.show, len(problems))):
                p, text = problems[n], texts[n * o.group]
                run.append("samples.txt", f"--- step {step}, reward {rewards[n, 0]:.2f}, advantage {advantages[n, 0]:+.2f}\n{data.get(p, 'problem')}\n"
                                  f"{data.get(p, 'question')}\n{text.strip()}\n{verify.explain(text, p)}\n\n")  # fmt: skip
        lengths = [len(ids) for ids in samples.ids]
        sums = {
            "reward": float(rewards.sum()),
            "pass@1": sum(v.correct for v in verdicts),
            "answer": sum(v.answer_correct for v in verdicts),
            "process": sum(v.process for v in verdicts),
            "faithful": sum(v.faithful for v in verdicts),
            "finished": sum(samples.finished),
            "length": sum(lengths),
            "zero_variance": o.group * float((rewards == rewards[:, :1]).all(1).sum()),
        }
        values = {
            **{f"rollout/{name}": value / (o.prompts * o.group) for name, value in zip(sums, world.sum(list(sums.values())))},
            **{f"train/{name}": float(np.mean([s[name] for s in stats])) for name in stats[0]},
            "train/skipped": guard.skipped,
            "time/sample": sampled - clock,
            "time/update": time.perf_counter() - sampled,
        }
        score.append(values["rollout/reward"])
        run.log(step + 1, values)
        bar.update()
        bar.set_postfix(reward=f"{values['rollout/reward']:.3f}", kl=f"{values.get('train/kl', 0):.4f}", len=f"{values['rollout/length']:.0f}")
    bar.close()
    if step < o.steps:
        run.stopped("train_grpo.py")
    world.close()


if __name__ == "__main__":
    common.run(main)
