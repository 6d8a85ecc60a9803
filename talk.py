"""Talk with a checkpoint: it solves a problem of the world, or one that is typed, and the judge has a look.

    python talk.py --ckpt out/demo/grpo --op 5
    echo "The otters in Fernhollow number 3. … What is …?" | python talk.py --ckpt out/demo/grpo

What is typed has no gold graph: there a ✓ only says that a step is true as written.
"""

import sys
from dataclasses import dataclass

from lab.device import DeviceOptions, run_torch_script, setup
from lab.options import UserError, colour, opt, parse_options, printable, reading

from checkpoint import load_checkpoint
from data import prompt_text
from datagen import Mixture
from sampler import generate
from texts import resolved
from verify import explain


@dataclass(frozen=True)
class Options(DeviceOptions):
    ckpt: str | None = opt(None, "checkpoint folder", group="talk")
    op: int = opt(0, "operations of a problem like those trained on (0: problems from stdin, one a line)")
    n: int = opt(1, "tries", within="[1, inf)")
    temperature: float = opt(1.0, "of sampling (0: greedy)", within="[0, 100]")
    top_p: float = opt(1.0, "of sampling", within="(0, 1]")
    max_new_tokens: int = opt(256, "longest completion, in tokens", within="[1, inf)")


def typed():
    """What is typed, or comes from a pipe, a problem a line. Raises UserError."""
    with reading("stdin"):
        yield from ({"problem": line, "question": ""} for line in sys.stdin if line.strip())


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    if o.ckpt is None:
        raise UserError("no checkpoint: python talk.py --ckpt out/demo/grpo/latest --op 5")
    checkpoint = load_checkpoint(o.ckpt, setup(o), o.dtype, o.attention)
    tokenizer, sampling = checkpoint.tokenizer, dict(temperature=o.temperature, top_p=o.top_p)
    sampling |= dict(group_size=o.n, max_new_tokens=o.max_new_tokens, stop_id=tokenizer.eos_id, seed=o.seed)
    if o.op:
        if not checkpoint.options.get("mixture"):
            raise UserError(
                f"{o.ckpt} does not say what it was trained on: leave --op out and type a problem"
            )
        problems = [Mixture.parse(checkpoint.options["mixture"]).problem(o.seed, 0, "dev", op=o.op)]
        print(f"{problems[0].problem}\n{problems[0].question}")
    else:
        if sys.stdin.isatty():
            print("a problem and its question, on one line:")
        problems = typed()
    for problem in problems:
        samples = generate(checkpoint.model, [tokenizer.encode(prompt_text(problem))], **sampling)
        for ids, logprobs in zip(samples.ids, samples.logprobs):
            text = tokenizer.decode(ids)
            print(f"\n{printable(text.strip())}   (log-probability {sum(logprobs):.2f})")
            # nobody knows the gold graph of what was typed: ✓ then says only that a step's equations are true
            print(explain(resolved(text), problem if o.op else None, colour()))


if __name__ == "__main__":
    run_torch_script(main)
