"""Where a run computes: device, number formats, threads, graphs, and the processes that torchrun starts."""

import copy
import ctypes
import os
import platform
from dataclasses import dataclass

from lab.options import CheckedOptions, UserError, opt, run_script

import torch

DTYPES = ("auto", "float32", "bfloat16")
THREADS = torch.get_num_threads()
ATTENTION = ("auto", "triton", "sdpa", "reference")


@dataclass(frozen=True)
class DeviceOptions(CheckedOptions):
    seed: int = opt(0, "seed of everything drawn", within="[0, 4294967295]")
    device: str = opt("auto", "where to compute", ("auto", "cpu", "cuda", "mps"), free=True)
    threads: int = opt(0, "CPU threads (0: torch's default)", within="[0, 256]", free=True)
    replicas: int = opt(1, "on a CPU: micro-batches at once, in threads", within="[1, 256]", free=True)
    attention: str = opt("auto", "auto: Triton's kernels on a CUDA GPU, else sdpa", ATTENTION, free=True)
    dtype: str = opt("auto", "of the layers' products (auto: bfloat16 on a CUDA GPU, else float32)", DTYPES)


def setup(o):
    """Choose the device of DeviceOptions, set threads and seed, print one banner line → torch.device.

    Raises UserError if a device is asked for that is not here.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name in here if here[name]) if o.device == "auto" else o.device
    if not here[name]:
        raise UserError(f"device {name} was asked for, but torch sees none here; use --device cpu")
    if name == "cuda":  # one GPU for each process that torchrun starts here
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.set_num_threads(o.threads or THREADS)
    if name == "cpu" and platform.libc_ver()[0] == "glibc":
        # Giving activations back to the kernel and faulting them in again costs a tenth of a training step.
        for threshold in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(threshold, 1 << 30)
    torch.manual_seed(o.seed)
    torch.set_float32_matmul_precision("high")
    if os.environ.get("RANK", "0") == "0":
        threads = f"{platform.machine()}, {torch.get_num_threads()} threads"
        what = torch.cuda.get_device_name() if name == "cuda" else threads
        versions = f"torch {torch.__version__}, Python {platform.python_version()}"
        print(f"device {name} ({what}), {versions}, seed {o.seed}")
    return torch.device(name)


def compute_dtype(name, device):
    """What the layers' matrix products are taken in: "auto" is bfloat16 on a CUDA GPU, float32 elsewhere.

    On a CPU bfloat16 is no faster in replicas, and the tiny preset learned less in it
    (bench/RESULTS.md).
    """
    auto = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, auto if name == "auto" else name)


def takes_graphs(device):
    """Whether a step is a CUDA graph: it neither waits for the GPU then, nor changes its shapes."""
    return device.type == "cuda"


def with_cast_weights(model):
    """A copy of the model, its layers with the weights that autocast would make of them at every call."""
    model = copy.deepcopy(model).requires_grad_(False)
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(model.compute_dtype)
    return model


def capture(work, others):
    """`work` as a CUDA graph that shares the memory of the others.

    It is done once before: a capture, which has a stream of its own, must find everything set up.
    """
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=next(iter(others.values())).pool() if others else None):
        work()
    return graph


def run_torch_script(main):
    """`lab.options.run_script`, with one line for memory that runs out."""

    def guarded():
        try:
            return main()
        except (MemoryError, RuntimeError) as error:  # on a CPU torch's has no type of its own
            said = any(words in str(error) for words in ("allocate memory", "Storage size calculation"))
            if said or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                how = "lower --micro-batch-size or --sample-rows, or make the model smaller"
                raise UserError(f"out of memory: {how}") from None
            raise
        finally:
            # after an error: left to the interpreter's end, gloo's threads may abort the process
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    run_script(guarded)


class Processes:
    """The processes of one run, as torchrun starts them: `rank` of `size`. Gradients and counts are summed
    over them.
    """

    def __init__(self, device):
        self.device = device
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.first = self.rank == 0
        if self.size > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def share(self, n):
        """This process's part of n things, a range; the parts in order are the whole."""
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def sum(self, numbers):
        """Sum a list of numbers over the processes (fp64) → list of floats, the same in each."""
        if self.size == 1:
            return [float(n) for n in numbers]
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def sum_gradients(self, model):
        """Sum the gradients over the processes, as one flat tensor; no gradient is a gradient of 0.

        Each process's loss is its share of one global mean.
        """
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if self.size > 1:
            gradients = [p.grad for p in model.parameters()]
            flat = torch.nn.utils.parameters_to_vector(gradients)
            torch.distributed.all_reduce(flat)
            torch.nn.utils.vector_to_parameters(flat, gradients)

    def gather(self, value):
        """What each process has, in order of rank → list, the same in each."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def agree(self, value, what):
        """Raise UserError, in every process, unless all of them have the same value."""
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise UserError(f"the processes do not see the same {what}: {values}; do they share --out?")

    def wait(self):
        """For all of them: the first process hosts the meeting place, and must not leave early."""
        if self.size > 1:
            torch.distributed.barrier()
