"""The scales: the only place where bands and budgets stand."""

from datagen import WORLDS
from studies import Scale

MICRO = dict(
    train_pretrain=dict(
        hidden_size=32, layers=2, heads=2, kv_heads=2, intermediate_size=64, row_tokens=512, rows=1,
        vocab_size=600, eval_problems=1, max_new_tokens=16),
    train_grpo=dict(prompts=2, group=2, minibatch=2, eval_problems=1, max_new_tokens=16, row_tokens=512),
    evaluate=dict(problems=2, max_new_tokens=16), tries=dict(max_new_tokens=16),
)  # fmt: skip
MINI = dict(
    train_pretrain=dict(
        vocab_size=700, schedule="wsd", cooldown=0.5, min_lr=3e-5, repeat=0.5, repeat_pool=2000,
        max_new_tokens=320, eval_problems=32, eval_every=2000),
    train_grpo=dict(
        kl=0.0, minibatch=32, warmup_steps=8, max_new_tokens=320, eval_problems=32, eval_every=64),
    evaluate=dict(problems=100, per_band=True, max_new_tokens=320), tries=dict(max_new_tokens=320),
)  # fmt: skip
# of the paper: its bands, contexts, and a tokenizer of all of them
PAPER = dict(
    world="mode forward", bands={"id": "2-10", "edge": "11-14", "hard": "15-20"},
    pt="2-4:0.2, 5-7:0.3, 8-10:0.5", ladder=("2-4", "5-7", "8-10"), pool="8-14", wide="2-20", shares="tokens",
    ranges={"id": "7-10", "near": "9-12", "edge": "11-14", "hard": "17-20"},
    template="zoo, school, festival", words="op 2-20; template zoo, school, festival")  # fmt: skip

SCALES = {
    # tests: 20 steps of pre-training, 2 of GRPO
    "micro": Scale(
        preset="tiny", world="mode forward; distractors 1-2; literals 1-9; bound 99",
        bands={"id": "2-3", "edge": "4", "hard": "5"}, pt="2-3", ladder=("2", "3", "4"),
        ranges={"id": "3", "near": "3-4", "edge": "4", "hard": "5"}, pool="3-5", wide="2-3", tokens=20 * 512,
        budget=1024, price={"measured": 256, "nominal": 512}, steps=2, k=2, seeds=2, options=MICRO,
        cpt=2048, sft=2048, problems=8, tries=4, longest=24,
        rates={"train_pretrain": 1e-3, "train_grpo": 0.5, "evaluate": 0.1, "tries": 0.1, "texts": 0.01}),
    # the studies, on a laptop; a base has seen a little of the edge: more, and what it lacks there is chance,
    # which RL cannot mend; none, and RL finds nothing to begin with
    "mini": Scale(
        preset="tiny", world=WORLDS["mini"],
        bands={"id": "2-6", "edge": "7-8", "hard": "9-10"}, ladder=("2-4", "5-6", "7-8"),
        pt="2-6:5, 7:0.12, 8:0.04",
        ranges={"id": "5-6", "near": "6-7", "edge": "7-8", "hard": "9-10"}, pool="6-10", wide="2-6",
        tokens=12_000_000, budget=6_600_000,
        price={"measured": 68_000, "nominal": 436_907},
        steps=64, k=32, seeds=4, words="op 2-12; template zoo, school, festival", options=MINI,
        mid=dict(lr=3e-4, muon_lr=9e-4, warmup=0.1, cooldown=1.0, repeat=0.0),
        cpt=1_500_000, sft=3_000_000, problems=3000, longest=576,
        rates={"train_pretrain": 7e-5, "train_grpo": 0.03, "evaluate": 0.03, "tries": 0.03, "texts": 2e-3}),
    # one GPU; no rate was measured
    "small": Scale(
        preset="small", **PAPER, tokens=500_000_000, budget=105_000_000, steps=200, k=32, seeds=3,
        price={"measured": 515_000, "nominal": 3_495_253}, mid=dict(lr=5e-4, muon_lr=2.5e-3, warmup=0.15),
        options=dict(train_grpo=dict(reward="outcome")),
        cpt=25_000_000, sft=20_000_000, problems=50_000, longest=1024,
        rates={"train_pretrain": 1e-6, "train_grpo": 1.3e-3, "evaluate": 1.5e-3, "tries": 1.5e-3,
               "texts": 4e-3}),
    # one large GPU; the paper's settings; no rate was measured
    "paper": Scale(
        preset="paper", **PAPER, tokens=10_000_000_000, budget=1_048_576_000, steps=200, k=128, seeds=1,
        price={"measured": 3_084_047, "nominal": 20_971_520}, mid=dict(lr=1e-4, warmup=0.15),
        options=dict(train_grpo=dict(reward="outcome", dual_clip=3.0),
                     evaluate=dict(problems=200, temperature=0.7)),
        cpt=200_000_000, sft=100_000_000, problems=50_000, longest=1024,
        rates={"train_pretrain": 1.7e-6, "train_grpo": 1.8e-3, "evaluate": 6e-4, "tries": 6e-4,
               "texts": 4e-3}),
}  # fmt: skip
