"""A process that works out the items of an iterable ahead of whoever takes them."""

import os
import signal
import threading
from multiprocessing import parent_process, resource_tracker

from lab.options import UserError

from torch.utils.data import DataLoader, IterableDataset


class Guarded(IterableDataset):
    """The items of an iterable; a UserError too: a DataLoader would make a page of what is raised."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        try:
            yield from self.items
        except UserError as error:
            yield error


def worked_out(items, workers):
    """Yield the items of an iterable. workers: 1 to work them out in a process of its own, else 0.

    Raises UserError where the iterable does, or if the worker dies.
    """
    stream = Guarded(items)
    if workers:  # spawned: a forked child of a process with torch's threads may hang
        how = dict(
            multiprocessing_context="spawn", worker_init_fn=_live_as_long_as_the_trainer, prefetch_factor=4
        )
        stream = begin(DataLoader(stream, batch_size=None, num_workers=1, **how))
    try:
        for item in stream:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError("the process that prepares batches died (of memory?): try --workers 0") from None


def begin(loader):
    """Its iterator. The worker is born with signals blocked, since it imports torch for seconds before it can
    ignore them; those to this process wait meanwhile.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        return iter(loader)
    resource_tracker.ensure_running()  # to start it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live_as_long_as_the_trainer(worker):
    """It gets our signals too, finishes its step, and ends this process. If it is killed it cannot: this
    process might wait for ever to hand over what nobody takes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
