"""What every reported number rests on stays as it is: the world, its splits, its tokenizer, its noise.

A change that alters one of these hashes makes all trained bases and committed results those of another world. If
that is meant, say so in the commit, and run the studies again.
"""

import json
from hashlib import blake2b
from itertools import product

from lab.options import stream_key

import pytest

import datagen
import train_grpo
from rollout import Problems
from train_pretrain import train_tokenizer

MINI = datagen.Mixture.parse("op 2-10; world mini")
PLAIN = dict(op=range(2, 21, 3), mode=datagen.MODES, template=datagen.TEMPLATES, layers=(2, 3))


def digest(*values):
    return blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


def problems_of_every_kind():
    for i, (op, mode, template, layers) in enumerate(product(*PLAIN.values())):
        split = list(datagen.SPLITS)[i % 5]
        yield datagen.generate(3, i, op=op, mode=mode, template=template, layers=layers, split=split)


def problems_of_a_step():
    o = train_grpo.Options(seed=1, prompts=4)
    return Problems(o, MINI, ()).of_step(5, range(4))


FROZEN = {
    "the world": lambda: [datagen.to_record(p) for p in problems_of_every_kind()],
    "the world of the studies": lambda: [datagen.to_record(MINI.problem(0, i, "train")) for i in range(40)],
    "held-out problems": lambda: [p.problem for p in datagen.held_out(MINI, [2, 7], 5, 1000, "eval")],
    "problems of a GRPO step": lambda: [p.problem for p in problems_of_a_step()],
    "keys of noise": lambda: [stream_key(0, "rollout", 3), stream_key(1000, "evaluation")],
    "the tokenizer": lambda: train_tokenizer(MINI, (), 600, 0, documents=200).hash,
}
HASHES = {
    "the world": "1084b84643a3d4f4",
    "the world of the studies": "e8a3bad72e05af5f",
    "held-out problems": "c9039b204a49107f",
    "problems of a GRPO step": "33019d6040230190",
    "keys of noise": "e19d9a8882146ecc",
    "the tokenizer": "76db11ef8755a043",
}


@pytest.mark.parametrize("what", FROZEN)
def test_frozen(what):
    assert digest(FROZEN[what]()) == HASHES[what]
