"""Several micro-batches at once, on a CPU: each in a thread of its own, by a copy of the model.

The products of a small model are too small to share among threads: at the tiny preset's size two replicas of
one thread each train 1.3 times as fast as one of two threads, and do not wait for each other at every
product, which costs most where another process wants the core (bench/RESULTS.md).
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def shared_threads(count):
    """Within it each of `count` workers computes with its share of torch's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // count))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Replicas:
    """A model and copies of it, which have its weights, the same memory, but gradients of their own."""

    def __init__(self, model, count):
        self.models = [model]
        for _ in range(count - 1):
            replica = copy.deepcopy(model)
            for own, shared in zip(replica.parameters(), model.parameters()):
                own.data = shared.data
            self.models.append(replica)
        self.pool = ThreadPoolExecutor(count)

    def map(self, work, items):
        """work(model, item) of each item, item i by replica i % count → results, in order.

        The gradients that it leaves are the model's afterwards, added in one order: the same each time.
        """
        if len(self.models) == 1:
            return [work(self.models[0], item) for item in items]
        items, count = list(items), len(self.models)
        shares = [[(model, item) for item in items[r::count]] for r, model in enumerate(self.models)]
        with shared_threads(count):
            done = list(self.pool.map(lambda share: [work(*pair) for pair in share], shares))
        for replica in self.models[1:]:
            for total, part in zip(self.models[0].parameters(), replica.parameters()):
                if part.grad is not None:
                    total.grad = part.grad if total.grad is None else total.grad.add_(part.grad)
                    part.grad = None
        return [done[i % count][i // count] for i in range(len(items))]
