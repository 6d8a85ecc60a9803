"""Does RL learn more from what a try says up to its first error than from all of it?"""

from functools import partial

from studies import Claim, Study


def arms(c, seed):
    base, edge = c.base(seed), c.mixture(c.ranges["edge"])
    rl = partial(c.rl, seed, base, edge, reward="strict")
    return {"base": base, "all": rl(), "cut": rl(credit="first-error")}


def gain(v):
    return v("cut", "edge", "correct@1") - v("all", "edge", "correct@1")


STUDIES = (Study("credit", "Credit up to an error.", arms, (Claim("M1", "it helps at the edge", gain),)),)
