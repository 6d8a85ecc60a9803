"""The functions that one GRPO step enters, as a reader of train_grpo.py meets them, in order of first entry.

    python bench/step_trace.py

Counted are the functions of train_grpo.py and those of other files that train_grpo.py calls; what happens
inside the others is their own business. The step is that of a small untrained model, made here in a temporary
folder.
"""

import inspect
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lab.device import Processes, run_torch_script
from lab.options import CheckedOptions, opt, parse_options, write_atomic

import torch

import train_grpo
from checkpoint import new_model, save_checkpoint
from datagen import Mixture
from model import ModelConfig
from train_pretrain import train_tokenizer

ROOT = Path(train_grpo.__file__).resolve().parent
MOST_FUNCTIONS, MOST_FILES = 12, 5  # what a reader is asked to follow


@dataclass(frozen=True)
class Options(CheckedOptions):
    json: str | None = opt(None, "write the functions here too")


@dataclass(frozen=True)
class Entry:
    """A function that was entered."""

    file: str
    line: int
    name: str


def own_file(code):
    """The file of this repository that the code is of, relative to its root, or None."""
    path = Path(code.co_filename)
    named = not code.co_name.startswith("<") or code.co_name == "<lambda>"  # a comprehension is no function
    inside = path.parent in (ROOT, ROOT / "lab")
    return str(path.relative_to(ROOT)) if named and inside else None


def trace(work, reader="train_grpo.py"):
    """Call work() → Entries, in order of first entry: the reader's own functions, and those that it calls.

    Who calls is the nearest frame of this repository: a decorator of torch in between does not hide it. A
    generator's frame begins where it is first asked for an item: it is the reader's who names it.
    """
    entries, named = {}, set()

    def caller(frame):
        """The file of the nearest function of this repository that called."""
        frame = frame.f_back
        while frame is not None and own_file(frame.f_code) is None:
            frame = frame.f_back
        return frame and own_file(frame.f_code)

    def entered(frame, event, argument):
        if event == "call" and frame.f_code not in entries:
            file = own_file(frame.f_code)
            lazy = frame.f_code.co_flags & inspect.CO_GENERATOR and frame.f_code.co_name in named
            if file is not None and (reader in (file, caller(frame)) or lazy):
                named.update(frame.f_code.co_names if file == reader else ())
                name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # from Python 3.11 on
                entries[frame.f_code] = Entry(file, frame.f_code.co_firstlineno, name)

    sys.setprofile(entered)
    try:
        work()
    finally:
        sys.setprofile(None)
    return list(entries.values())


def small_run(folder):
    """A GRPO run of a small untrained model, before its first step. Its checkpoint is written to `folder`."""
    mixture, device = "op 2; distractors 1-1; literals 1-9; bound 99", torch.device("cpu")
    tokenizer = train_tokenizer(Mixture.parse(mixture), (), 300, 0, documents=20)
    config = ModelConfig(
        tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    start = Path(folder) / "start"
    save_checkpoint(start, new_model(config, device), tokenizer, {}, {"step": 0})
    options = train_grpo.Options(
        init_from=str(start),
        mixture=mixture,
        prompts=2,
        group=2,
        minibatch=1,
        max_new_tokens=8,
        eval_problems=1,
    )
    return train_grpo.GRPO(options, device, Processes(device))


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        entries = trace(small_run(folder).take_step)
    for entry in entries:
        print(f"{f'{entry.file}:{entry.line}':24} {entry.name}")
    files = {entry.file for entry in entries}
    print(f"{len(entries)} functions in {len(files)} files (bar: {MOST_FUNCTIONS} in {MOST_FILES})")
    if o.json:
        write_atomic(o.json, json.dumps([asdict(entry) for entry in entries], indent=1) + "\n")


if __name__ == "__main__":
    run_torch_script(main)
