"""Training time on 10 MB of generated text, tokens a record on the public sample, encoding speed beside raw tiktoken.

python bench/tokenizer.py
"""

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import data
import datagen
from tokenizer import train_bpe

mixture = data.Mixture.parse("op 2-20; template zoo,school,festival; mode forward,reverse; layers 2,3")
rand, texts, size = random.Random(0).random, [], 0
while size < 10_000_000:
    p = datagen.generate(0, len(texts), **mixture.arguments(rand))
    texts.append(data.prompt_text(p) + data.completion_text(p))
    size += len(texts[-1].encode())
start = time.process_time()
tokenizer = train_bpe(texts, 2200)
print(f"train: {time.process_time() - start:.2f} s on {size / 1e6:.1f} MB, {tokenizer.vocab_size} tokens")
for name, encode in (("ours", tokenizer.encode), ("tiktoken raw", lambda t: tokenizer._encoding.encode(t, allowed_special="all"))):
    start = time.process_time()
    count = sum(len(encode(t)) for t in texts)
    print(f"encode, {name}: {size / 1e6 / (time.process_time() - start):.1f} MB/s, {count / len(texts):.1f} tokens a document")
sample = Path(__file__).parents[2] / "shared" / "gsm_infinite" / "sample.jsonl"
if sample.exists():
    texts = [f"{r['problem'].strip()} {r['question'].strip()} {r['solution'].strip()}" for r in data.read_records(sample)]
    tokenizer = train_bpe(texts, 2200)
    print(f"public sample: {sum(len(tokenizer.encode(t)) for t in texts) / len(texts):.1f} tokens a record (paper's tokenizer: 643)")
