"""One GRPO step taken apart: seconds of sampling, judging, updating and the rest; and how far the sampler's log-probs are from the trainer's.

python bench/grpo.py --ckpt out/demo/mid/latest
python bench/grpo.py --ckpt out/demo/mid/latest --trl   # and TRL's trainer on the same model, prompts and settings (pip install trl)
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

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

import copy  # noqa: E402

import cli  # noqa: E402
import common  # noqa: E402
import torch  # noqa: E402

import data  # noqa: E402
import export_hf  # noqa: E402
import sampler  # noqa: E402
import train_grpo as trainer  # noqa: E402
import verify  # noqa: E402
from attention import BACKENDS  # noqa: E402


@dataclass(frozen=True)
class Options:
    ckpt: str | None = cli.opt(None, "checkpoint folder")
    preset: str = cli.opt("tiny", "whose step to take")
    device: str = cli.opt("auto", "auto, cpu or cuda")
    attention: str = cli.opt("auto", "ours", BACKENDS)
    dtype: str = cli.opt("auto", "of matrix products", common.DTYPES)
    rounds: int = cli.opt(3, "steps to measure, after one to warm up")
    trl: bool = cli.opt(False, "measure TRL's GRPOTrainer too, in float32 and bfloat16")
    json: str | None = cli.opt(None, "write the numbers here too")


def trl_seconds(checkpoint, problems, p, rounds, half):
    """Seconds of one of TRL's steps as ours: the same prompts, group, lengths, minibatches and reward; median, the first left out."""
    try:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise cli.UserError(f"--trl needs the packages trl and datasets: {error}") from None
    by_prompt, clock = {data.prompt_text(q): q for q in problems}, []
    minibatches = p.prompts // p.minibatch

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments, **more):
            clock.append(time.perf_counter())

    def judged(prompts, completion_ids, **more):
        return [
            verify.reward(verify.verify(checkpoint.tokenizer.decode(ids), by_prompt[q]), p.reward)
            for q, ids in zip(prompts, completion_ids)
        ]

    with tempfile.TemporaryDirectory() as folder:
        export_hf.export(checkpoint, Path(folder) / "hf")
        settings = GRPOConfig(
            output_dir=folder, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, max_steps=minibatches * (rounds + 1),
            per_device_train_batch_size=p.minibatch * p.group, steps_per_generation=minibatches, num_generations=p.group,
            max_completion_length=p.max_new_tokens, temperature=p.temperature, beta=p.kl, epsilon=p.clip, loss_type="bnpo", learning_rate=p.lr,
            optim="adamw_torch_fused", lr_scheduler_type="constant", gradient_checkpointing=False, bf16=half, seed=0, shuffle_dataset=False,
            use_cpu=not torch.cuda.is_available())  # fmt: skip
        peer = GRPOTrainer(AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=torch.float32), reward_funcs=judged, args=settings,
                           train_dataset=Dataset.from_dict({"prompt": list(by_prompt)}), callbacks=[Clock()],
                           processing_class=AutoTokenizer.from_pretrained(Path(folder) / "hf", padding_side="left"))  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # its own report
            peer.train()
    return statistics.median(
        b - a
        for a, b in zip(clock[minibatches - 1 :: minibatches], clock[2 * minibatches - 1 :: minibatches])
    )


def main():
    o = cli.parse_options(Options, description=__doc__.splitlines()[0])
    if o.ckpt is None:
        raise cli.UserError("no checkpoint: python bench/grpo.py --ckpt out/demo/mid/latest")
    device = common.setup(o.device, 0, attention=o.attention)
    p, start = (
        trainer.Options(**{**common.PRESETS[o.preset]["grpo"], "preset": o.preset}),
        common.load_checkpoint(o.ckpt, device, o.dtype),
    )
    model, tokenizer, world = start.model, start.tokenizer, common.World(device)
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=p.lr)
    prompts_of, shares = trainer.Prompts(p, data.Mixture.parse(p.mixture), None), {}

    def clock(name, work):
        begin = time.perf_counter()
        out = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            shares[name] = shares.get(name, 0.0) + (time.perf_counter() - begin) / o.rounds
        return out

    for turn in range(o.rounds + 1):
        begin = time.perf_counter()
        problems = prompts_of.step(turn)
        prompts = [
            tokenizer.encode(data.prompt_text(q)) for q in problems
        ]  # common.solve, with a clock on each part
        samples = clock(
            "sampling",
            lambda: sampler.generate(
                model,
                prompts,
                group_size=p.group,
                max_new_tokens=p.max_new_tokens,
                stop_id=tokenizer.eos_id,
                seed=turn,
                batch_size=p.sample_rows,
            ),
        )
        verdicts = clock(
            "judging",
            lambda: [
                verify.verify(tokenizer.decode(ids), problems[i // p.group])
                for i, ids in enumerate(samples.ids)
            ],
        )
        rewards = torch.tensor([verify.reward(v, p.reward) for v in verdicts]).view(-1, p.group)
        advantages = trainer.group_advantages(rewards).view(-1).tolist()
        rows = [
            (prompts[i // p.group], ids, logp, a)
            for i, (ids, logp, a) in enumerate(zip(samples.ids, samples.logprobs, advantages))
        ]
        if not turn:  # the policy is still the one that sampled
            batch, (old,) = trainer.pack_samples(
                *(list(x) for x in list(zip(*rows))[:2]),
                [samples.logprobs],
                [],
                p.row_tokens,
                tokenizer.pad_id,
            )
            with torch.no_grad():
                scored = [
                    trainer.token_logprobs(model, data.Batch(*(a[i : i + 4] for a in batch)), 1.0, device)
                    for i in range(0, len(batch.tokens), 4)
                ]
            gap = torch.cat(
                [
                    (logp.cpu() - torch.from_numpy(old[4 * i : 4 * i + 4]))[mask.cpu()]
                    for i, (logp, mask, _) in enumerate(scored)
                ]
            ).abs()
        for first in range(0, len(rows), p.minibatch * p.group):
            clock("update", lambda: trainer.update(model, reference, optimizer, rows[first : first + p.minibatch * p.group], p, tokenizer.pad_id, world,
                                                   lambda *numbers: True))  # fmt: skip
        if turn:
            shares["all"] = shares.get("all", 0.0) + (time.perf_counter() - begin) / o.rounds
    tokens = sum(map(len, samples.ids))
    print(
        f"{p.prompts} prompts x {p.group} samples, {tokens:,} tokens; {model.num_parameters():,} parameters; mean of {o.rounds} steps"
    )
    shares["host (the rest)"] = shares["all"] - sum(v for k, v in shares.items() if k != "all")
    for name, seconds in shares.items():
        print(f"{name:16}{seconds:9.3f} s{seconds / shares['all']:8.1%}")
    out = {
        "device": str(device),
        "seconds": shares,
        "gap_mean": float(gap.mean()),
        "gap_max": float(gap.max()),
    }
    print(
        f"log-probabilities, sampler and trainer: mean difference {float(gap.mean()):.2e}, largest {float(gap.max()):.2e}; products in {model.compute_dtype}"
    )
    for half in (False, True) if o.trl else ():
        problems = [q for turn in range(o.rounds + 2) for q in prompts_of.step(turn)]
        seconds = trl_seconds(common.load_checkpoint(o.ckpt, device), problems, p, o.rounds, half)
        out[f"trl_{'bfloat16' if half else 'float32'}"] = seconds
        print(
            f"a step of TRL's trainer, {'bfloat16' if half else 'float32'}: {seconds:.2f} s, {seconds / shares['all']:.1f} times ours"
        )
    if o.json:
        cli.write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    common.run(main)
