"""Sampling speed beside transformers' generate on the same weights and prompts in the same run: new tokens/s.

python bench/rollout.py

On a CPU the tiny preset's model, on a GPU the paper's. Nothing stops early, so that both write the same number of tokens. Ours samples
groups from shared prompts and returns log-probabilities; generate gets its best of some batch sizes.
"""

import dataclasses
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

import torch  # noqa: E402

import cli  # noqa: E402
import common  # noqa: E402
import sampler  # noqa: E402
from attention import BACKENDS  # noqa: E402
from model import ModelConfig, Qwen2  # noqa: E402


@dataclass(frozen=True)
class Options:
    device: str = cli.opt("auto", "auto, cpu or cuda")
    attention: str = cli.opt("auto", "ours", BACKENDS)
    rows: int = cli.opt(0, "samples (0: 256 on a CPU, 6144 on a GPU)")
    group: int = cli.opt(8, "samples of a prompt")
    prompt: int = cli.opt(120, "mean tokens of a prompt")
    new: int = cli.opt(80, "new tokens of a sample")
    sample_rows: int = cli.opt(256, "rows that ours samples together")
    batches: str = cli.opt("64,256", "batch sizes for generate, which gets the best")
    rounds: int = cli.opt(3, "measurements of each")


def main():
    o = cli.parse_options(Options, description=__doc__.splitlines()[0])
    device = common.setup(o.device, 0, attention=o.attention)
    gpu = device.type == "cuda"
    size = {} if gpu else dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4)
    config = ModelConfig(vocab_size=800, max_position_embeddings=o.prompt * 2 + o.new, **size)
    model = Qwen2(config).to(device).eval()
    rand, rows = random.Random(0), o.rows or (6144 if gpu else 256)
    prompts = [[rand.randrange(10, 800) for _ in range(rand.randint(o.prompt // 2, 3 * o.prompt // 2))] for _ in range(rows // o.group)]

    def ours():
        sampler.generate(model, prompts, group_size=o.group, max_new_tokens=o.new, stop_id=-1, batch_size=o.sample_rows)

    contenders = {"ours": ours}
    try:
        import transformers

        fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("rope_theta", "initializer_range")}
        peer = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**fields, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None))
        peer = peer.to(device, torch.bfloat16 if gpu else torch.float32).eval()
        everyone = sorted((p for p in prompts for _ in range(o.group)), key=len)

        def generate(batch):
            for i in range(0, rows, batch):
                some = everyone[i : i + batch]
                width = max(map(len, some))
                ids = torch.tensor([[0] * (width - len(p)) + p for p in some], device=device)
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some], device=device)
                with torch.inference_mode():
                    peer.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=o.new, min_new_tokens=o.new, pad_token_id=0)

        contenders |= {f"transformers generate, batch {b}": lambda b=int(b): generate(b) for b in o.batches.split(",")}
    except ImportError:
        print("transformers is not installed: left out")
    seconds = {name: [] for name in contenders}
    for turn in range(o.rounds + 1):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            if gpu:
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    best = statistics.median(seconds["ours"])
    print(f"{rows} samples of {o.new} tokens, prompts of about {o.prompt}, {model.num_parameters():,} parameters; median of {o.rounds}")
    for name, s in seconds.items():
        print(f"{name:34}{rows * o.new / statistics.median(s):12,.0f} tokens/s   ours / it {statistics.median(s) / best:5.2f}")


if __name__ == "__main__":
    common.run(main)
