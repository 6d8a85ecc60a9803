"""A GRPO step taken apart: seconds of sampling, judging and updating; how far sampler and trainer differ.

    python bench/grpo_speed.py --ckpt out/demo/mid/latest
    python bench/grpo_speed.py --ckpt out/demo/mid/latest --trl   # and TRL's trainer (pip install trl)

The steps are train_grpo.py's own; clocks are put around the functions that they call.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab.device import DeviceOptions, Processes, run_torch_script, setup
from lab.options import UserError, opt, parse_options, write_atomic

import torch

import export_hf
import rollout
from checkpoint import load_checkpoint
from data import IGNORE, prompt_text
from rollout import roll_out, token_logps
from train_grpo import GRPO, PRESETS
from train_grpo import Options as GRPOOptions
from verify import reward, verify


@dataclass(frozen=True)
class Options(DeviceOptions):
    ckpt: str | None = opt(None, "checkpoint folder", group="measurement")
    preset: str = opt("tiny", "whose step to take", tuple(PRESETS))
    prompts: int = opt(0, "prompts of a step (0: the preset's)")
    max_new_tokens: int = opt(0, "longest solution, in tokens (0: the preset's)")
    rounds: int = opt(3, "steps to measure, after one to warm up", within="[1, inf)")
    trl: bool = opt(False, "measure TRL's GRPOTrainer too, in float32 and bfloat16")
    json: str | None = opt(None, "write the numbers here too")


def settings(o):
    """The options of the run whose steps are measured."""
    preset = PRESETS[o.preset]
    given = {name: getattr(o, name) for name in ("prompts", "max_new_tokens") if getattr(o, name)}
    if "prompts" in given:
        given["minibatch"] = min(o.prompts, preset.get("minibatch", o.prompts))
    return GRPOOptions(
        **{**preset, **given},
        preset=o.preset,
        init_from=o.ckpt,
        seed=o.seed,
        device=o.device,
        threads=o.threads,
        dtype=o.dtype,
        attention=o.attention,
        eval_problems=1,
    )


class Clocks:
    """Adds up the seconds spent in functions, by part of the step."""

    def __init__(self, device):
        self.device, self.seconds = device, {}

    def measure(self, part, function):
        """The function, with a clock around it."""

        def clocked(*arguments, **named):
            begin = time.perf_counter()
            out = function(*arguments, **named)
            if self.device.type == "cuda" and part != "judging":
                torch.cuda.synchronize()
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begin
            return out

        return clocked


@torch.no_grad()
def log_probability_gaps(run, p):
    """|log p of the sampler − of the trainer| of each token, before any update; and how many samples."""
    problems = run.problems.of_step(0, run.mine)
    rollouts = roll_out(run.model, run.tokenizer, problems, p.group, ("gaps",), run.mine, **run.sampling)
    shape, gaps = (p.row_tokens, run.tokenizer.pad_id, p.micro_batch_size, run.device), []
    for micro in rollout.pack_rollouts(rollouts, *shape):
        logp, _ = token_logps(run.model, micro, p.temperature)
        gaps.append((logp - micro.values["old_logp"])[micro.targets != IGNORE].abs())
    return torch.cat(gaps), len(rollouts)


def trl_seconds(checkpoint, problems, p, rounds, half):
    """Seconds of a step of TRL's like ours: the median, the first left out.

    Like ours: of the same prompts, group, lengths, minibatches and reward.
    """
    try:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise UserError(f"--trl needs the packages trl and datasets: {error}") from None
    by_prompt, clock = {prompt_text(problem): problem for problem in problems}, []
    minibatches = p.prompts // p.minibatch

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments, **more):
            clock.append(time.perf_counter())

    def judged(prompts, completion_ids, **more):
        texts = map(checkpoint.tokenizer.decode, completion_ids)
        return [reward(verify(text, by_prompt[prompt]), p.reward) for prompt, text in zip(prompts, texts)]

    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "hf"
        export_hf.export(checkpoint, exported)
        config = GRPOConfig(
            output_dir=folder,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            max_steps=minibatches * (rounds + 1),
            per_device_train_batch_size=p.minibatch * p.group,
            steps_per_generation=minibatches,
            num_generations=p.group,
            max_completion_length=p.max_new_tokens,
            temperature=p.temperature,
            beta=p.kl,
            epsilon=p.clip_ratio,
            loss_type="bnpo",
            learning_rate=p.lr,
            optim="adamw_torch_fused",
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            bf16=half,
            seed=0,
            shuffle_dataset=False,
            use_cpu=not torch.cuda.is_available(),
        )
        peer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32),
            reward_funcs=judged,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": list(by_prompt)}),
            callbacks=[Clock()],
            processing_class=AutoTokenizer.from_pretrained(exported, padding_side="left"),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # its own report
            peer.train()
    ends = clock[minibatches - 1 :: minibatches]
    return statistics.median(b - a for a, b in zip(ends, ends[1:]))


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    if o.ckpt is None:
        raise UserError("no checkpoint: python bench/grpo_speed.py --ckpt out/demo/mid/latest")
    p = settings(o)
    device = setup(p)
    run, clocks = GRPO(p, device, Processes(device)), Clocks(device)
    gap, samples = log_probability_gaps(run, p)
    rollout.generate = clocks.measure("sampling", rollout.generate)
    rollout.verify = clocks.measure("judging", rollout.verify)
    run.learn = clocks.measure("update", run.learn)
    take_step, tokens = clocks.measure("all", run.take_step), 0
    for run.step in range(o.rounds + 1):
        values, _ = take_step()
        if run.step == 0:
            clocks.seconds.clear()
        else:
            tokens += values["rollout/length"] * samples / o.rounds
    seconds = {name: total / o.rounds for name, total in clocks.seconds.items()}
    seconds["host (the rest)"] = 2 * seconds["all"] - sum(seconds.values())
    size = f"{tokens:,.0f} tokens; {run.model.num_parameters():,} parameters"
    print(f"{p.prompts} prompts x {p.group} samples, {size}; mean of {o.rounds} steps")
    for name in sorted(seconds, key=lambda name: name == "all"):
        print(f"{name:16}{seconds[name]:9.3f} s{seconds[name] / seconds['all']:8.1%}")
    out = {
        "device": str(device),
        "seconds": seconds,
        "gap_mean": float(gap.mean()),
        "gap_max": float(gap.max()),
    }
    gaps = f"mean difference {out['gap_mean']:.2e}, largest {out['gap_max']:.2e}"
    print(f"log-probabilities, sampler and trainer: {gaps}; products in {run.model.compute_dtype}")
    for half in (False, True) if o.trl else ():
        problems = [q for step in range(o.rounds + 2) for q in run.problems.of_step(step, run.mine)]
        name = "bfloat16" if half else "float32"
        out[f"trl_{name}"] = trl_seconds(load_checkpoint(o.ckpt, device), problems, p, o.rounds, half)
        ratio = out[f"trl_{name}"] / seconds["all"]
        print(f"a step of TRL's trainer, {name}: {out[f'trl_{name}']:.2f} s, {ratio:.1f} times ours")
    if o.json:
        write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    run_torch_script(main)
