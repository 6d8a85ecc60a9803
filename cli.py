"""What every script shares at the command line: options, one-line user errors, JSONL in and out.

Standard library only, so that `datagen.py` and `verify.py` stay free of torch.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path


class UserError(Exception):
    """Something the user can fix. The message is one line: what, where, what to do."""


def run(main):
    """Call `main()`; a UserError becomes one line on stderr and exit code 2, ctrl-C one line and 130."""
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `… | head` closed the pipe: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def opt(default, help, choices=None):
    """A dataclass field that is also a flag: `lr: float = opt(2e-4, "peak learning rate")`."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")


def parse_options(cls, argv=None, *, description="", presets=None, positional=None):
    """Build the frozen dataclass `cls` from flags.

    presets: {name: {field: value}}; adds `--preset`, whose values become the defaults that flags override.
    positional: name of the one field that is given without a flag.
    Raises UserError on an unknown flag, a bad value or an unknown preset.
    """
    parser = _Parser(prog=os.path.basename(sys.argv[0]), description=description, allow_abbrev=False)
    names = {f.name: f for f in dataclasses.fields(cls)}
    defaults = {name: f.default for name, f in names.items()}
    if presets is not None:
        pre = _Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
        pre.add_argument("--preset", default=names["preset"].default)
        name = pre.parse_known_args(argv)[0].preset
        if name not in presets:
            raise UserError(f"unknown preset {name!r}: choose from {', '.join(presets)}")
        defaults.update(presets[name], preset=name)
    for name, f in names.items():
        text = f.metadata["help"].replace("%", "%%")
        kind = f.type if isinstance(f.type, type) else {"str | None": str, "int | None": int, "float | None": float}[str(f.type)]
        shown = "" if defaults[name] is None else f" [{defaults[name]}]"
        if name == positional:
            parser.add_argument(name, nargs="?", default=defaults[name], help=text)
        elif kind is bool:
            parser.add_argument("--" + name.replace("_", "-"), action=argparse.BooleanOptionalAction, default=defaults[name], help=text + shown)
        else:
            parser.add_argument(
                "--" + name.replace("_", "-"),
                type=kind,
                default=defaults[name],
                metavar=kind.__name__.upper(),
                choices=f.metadata["choices"],
                help=text + shown,
            )
    return cls(**vars(parser.parse_args(argv)))


def at_least(options, least, *names):
    """Raise UserError if one of these fields is smaller than `least`."""
    for name in names:
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(options, name)}")


def read_jsonl(path):
    """Yield (line number, record) of a JSONL file; a missing file or a line that is no JSON object is a UserError."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error}); mend or delete the line") from None
                if not isinstance(record, dict):
                    raise UserError(f"{path}, line {number}: expected a JSON object, found {type(record).__name__}")
                yield number, record
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def write_atomic(path, text):
    """Write a text file whole or not at all: a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
