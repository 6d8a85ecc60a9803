"""GRPO with rewards from the judge. The mathematics is on top, as pure functions; the loop is below.

    python train_grpo.py --preset tiny --init-from out/base --out out/grpo
    python train_grpo.py --init-from out/base --reward docs/my_rewards.py:brevity --out out/own
    python train_grpo.py --resume --steps 64 --out out/grpo

One step: prompts → G solutions each → judge → rewards (P, G) → advantages (P, G) → minibatches of the clipped
objective.

Shapes: P prompts, G group, N = P*G samples, B rows, T positions, V vocabulary.
"""

import copy
import time
from dataclasses import dataclass

from lab.device import run_torch_script
from lab.options import UserError, opt, parse_pair

import torch

from datagen import KEYS_HELP
from rewards import OVERLONG, UNFINISHED, Reward, up_to_first_error
from rollout import Problems, check_room, pack_rollouts, roll_out, token_logps
from sampled import keep_tries
from tasks import read_tasks
from training import Training, TrainingOptions, run_training
from verify import REWARDS

PRESETS = {
    "tiny": dict(
        mixture="op 2-5:0.2, 6-7:0.8; world mini", steps=40, prompts=32, group=8,
        minibatch=32, max_new_tokens=256, lr=1e-4, warmup_steps=8, kl=0.0, row_tokens=1536,
        micro_batch_size=1, replicas=2, sample_rows=256),
    "small": dict(
        mixture="op 11-14; template zoo, school, festival", prompts=128, group=8, minibatch=64, lr=1e-5,
        micro_batch_size=16, compile="auto"),
    "paper": dict(mixture="op 11-14", micro_batch_size=16, sample_rows=2048, compile="auto"),
}  # fmt: skip
PARTS = ", ".join([*REWARDS, OVERLONG, "file.py:function"])
# What divides the loss: the number of tokens (DAPO, Yu et al. 2025, eq. 8); that of tries, each of which is
# the mean of its own tokens (DeepSeekMath, eq. 3); the tokens that the tries might have had, so that none
# weighs more for being short (Dr. GRPO, Liu et al. 2025, section 3.2).
NORMALISATIONS = ("token-mean", "sequence-mean", "fixed-length")


@dataclass(frozen=True)
class Options(TrainingOptions):
    out: str = opt("out/grpo", "folder for all that is written", group="run", free=True)
    init_from: str = opt("out/base/latest", "checkpoint to start from, and reference", group="training")
    mixture: str = opt("op 11-14", f"problems to learn from (split rl): {KEYS_HELP}")
    data: str | None = opt(None, "learn from the problems of this JSONL file instead; `answer` will do")
    eval_data: str | None = opt(None, "evaluate on the problems of this JSONL file, not on split dev")
    steps: int = opt(100, "GRPO steps", within="[1, inf)", group="rollouts", grows=True)
    prompts: int = opt(1024, "prompts of a step, P", within="[1, inf)")
    group: int = opt(6, "samples of a prompt, G", within="[2, inf)")
    temperature: float = opt(1.0, "of sampling and of the scored distribution", within="[0.001, 100]")
    max_new_tokens: int = opt(1024, "longest solution that is sampled, in tokens", within="[1, inf)")
    sample_rows: int = opt(512, "rows that are sampled together, for memory", within="[1, inf)", free=True)
    keep_rollouts: int = opt(4, "steps whose tries are kept in rollouts.jsonl, the last ones", free=True)
    show_every: int = opt(20, "steps between two tries that are printed (0: none)", free=True)
    reward: str = opt("strict", f"{PARTS}; or a sum: strict:1, my.py:f:0.1", group="reward and objective")
    alpha: float = opt(0.2, "weight of the outcome in the rewards mixed and gated", within="[0, 1]")
    overlong: int = opt(0, f"of the reward {OVERLONG}: last tokens, where it falls (0: a fifth of all)")
    unfinished: str | None = opt(None, "tries cut off at --max-new-tokens: no reward, or no loss", UNFINISHED)
    credit: str | None = opt(None, "without what follows a first error (if not given: all)", ("first-error",))
    advantage: str = opt("std", "mean: less the group's mean; std: also divided by its", ("std", "mean"))
    minibatch: int = opt(256, "prompts of a minibatch; one optimizer step each", within="[1, inf)")
    clip_ratio: float | str = opt(
        0.2, "PPO clip; or two (0.2,0.28), of ratios below 1 and over it", within="(0, inf)"
    )
    dual_clip: float | None = opt(None, "bound of a bad sample's loss at high ratio", within="(1, inf)")
    normalisation: str | None = opt(None, "of the loss (if not given: token-mean)", NORMALISATIONS)
    kl: float = opt(1e-3, "weight of the KL to the reference", within="[0, inf)")
    kl_estimator: str | None = opt(None, "of that KL (if not given: k3)", ("k1", "k2", "k3"), needs="kl")
    lr: float = opt(1e-6, "learning rate (constant after --warmup-steps)", within="(0, 1]")
    warmup_steps: int = opt(0, "optimizer steps with rising learning rate")
    weight_decay: float = opt(0.0, "of AdamW", within="[0, 1]")
    beta2: float = opt(0.999, "of AdamW", within="[0, 1)")
    eval_every: int = opt(50, "steps between checkpoints; each is evaluated on split dev", within="[1, inf)")
    select: str = opt("all", "edge: 0 < pass rate <= bound", ("all", "edge"), group="edge of competence")
    select_samples: int = opt(8, "samples per candidate to estimate its pass rate", within="[1, inf)")
    select_bound: float = opt(0.5, "largest pass rate of an edge problem", within="(0, 1]")
    select_pool: int = opt(256, "edge problems to find before each round of training", within="[1, inf)")
    select_every: int = opt(20, "steps of a round; then the edge is estimated anew", within="[1, inf)")


# ------------------------------------------------------------------------------------------------------------
# The mathematics


def group_advantages(rewards, normalize="std", eps=1e-6):
    """Advantage of each sample over its group (DeepSeekMath, section 4.1.2): rewards (P, G) → advantages (P,
    G).

    normalize: "std" divides by the group's standard deviation (with G - 1), "mean" does not (Dr. GRPO).
    A group of equal rewards gets exactly 0.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    differ = (rewards != rewards[:, :1]).any(1, keepdim=True)
    centred = differ * (rewards - rewards.mean(1, keepdim=True))  # no rounding left in equal groups
    if normalize == "mean" or rewards.shape[1] == 1:
        return centred
    return centred / (rewards.std(1, keepdim=True) + eps)


def objective(o):
    """The arguments of grpo_loss that are options. Raises UserError."""
    clips = dict(clip_ratio=parse_pair("--clip-ratio", o.clip_ratio), dual_clip=o.dual_clip)
    return dict(**clips, kl_coef=o.kl, kl_estimator=o.kl_estimator or "k3")


def grpo_loss(logp, old_logp, ref_logp, advantages, mask, *, count=None,
              clip_ratio=0.2, dual_clip=None, kl_coef=1e-3, kl_estimator="k3"):  # fmt: skip
    """Clipped policy objective plus KL to the reference, summed over tokens and divided by one global count.

    logp, old_logp, ref_logp: log-probabilities of the sampled tokens under the policy, the sampler and the
    frozen reference (None: no KL); advantages: of each token; mask: 1 where a token was sampled, or
    what it weighs (see NORMALISATIONS), else 0. All of one shape. count: what the loss is divided by
    (default: how many were sampled); give that of the whole minibatch when the loss is taken in
    micro-batches.

        loss = Σ mask · (−min(r·A, clip(r, 1−ε, 1+ε)·A) + β·KL) / count,  r = exp(logp − old_logp)

    clip_ratio: ε, or two of them, (below 1, above it): a larger one above leaves unlikely tokens more room to
    rise ("clip-higher": DAPO, Yu et al. 2025, section 3.1). dual_clip c: the first term is at most c·|A|
    where A < 0 (Ye et al. 2020, eq. 5).
    kl_estimator: with d = ref_logp − logp, k1 = −d, k2 = d²/2, k3 = exp(d) − d − 1 (Schulman 2020). Where
    samples are the policy's own, the mean of k1's gradient is 0, that of k2's the gradient of the KL.
    Returns loss and stats: sums over tokens, to be divided by their number (kl, if there is a reference;
    clip_fraction, ratio, and approx_kl, the k3 estimate of the policy's distance from the sampler).
    """
    keep = mask > 0
    count = keep.sum() if count is None else count
    below, above = clip_ratio if isinstance(clip_ratio, tuple) else (clip_ratio, clip_ratio)
    log_ratio = torch.where(keep, logp - old_logp, 0.0)
    ratio = torch.exp(log_ratio)
    policy = torch.maximum(-ratio * advantages, -ratio.clamp(1 - below, 1 + above) * advantages)
    if dual_clip is not None:
        policy = torch.where(advantages < 0, torch.minimum(policy, -dual_clip * advantages), policy)
    loss = torch.where(keep, mask * policy, 0.0).sum()
    clipped = ((ratio - 1) * advantages.sign() > torch.where(advantages > 0, above, below)) & keep
    approx_kl = (ratio - 1 - log_ratio).sum()
    stats = {"clip_fraction": clipped.sum(), "ratio": (ratio * keep).sum(), "approx_kl": approx_kl}
    if ref_logp is not None:
        d = torch.where(keep, ref_logp - logp, 0.0)
        estimate = {"k1": -d, "k2": d.square() / 2, "k3": torch.exp(d) - d - 1}[kl_estimator]
        loss = loss + kl_coef * (mask * estimate).sum()
        stats["kl"] = estimate.sum()
    return loss / count, {name: total.detach() for name, total in stats.items()}


# ------------------------------------------------------------------------------------------------------------
# The loop


class GRPO(Training):
    def __init__(self, o, device, processes, folder=None):
        self.reward = Reward(o.reward, o.alpha, o.max_new_tokens, o.overlong, o.unfinished)
        self.objective = objective(o)
        if o.credit and not self.reward.ends_at_errors:
            raise UserError(f"--credit {o.credit} is for strict and faithful: no other ends at an error")
        super().__init__(o, device, processes, folder)
        self.inputs += self.reward.files
        if min(o.minibatch, o.prompts) % processes.size or o.prompts % o.minibatch % processes.size:
            raise UserError(f"--prompts and --minibatch must be multiples of the {processes.size} processes")
        self.steps = o.steps
        self.mine = range(processes.rank, o.prompts, processes.size)  # this process's prompts of a step
        if o.kl:  # the first checkpoint is kept: the one we start from may be gone when the run is resumed
            first = self.load(folder.parent / "step_0000000").model if folder else copy.deepcopy(self.model)
            self.reference = first.eval().requires_grad_(False)
        adamw = dict(lr=o.lr, betas=(0.9, o.beta2), weight_decay=o.weight_decay, fused=True)
        self.optimizers = [torch.optim.AdamW(self.model.parameters(), **adamw)]
        self.begin()
        limits = dict(max_new_tokens=o.max_new_tokens, batch_size=o.sample_rows, workers=o.replicas)
        self.sampling = dict(reward=self.reward, temperature=o.temperature, **limits)
        check_room(self.model, self.tokenizer, [*self.held_out, *self.records], o.max_new_tokens)
        saved = self.saved or {"updates": 0, "pool": None, "candidates": 0, "tokens": 0}
        self.updates = saved["updates"]
        self.tokens = saved.get("tokens", 0)  # of the whole run, all processes
        self.templates = [] if self.records else sorted({it["template"] for it in self.mixture.choices})
        self.problems = Problems(o, self.mixture, self.records, saved["pool"], saved["candidates"])

    def read(self, path):
        return read_tasks(path, self.reward.check)

    def take_step(self):
        """P problems, G solutions of each, rewards, advantages, an update for each minibatch. Returns what is
        logged and shown.
        """
        o, clock, extra = self.o, time.perf_counter(), {}
        if o.select == "edge" and self.step % o.select_every == 0:
            extra["select/yield"] = self.problems.refresh(self.pass_rates)
        problems = self.problems.of_step(self.step, self.mine)
        stream = (o.seed, "rollout", self.step)
        rollouts = roll_out(self.model, self.tokenizer, problems, o.group, stream, self.mine, **self.sampling)
        sampled = time.perf_counter()
        rewards = torch.tensor([rollout.reward for rollout in rollouts]).view(-1, o.group)  # (P, G)
        advantages = group_advantages(rewards, o.advantage)  # (P, G)
        for rollout, advantage in zip(rollouts, advantages.flatten().tolist()):
            rollout.advantage = advantage
        self.rollouts = rollouts
        n = o.minibatch * o.group // self.processes.size  # tries of a minibatch that are ours
        stats = [self.learn(rollouts[i : i + n]) for i in range(0, len(rollouts), n)]
        sums = {  # over all samples of this process
            "reward": float(rewards.sum()),
            "pass@1": sum(r.verdict.solved for r in rollouts),
            "answer": sum(r.verdict.answer_correct for r in rollouts),
            "process": sum(r.verdict.process for r in rollouts),
            "faithful": sum(r.verdict.faithful for r in rollouts),
            "finished": sum(r.finished for r in rollouts),
            "length": sum(len(r.completion_ids) for r in rollouts),
            "prompt": sum(len(r.prompt_ids) for r in rollouts),
            "zero_variance": o.group * float((rewards == rewards[:, :1]).all(1).sum()),
        }
        for name in self.reward.parts if len(self.reward.parts) > 1 else ():
            sums[f"reward/{name}"] = sum(r.parts[name] for r in rollouts)
        for name in self.templates if len(self.templates) > 1 else ():  # shares of all tries
            paid = [r.reward for r in rollouts if r.problem.template == name]
            sums |= {f"{name}/reward": sum(paid), f"{name}/share": len(paid)}
        totals = dict(zip(sums, self.processes.sum(list(sums.values()))))
        self.tokens += int(totals["prompt"] + totals["length"])
        values = {f"rollout/{name}": total / (o.prompts * o.group) for name, total in totals.items()}
        values |= {f"train/{name}": sum(s[name] for s in stats) / len(stats) for name in stats[0]}
        values |= {**extra, "train/skipped": self.guard.skipped, "train/tokens": self.tokens}
        values |= {"time/sample": sampled - clock, "time/update": time.perf_counter() - sampled}
        shown = ("rollout/pass@1", "rollout/zero_variance", "rollout/reward", "rollout/length", "train/kl")
        return values, {name.partition("/")[2]: f"{values[name]:.4g}" for name in shown}

    def learn(self, rollouts):
        """One optimizer step: the gradient of grpo_loss over all micro-batches and processes. Returns stats.

        Without a KL, a solution of advantage 0 has no gradient: its tokens count, but are not computed.
        """
        o = self.o
        rollouts = [r for r in rollouts if r.finished or o.unfinished != "mask"]
        if o.credit:
            rollouts = [up_to_first_error(rollout, self.tokenizer) for rollout in rollouts]
        lengths = [len(r.completion_ids) for r in rollouts]
        counts = sum(lengths), len(lengths), len(lengths) * o.max_new_tokens  # in order of NORMALISATIONS
        count = dict(zip(NORMALISATIONS, counts))[o.normalisation or "token-mean"]
        for rollout, length in zip(rollouts, lengths):
            rollout.weight = 1 / length if o.normalisation == "sequence-mean" else 1.0
        used = [r for r in rollouts if r.advantage or self.reference is not None]
        count, computed = self.processes.sum([count, sum(len(r.completion_ids) for r in used)])
        shape = o.row_tokens, self.tokenizer.pad_id, o.micro_batch_size, self.device

        def score(model, micro):
            logp, entropy = token_logps(model, micro, o.temperature)
            with torch.no_grad():
                ref_logp = self.reference and token_logps(self.reference, micro, o.temperature)[0]
            old_logp, advantage = micro.values["old_logp"], micro.values["advantage"]
            scores = logp, old_logp, ref_logp, advantage, micro.values["weight"]
            loss, stats = grpo_loss(*scores, count=count, **self.objective)
            loss.backward()
            return {**stats, "entropy": entropy, "loss": loss.detach()}

        parts = self.replicas.map(score, pack_rollouts(used, *shape))
        names = ("loss", "entropy", "clip_fraction", "approx_kl", "ratio", "kl")
        totals = {name: sum(part.get(name, 0.0) for part in parts) for name in names}
        self.updates += 1
        loss, norm = self.update(totals.pop("loss"), min(1.0, self.updates / max(1, o.warmup_steps)))
        sums = self.processes.sum([float(total) for total in totals.values()])
        means = {name: total / max(1, computed) for name, total in zip(totals, sums)}
        return {"loss": loss, "grad_norm": norm, **means}

    def pass_rates(self, problems):
        """The share of `select_samples` tries at each problem that are correct."""
        n, mine = self.o.select_samples, range(self.processes.rank, len(problems), self.processes.size)
        stream = (self.o.seed, "select", self.step, self.problems.candidates)
        rates, some = [0.0] * len(problems), [problems[i] for i in mine]
        rollouts = roll_out(self.model, self.tokenizer, some, n, stream, mine, **self.sampling)
        for i, rollout in enumerate(rollouts):
            rates[mine[i // n]] += rollout.verdict.solved / n
        tokens = sum(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts)
        *rates, tokens = self.processes.sum([*rates, tokens])
        self.tokens += int(tokens)
        return rates

    def keep_tries(self, run):
        keep_tries(run, self.processes, self.o, self.step, self.rollouts)

    def state(self):
        pool, candidates = self.problems.pool, self.problems.candidates
        return {"updates": self.updates, "tokens": self.tokens, "pool": pool, "candidates": candidates}

    def score(self, values):
        return values["eval/pass@1"]

    def work(self):
        o = self.o
        longest = min(self.model.config.max_position_embeddings, 2 * o.max_new_tokens)
        tokens = o.steps * o.prompts * o.group * longest
        return dict(tokens=tokens, rows=o.micro_batch_size, document=longest, passes=5 if o.kl else 4)


def main(argv=None):
    return run_training(GRPO, Options, PRESETS, __doc__, argv)


if __name__ == "__main__":
    run_torch_script(main)
