"""The Triton kernels against attention.reference: interpreted on a CPU in fp32, on a GPU in bf16."""

import math
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
GPU = torch.cuda.is_available()
pytest.importorskip("triton")

from lab.options import UserError  # noqa: E402

import flash  # noqa: E402
from attention import BACKENDS, Layout, choose, reference  # noqa: E402
from flash import CONFIGS, compare, compare_decoding, fault, flash_attention  # noqa: E402

DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
TOLERANCE = 1e-2 if GPU else 2e-6  # relative to the largest entry (or 1)


def starts(lengths):
    return torch.tensor(
        [[sum(lengths[:i]) for i, n in enumerate(lengths) for _ in range(n)]], dtype=torch.int32
    )


def close(got, want):
    error = float(
        (got.detach().double().cpu() - want.detach().cpu()).abs().max()
        / want.detach().abs().max().clamp(min=1)
    )
    assert error <= TOLERANCE, error


@contextmanager
def forced(configs):
    """Within it, kernels run in these configurations, {kind: configuration}."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(flash, "_chosen", {})
        m.setattr(flash, "CONFIGS", {kind: [config] for kind, config in configs.items()})
        m.setattr(flash, "fault", lambda *_: "")
        yield


def shared(*rows):
    """Layout of rows of (prompt, completions that share it), in lengths; padding, a document, at the end."""
    T = max(sum(prompt + sum(completions) for prompt, completions in row) for row in rows)
    bounds = []
    for row in rows:
        at, tokens = 0, []
        for prompt, completions in row:
            begin, at = at, at + prompt
            tokens += [(begin, 0, 0)] * prompt
            for n in completions:
                tokens += [(at, begin, begin + prompt)] * n
                at += n
        bounds.append(tokens + [(at, 0, 0)] * (T - at))
    doc_start, prompt_start, prompt_end = torch.tensor(bounds).unbind(2)
    return Layout(doc_start, doc_start, prompt_start, prompt_end)


def check(lengths, H=2, K=1, D=16, config=None, fill=None):
    """Forward, dq, dk, dv of a batch of two rows: these documents, and the same backwards; or of a Layout."""
    torch.manual_seed(0)
    layout = lengths
    if not isinstance(lengths, Layout):
        layout = Layout.of(torch.cat((starts(lengths), starts(lengths[::-1]))))
    B, T = layout.doc_start.shape
    fill = fill or (lambda *size: torch.randn(size, dtype=torch.float64))
    q, k, v, g = (fill(B, T, h, D) for h in (H, K, K, H))
    exact = [
        x.to(DTYPE).double().requires_grad_() for x in (q, k, v)
    ]  # the reference gets what the kernel gets
    want = reference(*exact, layout)
    want_grads = torch.autograd.grad(want, exact, g.to(DTYPE).double())
    mine = [x.detach().to(DEVICE, DTYPE).requires_grad_() for x in exact]
    with forced(dict.fromkeys(CONFIGS, config) if config else CONFIGS_FIRST):
        got = flash_attention(*mine, layout.bounds.to(DEVICE))
        grads = torch.autograd.grad(got, mine, g.to(DEVICE, DTYPE))
    for a, b in zip((got, *grads), (want, *want_grads)):
        close(a, b)
    return got, grads


CONFIGS_FIRST = {kind: configs[0] for kind, configs in CONFIGS.items()}


def compiled(*flags):
    """Rows of bench/gpu_resources.py, by Triton's compiler, which needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "bench/gpu_resources.py", *flags]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-2000:]
    return [line.split() for line in out.stdout.splitlines()[2:]]


def test_every_configuration_compiles_for_hopper():
    """What the interpreter accepts, the GPU's compiler may not. Nothing of it spills much."""
    rows = compiled("--arch", "90")
    assert len(rows) == 2 * sum(map(len, CONFIGS.values())) + 2
    assert max(int(row[-3]) for row in rows) <= 64 and max(int(row[-2]) for row in rows) <= 227
    assert sum(row[-1] == "yes" for row in rows) >= len(rows) - 3  # two of dq and one of decoding


def test_each_kernel_compiles_for_an_a100():
    """In its first configuration: where another does not, the tuner leaves it out."""
    assert len(compiled("--arch", "80", "--first")) == 2 * len(CONFIGS) + 2


@pytest.mark.slow
def test_every_configuration_compiles_for_an_a100():
    assert len(compiled("--arch", "80")) == 2 * sum(map(len, CONFIGS.values())) + 2


def test_doc_ends():
    def ends(lengths):
        return Layout.of(starts(lengths)).bounds[1].tolist()

    assert ends([3, 1, 2]) == [[3, 3, 3, 4, 6, 6]]
    assert ends([5]) == [[5] * 5] and ends([1, 1]) == [[1, 2]]


def test_bounds_of_a_shared_prompt():
    """A prompt's keys are seen to the end of its last completion; who has no prompt begins with its document."""
    layout = shared([(3, [2, 1]), (1, []), (2, [1])], [(2, [])])
    doc_start, key_end, prompt_start, prompt_end = layout.bounds.tolist()
    assert doc_start == [[0, 0, 0, 3, 3, 5, 6, 7, 7, 9], [0, 0] + [2] * 8]
    assert key_end == [[6, 6, 6, 5, 5, 6, 7, 10, 10, 10], [2, 2] + [10] * 8]
    assert prompt_start == [[0, 0, 0, 0, 0, 0, 6, 7, 7, 7], doc_start[1]]
    assert prompt_end == [[0, 0, 0, 3, 3, 3, 6, 7, 7, 9], doc_start[1]]


EVERY = sorted({c for configs in CONFIGS.values() for c in configs})


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_every_configuration_that_the_tuner_may_choose(config):
    check([50, 1, 130, 17, 3], config=config)
    check([201], config=config)


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (4, 2), (6, 1), (8, 2)], ids=str)
def test_heads(heads):
    check([7, 40, 1, 22], *heads, config=(32, 32, 4, 2))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 33, 63, 65, 100])
def test_odd_lengths(length):
    check([length], config=(32, 16, 4, 2))
    check([1] * length, config=(16, 32, 4, 2))


@pytest.mark.parametrize("end", range(1, 33))
def test_a_document_that_ends_at_every_position_of_a_block(end):
    """Blocks of 16: the boundary falls on each place of the second and third."""
    check([15 + end, 64 - end], config=(16, 16, 4, 2))


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_head_widths(width):
    check([20, 45], D=width, config=(32, 32, 4, 2))


def test_a_head_width_that_is_none_is_a_user_error():
    with pytest.raises(UserError, match="sdpa"):
        check([4], D=12)


@pytest.mark.parametrize(
    "fill",
    [lambda *s: torch.ones(s, dtype=torch.float64), lambda *s: torch.randint(-3, 4, s).double()],
    ids=["ones", "integers"],
)
def test_ones_and_integers(fill):
    """Exact inputs: what a miscompiled dot(trans(x), y) gets visibly wrong."""
    for config in EVERY if GPU else EVERY[:2]:
        check([33, 64, 20], D=64, config=config, fill=fill)


def test_two_runs_give_the_same_bits():
    first, second = (check([50, 1, 77], H=4, K=2) for _ in range(2))
    assert torch.equal(first[0], second[0]) and all(torch.equal(a, b) for a, b in zip(first[1], second[1]))


def test_many_random_layouts():
    g = torch.Generator().manual_seed(1)
    for _ in range(12):
        lengths = torch.randint(1, 40, (int(torch.randint(1, 6, (1,), generator=g)),), generator=g).tolist()
        m, n = (2 ** int(torch.randint(4, 7, (1,), generator=g)) for _ in range(2))
        check(lengths, config=(m, n, 4, 2))


GROUPS = {
    "long prompt": ([(130, [9, 70, 1, 33]), (20, [])], [(21, []), (100, [60, 50])]),
    "short prompts": ([(1, [3, 1]), (2, [40, 5, 30, 1, 7, 2]), (17, [16])], [(16, [16, 16]), (33, [31])]),
    "long completions": ([(40, [100, 90])], [(5, []), (3, [101, 64, 1])]),
    "no prompts in a row": ([(50, []), (7, []), (80, [])], [(32, [32, 32]), (15, [1])]),
}


@pytest.mark.parametrize("group, blocks", [*zip(GROUPS, [(32, 16), (16, 32), (16, 64), (64, 32)])], ids=str)
def test_completions_that_share_a_prompt(group, blocks):
    check(shared(*GROUPS[group]), H=1, config=(*blocks, 4, 2))


@pytest.mark.parametrize("config", EVERY if GPU else [(64, 128, 8, 2), (128, 64, 8, 3)], ids=str)
def test_a_shared_prompt_in_large_blocks(config):
    """Long enough that blocks of the prompt are seen whole and others are left out."""
    check(shared([(150, [60, 200, 70]), (9, [20])]), H=1, config=config)


@pytest.mark.parametrize("H, K, D", [(4, 2, 16), (3, 1, 32), (2, 2, 64)])
def test_heads_and_widths_with_a_shared_prompt(H, K, D):
    check(shared([(37, [20, 13])], [(6, [1, 30])]), H, K, D, config=(32, 16, 4, 2))


def test_many_random_groups():
    g = torch.Generator().manual_seed(2)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=g))

    for _ in range(20 if GPU else 3):
        rows = [
            [(draw(1, 131 if draw(0, 3) == 0 else 30), [draw(1, 40) for _ in range(draw(0, 7))])]
            + [(draw(1, 20), [draw(1, 20) for _ in range(draw(0, 3))])] * draw(0, 3)
            for _ in range(2)
        ]
        check(shared(*rows), H=1, config=(2 ** draw(4, 7), 2 ** draw(4, 7), 4, 2))


def test_a_layout_whose_prompts_are_empty_is_one_without():
    plain = Layout.of(torch.cat((starts([50, 1, 30]), starts([81]))))
    empty = Layout(plain.doc_start, plain.positions, plain.doc_start, plain.doc_start)
    first, second = (check(layout, config=(16, 32, 4, 2)) for layout in (plain, empty))
    assert torch.equal(first[0], second[0]) and all(torch.equal(a, b) for a, b in zip(first[1], second[1]))


SHAPE = (2, 1, 16, False, 64, DTYPE, False)


def faults(shape=SHAPE):
    return [fault(compare, kind, configs[-1], shape, DEVICE) for kind, configs in CONFIGS.items()]


def test_the_formula_is_the_reference_and_its_gradients():
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(2, 33, h, 8, dtype=torch.float64, requires_grad=h < 7) for h in (6, 2, 2, 6))
    layout = shared([(7, [1, 5]), (20, [])], [(3, []), (6, [20, 4])])
    exact = flash.formula(q.detach(), k.detach(), v.detach(), do, layout.bounds[1])
    want = reference(q, k, v, layout)
    for name, x in zip(("out", "dq", "dk", "dv"), (want, *torch.autograd.grad(want, (q, k, v), do))):
        torch.testing.assert_close(exact[name], x, rtol=1e-10, atol=1e-10)


def planted(*, of="out dq delta dk dv", by=1.02):
    """A stand-in for `formula` with an error, as if the kernels were the ones in error."""
    right = flash.formula
    return lambda *arguments: {n: by * x if n in of.split() else x for n, x in right(*arguments).items()}


def test_an_error_of_any_kernel_is_seen(monkeypatch):
    assert faults() == ["", "", ""] and fault(compare_decoding, SHAPE, DEVICE) == ""
    with monkeypatch.context() as m:
        m.setattr(flash, "formula", planted())
        assert all("off by" in text for text in faults())
    assert faults((1, 1, *SHAPE[2:-1], True)) == ["", "", ""]
    with monkeypatch.context() as m:  # an error of dv alone is not hidden by dk, which is right
        m.setattr(flash, "formula", planted(of="dv"))
        assert [bool(text) for text in faults()] == [False, False, True]
    with monkeypatch.context() as m:
        m.setattr(flash, "flash_decode", lambda *a, right=flash.flash_decode: 1.02 * right(*a))
        assert "off by" in fault(compare_decoding, SHAPE, DEVICE)


def test_results_that_are_not_numbers_are_faults():
    assert "off by nan" in fault(lambda: [(torch.tensor([math.nan]), torch.ones(1))])


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Tensors say that they are on a GPU, so that a CPU takes the way of one; the interpreter still runs the
    kernels. Returns what was timed."""
    timed = []

    def do_bench(run, **_):
        run()
        timed.append(run)
        return len(timed)

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(flash, "_chosen", {})
    monkeypatch.setattr(flash, "do_bench", do_bench)
    monkeypatch.setattr(flash, "CONFIGS", {kind: configs[-2:] for kind, configs in CONFIGS.items()})
    return timed


needs_interpreter = pytest.mark.skipif(GPU, reason="plays a GPU by Triton's interpreter")


@needs_interpreter
def test_the_first_forward_and_backward_go_through_the_tuner(as_on_a_gpu):
    """From where it is really called: within a custom operator's backward, where autograd records nothing."""
    torch.manual_seed(0)
    layout = Layout.of(starts([30, 5, 21]))
    q, k, v = (torch.randn(1, 56, h, 16, requires_grad=True) for h in (4, 2, 2))
    out = BACKENDS["triton"].attend(q, k, v, layout)
    assert len(as_on_a_gpu) == 2
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert len(as_on_a_gpu) == 6 and {kind for kind, _ in flash._chosen} == set(CONFIGS)
    want = reference(q, k, v, layout)
    for a, b in zip((out, *grads), (want, *torch.autograd.grad(want.square().sum(), (q, k, v)))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    BACKENDS["triton"].attend(q, k, v, layout)
    assert len(as_on_a_gpu) == 6  # once a shape


class CompilationError(Exception):
    """As Triton's: its text begins with the code."""

    error_message = "cannot do this\nsecond line"


@needs_interpreter
def test_a_configuration_that_does_not_compile_is_skipped(as_on_a_gpu, monkeypatch):
    launch, broken = flash._launch, {kind: configs[-2] for kind, configs in CONFIGS.items()}

    def compile(kind, config, *tensors):
        if config == broken[kind]:
            raise CompilationError("at 1:2: code")
        launch(kind, config, *tensors)

    monkeypatch.setattr(flash, "_launch", compile)
    q, k, v = (torch.randn(1, 40, h, 16, requires_grad=True) for h in (2, 1, 1))
    BACKENDS["triton"].attend(q, k, v, None).sum().backward()
    assert {kind: config for (kind, _), config in flash._chosen.items()} == {
        k: c[-1] for k, c in CONFIGS.items()
    }
    assert not as_on_a_gpu  # one is left: nothing to time
    monkeypatch.setattr(flash, "_chosen", {})
    monkeypatch.setattr(flash, "CONFIGS", {kind: [config] for kind, config in broken.items()})
    with pytest.raises(
        UserError, match=r"forward works here in no configuration.*sdpa.*CompilationError: cannot do this\)$"
    ):
        BACKENDS["triton"].attend(q, k, v, None)


class GPUDevice:
    """A device that calls itself a GPU where torch's functions do not look."""

    type = "cuda"


@pytest.fixture
def gpu(as_on_a_gpu, monkeypatch):
    """The checks of `choose` for it run on the CPU, with one head."""
    flash.why_not.cache_clear()
    for name in ("compare", "compare_decoding"):
        check = getattr(flash, name)

        def on_a_cpu(*a, check=check):
            return check(*a[:-2], (1, 1, *a[-2][2:]), torch.device("cpu"))

        monkeypatch.setattr(flash, name, on_a_cpu)
    yield GPUDevice()
    flash.why_not.cache_clear()


def chosen(device, width=16, name="auto"):
    backend, note = choose(name, device, width, torch.float32)
    return backend.name, note


@needs_interpreter
def test_auto_takes_the_kernels_on_a_gpu_only_if_all_of_them_are_right(gpu, monkeypatch):
    assert chosen(torch.device("cpu")) == ("sdpa", "") and chosen(gpu, name="reference") == ("reference", "")
    assert chosen(gpu) == chosen(gpu, name="triton") == ("triton", "")
    for kernel in ("out", "dq", "dv"):
        flash.why_not.cache_clear()
        with monkeypatch.context() as m:
            m.setattr(flash, "formula", planted(of=kernel))
            name, note = chosen(gpu)
            kind = {"out": "forward", "dv": "dkdv"}.get(kernel, kernel)
            assert name == "sdpa" and f"no Triton kernels: {kind}: its results are off by 2.0%" in note
            with pytest.raises(UserError, match=f"{kind}.*choose sdpa"):
                chosen(gpu, name="triton")
    flash.why_not.cache_clear()
    monkeypatch.setattr(flash, "flash_decode", lambda *a, right=flash.flash_decode: 1.02 * right(*a))
    assert chosen(gpu) == ("sdpa", "no Triton kernels: decoding: its results are off by 2.0%")


@needs_interpreter
def test_the_check_is_made_once_a_device_and_width(gpu, monkeypatch):
    calls, check = [], flash.fault
    monkeypatch.setattr(flash, "fault", lambda *a: calls.append(a) or check(*a))
    for _ in range(2):
        assert chosen(gpu) == ("triton", "")
    assert len(calls) == 7  # each kernel without and with prompts, and decoding


@needs_interpreter
def test_auto_takes_sdpa_for_a_head_width_that_the_kernels_do_not_know(gpu):
    name, note = chosen(gpu, 48)
    assert name == "sdpa" and "48" in note and "\n" not in note
    with pytest.raises(UserError, match="48"):
        chosen(gpu, 48, name="triton")


def test_a_package_that_cannot_be_imported_means_sdpa(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash", None)
    name, note = chosen(GPUDevice())
    assert name == "sdpa" and note.startswith("no Triton kernels: ModuleNotFoundError") and "\n" not in note


def test_a_way_that_cannot_be_had_is_a_user_error():
    with pytest.raises(UserError, match="CUDA"):
        choose("triton", torch.device("cpu"), 64)
    with pytest.raises(UserError, match="choose from auto"):
        choose("flash", torch.device("cpu"), 64)


@pytest.mark.parametrize("way", ["sdpa", "triton"])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (12, 2), (6, 1), (40, 1)], ids=str)
def test_decode(heads, way):
    """Some rows of five groups of four, each over its prompt and its own columns, whatever lies outside
    them."""
    torch.manual_seed(0)
    (H, K), G, P, D, filled = heads, 4, 5, 32, 70
    rows = torch.tensor([0, 1, 2, 3, 5, 12, 13, 16, 17, 19])  # of the third group none is left
    lengths = torch.tensor([1, 64, 7, 150, 130], dtype=torch.int32)
    q, own, prompt = (
        torch.randn(len(rows), H, D),
        torch.randn(2, 20, K, 90, D)[:, : len(rows)],
        torch.randn(2, 8, K, 160, D)[:, :P, :, :150],
    )
    q, own, prompt = (x.to(DTYPE) for x in (q, own, prompt))
    want = []
    for i, row in enumerate(rows.tolist()):
        k, v = (
            torch.cat((prompt[part, row // G, :, : lengths[row // G]], own[part, i, :, :filled]), 1)[
                None
            ].double()
            for part in (0, 1)
        )
        want.append(
            torch.nn.functional.scaled_dot_product_attention(
                q[i, None, :, None].double(), k, v, enable_gqa=True
            )[0, :, 0]
        )
    own[:, :, :, filled:] = 1e3
    for p, length in enumerate(lengths):
        prompt[:, p, :, length:] = 1e3
    arguments = [x.to(DEVICE) for x in (q, own, prompt, lengths, rows)]
    for chunk in (90,) if way == "triton" else (90, filled, 32, 1):
        arguments[1] = own.to(DEVICE).split(chunk, 3)[: -(-filled // chunk)]
        got = BACKENDS[way].decode(*arguments, G, torch.tensor([filled], device=DEVICE))
        close(got, torch.stack(want))
