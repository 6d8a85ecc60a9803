"""Training time on 10 MB of generated text, tokens a record on the public sample, encoding speed; one core.

Beside raw tiktoken and tokenizers.

python bench/tokenizer_speed.py
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]  # not bench/, where files of ours' names may be

from lab.options import CheckedOptions, opt, parse_options, run_script, write_atomic  # noqa: E402

import data  # noqa: E402
import tasks  # noqa: E402
from export_hf import tokenizer_json  # noqa: E402
from tokenizer import PATTERN, SPECIALS, train_bpe  # noqa: E402


@dataclass(frozen=True)
class Options(CheckedOptions):
    json: str | None = opt(None, "write the numbers here too")


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    mixture = data.Mixture.parse("op 2-20; template zoo,school,festival; mode forward,reverse; layers 2,3")
    texts, size = [], 0
    while size < 10_000_000:
        p = mixture.problem(0, len(texts), "train")
        texts.append(data.prompt_text(p) + data.completion_text(p))
        size += len(texts[-1].encode())

    def seconds(work, passes=5):
        times = []
        for _ in range(passes):
            start = time.process_time()
            out = work()
            times.append(time.process_time() - start)
        return sorted(times)[passes // 2], out

    ours, tokenizer = seconds(lambda: train_bpe(texts, 2200), 3)
    out = {"train_seconds": {"ours": ours}, "encode_mb_per_second": {}}
    print(f"train on {size / 1e6:.1f} MB: ours {ours:.2f} s, {tokenizer.vocab_size} tokens")
    encoders = {
        "ours": tokenizer.encode,
        "tiktoken raw": lambda t: tokenizer._encoding.encode(t, allowed_special="all"),
    }
    try:
        import tokenizers

        def train():
            peer = tokenizers.Tokenizer(tokenizers.models.BPE())
            words, as_bytes = (
                tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
                tokenizers.pre_tokenizers.ByteLevel,
            )
            peer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, as_bytes(False, use_regex=False)])
            peer.train_from_iterator(
                texts,
                tokenizers.trainers.BpeTrainer(
                    vocab_size=2200,
                    special_tokens=list(SPECIALS),
                    show_progress=False,
                    initial_alphabet=as_bytes.alphabet(),
                ),
            )
            return peer

        theirs, peer = seconds(train, 3)
        out["train_seconds"]["tokenizers"] = theirs
        print(
            f"                  tokenizers {theirs:.2f} s, {peer.get_vocab_size()} tokens: "
            f"ours / it {theirs / ours:.1f}"
        )
        same = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
        encoders["tokenizers"] = lambda t: same.encode(t).ids
    except ImportError:
        print("tokenizers is not installed: left out")
    times, counts = {name: [] for name in encoders}, {}
    for _ in range(5):  # in turn, so that a busy machine is as busy for each
        for name, encode in encoders.items():
            took, counts[name] = seconds(lambda: sum(len(encode(t)) for t in texts), 1)
            times[name].append(took)
    for name, count in counts.items():
        out["encode_mb_per_second"][name] = rate = size / 1e6 / sorted(times[name])[2]
        print(f"encode, {name:13} {rate:6.1f} MB/s, {count / len(texts):.1f} tokens a document")
    sample = ROOT.parent / "shared" / "gsm_infinite" / "sample.jsonl"
    if sample.exists():
        texts = [
            f"{r['problem'].strip()} {r['question'].strip()} {r['solution'].strip()}"
            for r in tasks.read_records(sample)
        ]
        tokenizer = train_bpe(texts, 2200)
        tokens = sum(len(tokenizer.encode(t)) for t in texts)
        print(f"public sample: {tokens / len(texts):.1f} tokens a record (paper's tokenizer: 643)")
    if o.json:
        write_atomic(o.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
