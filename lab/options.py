"""What every script shares at the command line: options, one-line user errors, JSONL in and out. Standard
library only.

An option is a field of a frozen dataclass, `lr: float = opt(2e-4, "peak learning rate", within="(0, 1]")`;
`parse_options` makes the flags. Whoever makes the dataclass in Python instead gets the same checks.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import textwrap
import typing
from contextlib import contextmanager, redirect_stdout, suppress
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path

FINISHED, USER_ERROR, STOPPED = 0, 2, 75  # exit codes; 75: stopped before the end, and can be resumed
COLUMNS = 100  # of --help
LARGEST = 2**63 - 1  # of an option that is a whole number: what an int64 holds


class UserError(Exception):
    """Something the user can fix. The message is one line: what, where, what to do."""


def run_script(main):
    """Call `main()`, which returns an exit code or None, and exit; a UserError becomes one line on stderr and
    exit code 2.
    """
    try:
        if sys.stdout is None:
            raise UserError("stdout is closed: there is nowhere to write to")
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `… | head` closed the pipe: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FINISHED
    except (UserError, OSError) as error:
        if isinstance(error, OSError):  # a full disk under a redirected stdout, a read-only folder
            error = f"{error.filename or 'output'}: {error.strerror}"
        print(f"error: {error}", file=sys.stderr)
        code = USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def stream_key(*parts):
    """A 64-bit seed from what a stream of random numbers is for: `stream_key(seed, "rollout", step)`. Equal
    parts, equal streams.
    """
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


# ------------------------------------------------------------------------------------------------------------
# Options


def opt(default, help, choices=None, *, within="[0, inf)", group=None, free=False, grows=False, needs=None):
    """A dataclass field that is also a flag.

    within: the interval of a number (NaN is in none); group: the heading that starts here in --help; free: it
    may differ when a run is resumed, since it changes speed, memory or what is shown, not what is computed
    (but for rounding); grows: it may be larger then; needs: the option without which it has no effect.
    """
    metadata = dict(
        help=help, choices=choices, within=within, group=group, free=free, grows=grows, needs=needs
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class CheckedOptions:
    """Base of every dataclass of options: each value is of its field's type, within its interval, among its
    choices.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, needs = getattr(self, field.name), field.metadata.get("needs")
            check(field, value)
            if needs and value and not getattr(self, needs):
                raise UserError(f"{flag(field.name)} has no effect without {flag(needs)}: give both")


def flag(name):
    return "--" + name.rstrip("_").replace("_", "-")


def kinds(field):
    """The types of an option's value: of `str | None` str; of `float | str` both, the number first."""
    return [kind for kind in typing.get_args(field.type) or (field.type,) if kind is not type(None)]


def kind(field):
    """The type of an option's value: bool, int, float or str."""
    return kinds(field)[0]


def check(field, value):
    """Raise UserError if an option cannot have this value."""
    if value is None and field.default is None:
        return
    if value == "" and field.default is None:  # of a shell variable that is not set
        raise UserError(f"{flag(field.name)} is empty: say what, or leave it out")
    if type(value) not in (*kinds(field), *[int] * (kind(field) is float)):
        raise UserError(f"{flag(field.name)} cannot be {value!r}: expected {kind(field).__name__}")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{flag(field.name)} cannot be {value!r}: choose from {', '.join(map(str, choices))}")
    within = field.metadata.get("within", "[0, inf)")
    if type(value) is int and value > LARGEST and within.endswith("inf)"):
        raise UserError(f"{flag(field.name)} is a number beyond {LARGEST:,}")
    if type(value) in (int, float) and not inside(value, within):
        raise UserError(f"{flag(field.name)} must be within {within}, not {value}")


def inside(value, interval):
    """Whether a number is in an interval written as in mathematics: "[0, 1)". NaN is in none."""
    low, high = map(float, interval[1:-1].split(","))
    ends = [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
    return low < value < high or value in ends


class _Parser(argparse.ArgumentParser):
    def __init__(self, program=None, **how):
        super().__init__(program, allow_abbrev=False, formatter_class=_formatter, **how)

    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")


_formatter = partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=COLUMNS)


def parse_options(cls, argv=None, *, description="", presets=None, positional=None, saved=None):
    """Build the frozen dataclass `cls` from flags.

    presets: {name: {field: value}}; adds `--preset`, whose values stand in for the fields' defaults, and
    `--config FILE` (JSON, as `--print-config` prints it), whose values stand in for the preset's. positional:
    name of the one field that is given without a flag (several values are joined by commas). saved: {field:
    value} of a run that is resumed; they stand in for the preset's. Raises UserError on an unknown flag, a
    bad value or an unknown preset.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    if presets is not None:
        early = _Parser(add_help=False)
        early.add_argument("--preset")
        early.add_argument("--config")
        first = early.parse_known_args(argv)[0]
        said = {**(saved or {}), **(read_config(first.config, cls) if first.config else {})}
        name = first.preset or said.get("preset") or defaults["preset"]
        defaults.update({**look_up("preset", presets, name), **said, "preset": name})
    parser = _parser_of(cls, Path(sys.argv[0]).name, description, positional, presets is not None, **defaults)
    given = vars(parser.parse_args(argv))
    if positional:
        given[positional] = ",".join(given[positional]) or defaults[positional]
    options = cls(**{field.name: given[field.name] for field in dataclasses.fields(cls)})
    if given.get("print_config"):
        print(json.dumps(dataclasses.asdict(options), indent=2))
        sys.exit(FINISHED)
    return options


# The runner reads the options of hundreds of stages. typed: 1 is not 1.0.
@lru_cache(maxsize=None, typed=True)
def _parser_of(cls, program, description, positional, configured, /, **defaults):
    told = [p if p.startswith(" ") else textwrap.fill(p, COLUMNS) for p in description.split("\n\n")]
    how = dict(description="\n\n".join(told), usage=f"%(prog)s [options] {positional or ''}")
    parser = group = _Parser(program, **how)
    if configured:
        parser.add_argument("--config", metavar="FILE", help="JSON of options, as --print-config prints it")
        parser.add_argument("--print-config", action="store_true", help="print the options as JSON and stop")
    for field in dataclasses.fields(cls):
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        own = field.name == positional
        _add_flag(parser if own else group, field, defaults[field.name], own)
    return parser


def _add_flag(parser, field, default, positional):
    help, value, choices = field.metadata["help"], kind(field), field.metadata["choices"]
    if value in (int, float) and not choices:
        low, high = field.metadata["within"].split(", ")
        least = f"{'at least' if low[0] == '[' else 'above'} {low[1:]}"
        help += f", {least if high == 'inf)' else 'within ' + field.metadata['within']}"
    help = (help if default is None else f"{help} [{default}]").replace("%", "%%")
    if positional:
        parser.add_argument(field.name, nargs="*", default=[], help=help)
        return
    name = f"{{{','.join(map(str, choices))}}}" if choices else value.__name__.upper()
    if len(name) > COLUMNS // 2:
        name, help = value.__name__.upper(), f"{help}; {', '.join(choices)}"
    how = dict(type=number_or_text if str in kinds(field)[1:] else value, metavar=name, choices=choices)
    if value is bool:
        how = dict(action=argparse.BooleanOptionalAction)
    parser.add_argument(flag(field.name), dest=field.name, default=default, help=help, **how)


def number_or_text(text):
    try:
        return float(text)
    except ValueError:
        return text


def read_config(path, cls):
    """Options of a JSON file, checked against the fields of the dataclass `cls` → dict. Raises UserError."""
    config, fields = read_json(path), {field.name: field for field in dataclasses.fields(cls)}
    if isinstance(config.get("options"), dict):
        config = config["options"]  # the config.json of a run folder will do
    for name, value in config.items():
        if name not in fields:
            raise UserError(f"{path}: unknown option {name!r}")
        with blaming(path):
            check(fields[name], value)
    return config


# ------------------------------------------------------------------------------------------------------------
# Files


def look_up(what, table, name):
    """table[name]. Raises UserError if it has no such name."""
    if name not in table:
        raise UserError(f"unknown {what} {name!r}: choose from {', '.join(table)}")
    return table[name]


def parse_weight(text):
    """ "0.25" → 0.25. Raises UserError."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip(), re.ASCII):
        raise UserError(f"{text!r} is not a weight such as 3 or 0.25")
    return float(text)


def parse_pair(what, value):
    """0.2 or "0.2" → (0.2, 0.2); "0.2,0.28" → (0.2, 0.28): numbers above 0. Raises UserError."""
    words = str(value).split(",")
    numbers = [*map(number_or_text, words * 2 if len(words) == 1 else words)]
    if len(numbers) != 2 or not all(isinstance(n, float) and inside(n, "(0, inf)") for n in numbers):
        raise UserError(f"{what} {value!r} is not a number above 0, or two such as 0.2,0.28")
    return tuple(numbers)


@contextmanager
def blaming(where):
    """Within it, what a UserError says begins with `where`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


@contextmanager
def reading(path):
    """Within it, a file that cannot be read is a UserError."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"not UTF-8 ({error})"
        raise UserError(f"cannot read {path}: {why}") from None


def read_json(path):
    """The object in a JSON file → dict. Raises UserError if it cannot be read, or is no object."""
    with reading(path):
        return parse_object(Path(path).read_text(encoding="utf-8-sig"), path)


def read_jsonl(path):
    """Yield (line number, record) of a JSONL file; a missing file or a line that is no JSON object is a
    UserError.
    """
    with reading(path), open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, parse_object(line, f"{path}, line {number}")


def recover_jsonl(path, keys):
    """The records of a JSONL file, none if it is not there. Its writer may have been killed: a last line that
    is no JSON goes. Raises UserError where a record lacks one of the keys.
    """
    if not Path(path).exists():
        return []
    *whole, last = Path(path).read_bytes().split(b"\n")
    with suppress(ValueError):
        json.loads(last)
        whole.append(last)
    write_atomic(path, b"".join(line + b"\n" for line in whole))
    records = []
    for number, record in read_jsonl(path):
        if lacking := keys - record.keys():
            raise UserError(f"{path}, line {number} has no {min(lacking)!r}: delete the line, then --resume")
        records.append(record)
    return records


def read_each(path, read):
    """Yield read(record, text) for each record of a JSONL file; `where` is put into it: file and line.

    text(key) is record[key], which must be a text. Raises UserError, which begins with file and line, for
    that and where `read` does; and if there is no record.
    """
    number = 0
    for number, record in read_jsonl(path):
        record["where"] = f"{path}, line {number}"
        with blaming(record["where"]):
            found = read(record, partial(text_of, record))
        yield found
    if not number:
        raise UserError(f"{path} has no records")


def text_of(record, key):
    if not isinstance(record.get(key), str):
        raise UserError(f"key {key!r} is missing or no text")
    return record[key]


def parse_object(text, where):
    """JSON text of an object → dict. Raises UserError, which begins with `where`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); mend it or delete it") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def write_atomic(path, content):
    """Write a file, of text or bytes, whole or not at all: a reader never sees half of it. Several may write
    it at once: the last one wins.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{str(path)!r} is the name of no file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    os.replace(temporary, path)


def printable(text):
    """Text without what a terminal would obey or stdout cannot hold: control characters and lone surrogates
    as \\x1b, \\ud800.
    """
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: repr(match[0])[1:-1], text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def colour():
    """Whether to colour what is printed: on a terminal, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@contextmanager
def hush(quiet):
    """Within it, if `quiet`, nothing is printed but errors → stdout, for what was asked for all the same."""
    stdout = sys.stdout
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if quiet else stdout):
        yield stdout
