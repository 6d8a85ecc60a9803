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


def opt(default, help, choices=None, group=None):
    """A dataclass field that is also a flag: `lr: float = opt(2e-4, "peak learning rate")`. group: heading that starts here in --help."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "group": group})


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")


def parse_options(cls, argv=None, *, description="", presets=None, positional=None, saved=None):
    """Build the frozen dataclass `cls` from flags.

    presets: {name: {field: value}}; adds `--preset`, whose values become the defaults that flags override, and `--config FILE`
    (JSON, as `--print-config` prints it) whose values override the preset's.
    positional: name of the one field that is given without a flag (several values are joined by commas).
    saved: {field: value} that stand in for preset and config.
    Raises UserError on an unknown flag, a bad value or an unknown preset.
    """
    parser = _Parser(prog=os.path.basename(sys.argv[0]), description=description, allow_abbrev=False, usage="%(prog)s [options]",
                     formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=150))  # fmt: skip
    fields = {f.name: f for f in dataclasses.fields(cls)}
    defaults = {name: f.default for name, f in fields.items()}
    if presets is not None:
        parser.add_argument("--config", metavar="FILE", help="JSON of options, as --print-config prints it; flags override it")
        parser.add_argument("--print-config", action="store_true", help="print the options as JSON and stop")
        pre = _Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
        pre.add_argument("--preset")
        pre.add_argument("--config")
        early = pre.parse_known_args(argv)[0]
        config = read_config(early.config, fields) if early.config else {}
        name = early.preset or config.get("preset") or defaults["preset"]
        if name not in presets:
            raise UserError(f"unknown preset {name!r}: choose from {', '.join(presets)}")
        defaults.update(presets[name], **config)
        defaults["preset"] = name
    defaults.update({name: value for name, value in (saved or {}).items() if name in fields})
    group = parser
    for name, f in fields.items():
        text = f.metadata["help"].replace("%", "%%")
        flag = "--" + name.rstrip("_").replace("_", "-")
        shown = "" if defaults[name] is None else f" [{defaults[name]}]".replace("%", "%%")
        if f.metadata["group"]:
            group = parser.add_argument_group(f.metadata["group"])
        if name == positional:
            parser.usage = f"%(prog)s [options] {name}"
            parser.add_argument(name, nargs="*", default=[], help=text)
        elif _kind(f) is bool:
            group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=defaults[name], help=text + shown)
        else:
            group.add_argument(flag, dest=name, type=_kind(f), default=defaults[name], metavar=_kind(f).__name__.upper(),
                               choices=f.metadata["choices"], help=text + shown)  # fmt: skip
    given = vars(parser.parse_args(argv))
    if positional:
        given[positional] = ",".join(given[positional]) or defaults[positional]
    options = cls(**{name: given[name] for name in fields})
    if given.get("print_config"):
        print(json.dumps(dataclasses.asdict(options), indent=2))
        sys.exit(0)
    return options


def _kind(field):
    """The type of an option's value: bool, int, float or str."""
    return field.type if isinstance(field.type, type) else {"str | None": str, "int | None": int, "float | None": float}[str(field.type)]


def read_config(path, fields):
    """Options of a JSON file, checked against the fields of the options → dict. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object of options, found {type(config).__name__}")
    config = config.get("options", config)  # the config.json of a run folder's checkpoint will do
    for name, value in config.items():
        if name not in fields:
            raise UserError(f"{path}: unknown option {name!r}")
        kind = _kind(fields[name])
        right = type(value) is kind or (kind is float and type(value) is int) or (value is None and fields[name].default is None)
        choices = fields[name].metadata["choices"]
        if not right or (choices and value not in choices):
            raise UserError(f"{path}: option {name!r} cannot be {value!r}")
    return config


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


def write_atomic(path, content):
    """Write a file, of text or bytes, whole or not at all: a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    os.replace(temporary, path)


def colour():
    """Whether to colour what is printed: on a terminal, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
