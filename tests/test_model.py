import copy
import math
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

from lab.options import UserError

import pytest
import torch
from conftest import skip_without_interpreter

from attention import BACKENDS, Layout, attention, reference
from model import ModelConfig, Qwen2, rotary, rotate
from training import Training

SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
}


def randomise(model, std=None):
    """Weights of a trained model's kind: a fresh one adds nothing in its layers."""
    for name, p in model.named_parameters():
        torch.nn.init.normal_(
            p, mean=float("norm" in name), std=0.3 if p.ndim == 1 else std or model.config.hidden_size**-0.5
        )
    return model


def starts(lengths):
    """Document lengths of one row → doc_start (1, T)."""
    out, at = [], 0
    for n in lengths:
        out += [at] * n
        at += n
    return torch.tensor([out], dtype=torch.int32)


@pytest.mark.parametrize("heads, kv", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("lengths", [[17], [1, 1, 1], [5, 1, 11, 1], [16, 16], [3, 29, 8]])
def test_attention_equals_the_reference_and_its_gradients(heads, kv, lengths):
    torch.manual_seed(0)
    B, T, D = 2, sum(lengths), 16
    doc_start = starts(lengths).expand(B, T).clone()
    doc_start[1] = starts(list(reversed(lengths)))[0]
    q, k, v, g = (
        torch.randn(B, T, h, D, dtype=torch.float64, requires_grad=i < 3)
        for i, h in enumerate((heads, kv, kv, heads))
    )
    layout = Layout.of(doc_start)
    expected = reference(q, k, v, layout)
    want = torch.autograd.grad(expected, (q, k, v), g)
    q32, k32, v32 = (x.detach().float().requires_grad_() for x in (q, k, v))
    # a prompt of no tokens changes nothing, but takes sdpa to its mask, as on a GPU
    masked = Layout(doc_start, layout.positions, doc_start, doc_start)
    for way in (layout, masked):
        got = attention(q32, k32, v32, way)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(torch.autograd.grad(got, (q32, k32, v32), g.float()), want):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention(q32, k32, v32).double(), reference(q, k, v), rtol=1e-5, atol=1e-5)


def test_what_a_layout_works_out_of_its_documents():
    layout = Layout.of(torch.cat((starts([3, 1, 2]), starts([6]))))
    assert layout.whole[0] == [3, 1, 2, 6]
    assert layout.positions.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert layout.bounds[0].tolist() == [[0, 0, 0, 3, 4, 4], [0] * 6]
    assert layout.bounds[1].tolist() == [[3, 3, 3, 4, 6, 6], [6] * 6]
    assert (layout.mask(torch.float32)[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1],
    ]  # fmt: skip


def test_a_layout_is_worked_out_once_for_all_layers(monkeypatch):
    """Whatever a backend takes from it: made before the layers, and then only read."""
    model = randomise(Qwen2(ModelConfig(97, 64, 112, 3, 4, 2, 256)))
    tokens, doc_start, made = torch.zeros(1, 40, dtype=torch.long), starts([7, 20, 13]), []
    for module, name in ((torch, "unique_consecutive"), (sys.modules["attention"], "additive")):
        work = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, work=work, name=name, **k: made.append(name) or work(*a, **k)
        )
    plain = Layout.of(doc_start)
    model(tokens, plain)
    assert made == ["unique_consecutive"]
    model(tokens, Layout(doc_start, plain.positions, doc_start, doc_start))
    assert made == ["unique_consecutive"] * 2
    model.backend = BACKENDS["reference"]
    model(tokens, Layout.of(doc_start))
    assert made[2:] == ["additive"]
    assert plain.bounds is plain.bounds and plain.mask(torch.float64) is plain.mask(torch.float64)


def group(prompt, lengths, before=0, after=0):
    """Layout (1, T) of a document of `before` tokens, a prompt, completions of these lengths that share it,
    and one more document."""
    sizes = [before, prompt, *lengths, after]
    doc_start = starts(sizes)
    position = torch.arange(doc_start.shape[1]) - doc_start
    completion = torch.zeros_like(doc_start)
    completion[:, before + prompt : before + prompt + sum(lengths)] = 1
    return Layout(
        doc_start, position + prompt * completion, before * completion, (before + prompt) * completion
    )


@pytest.mark.parametrize("way", ["reference", "sdpa"])
@pytest.mark.parametrize("heads, kv", [(4, 4), (6, 2)])
def test_completions_that_share_a_prompt_see_what_each_would_see_alone(way, heads, kv):
    """In float64, forward and gradients: a packed prompt with its completions against prompt + completion,
    each in a row of its own."""
    torch.manual_seed(0)
    prompt, lengths, before, after = 9, [5, 1, 12], 4, 6
    layout, attend = group(prompt, lengths, before, after), BACKENDS[way].attend
    T = layout.doc_start.shape[1]
    q, k, v, g = (
        torch.randn(1, T, h, 8, dtype=torch.float64, requires_grad=True) for h in (heads, kv, kv, heads)
    )
    got = attend(q, k, v, layout)
    parts = [list(range(before)), list(range(before, before + prompt)), list(range(T - after, T))]
    shared, at = parts[1], before + prompt
    alone = torch.zeros_like(got)
    for part in parts:
        alone[:, part] = reference(q[:, part], k[:, part], v[:, part])
    for n in lengths:
        own = list(range(at, at + n))
        seen = shared + own
        alone[:, own] = reference(q[:, seen], k[:, seen], v[:, seen])[:, prompt:]
        at += n
    torch.testing.assert_close(got, alone, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(x, (q, k, v), g) for x in (got, alone))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["reference", "sdpa"])
def test_a_model_reads_a_shared_prompt_as_each_completion_would_alone(way):
    """Positions too: logits of the completions and the gradients of all weights."""
    torch.manual_seed(0)
    model = randomise(
        Qwen2(ModelConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2), BACKENDS[way])
    )
    prompt, lengths = 7, [4, 9, 1]
    tokens = torch.randint(97, (1, prompt + sum(lengths)))
    completion = (torch.arange(tokens.shape[1]) >= prompt)[None]
    packed = model.logits(tokens, group(prompt, lengths), completion)
    alone = []
    for part in tokens[0, prompt:].split(lengths):
        alone.append(model(torch.cat((tokens[0, :prompt], part))[None])[0][0, prompt:])
    alone, weight = torch.cat(alone), torch.randn(sum(lengths), 97)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad((x * weight).sum(), list(model.parameters())) for x in (packed, alone)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_reference_by_hand():
    """One head, one dimension, three tokens; the third begins a document."""
    q, k, v = (
        torch.tensor(x, dtype=torch.float64).view(1, 3, 1, 1)
        for x in ([1.0, 2.0, 3.0], [0.5, -1.0, 4.0], [10.0, 20.0, 30.0])
    )
    e0, e1 = torch.exp(torch.tensor([2 * 0.5, 2 * -1.0], dtype=torch.float64))
    want = [10.0, float((10 * e0 + 20 * e1) / (e0 + e1)), 30.0]
    got = reference(q, k, v, Layout.of(torch.tensor([[0, 0, 2]]))).flatten().tolist()
    assert got == pytest.approx(want)


def hugging_face(config, model):
    transformers = pytest.importorskip("transformers")
    fields = {k: v for k, v in vars(config).items() if k not in ("initializer_range", "rope_theta")}
    peer_config = transformers.Qwen2Config(**fields, attn_implementation="eager")
    if hasattr(peer_config, "rope_parameters"):  # transformers 5
        peer_config.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_theta}
    peer_config.rope_theta = config.rope_theta
    peer = transformers.Qwen2ForCausalLM(peer_config).eval()
    peer.load_state_dict(model.state_dict(), strict=True)
    return peer


@pytest.mark.parametrize(
    "heads, kv, tie, theta", [(4, 2, True, 1e4), (4, 1, False, 1e4), (8, 8, True, 1e6), (4, 2, False, 500.0)]
)
def test_logits_equal_transformers(heads, kv, tie, theta):
    torch.manual_seed(1)
    config = ModelConfig(
        **SMALL, num_attention_heads=heads, num_key_value_heads=kv, tie_word_embeddings=tie, rope_theta=theta
    )
    model = randomise(Qwen2(config)).eval()
    peer = hugging_face(config, model)
    tokens = torch.randint(97, (2, 33))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], peer(tokens).logits, rtol=1e-4, atol=1e-4)
        # packed documents: each as transformers sees it alone
        doc_start = starts([9, 1, 23]).expand(2, 33)
        packed = model(tokens, doc_start)[0]
        for a, b in ((0, 9), (9, 10), (10, 33)):
            torch.testing.assert_close(packed[:, a:b], peer(tokens[:, a:b]).logits, rtol=1e-4, atol=1e-4)


def test_state_dict_keys_are_those_of_transformers():
    config = ModelConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2)
    model = Qwen2(config)
    assert set(hugging_face(config, model).state_dict()) == set(model.state_dict())
    assert model.num_parameters() == sum(p.numel() for p in hugging_face(config, model).parameters())


def test_changing_one_document_changes_no_other():
    torch.manual_seed(2)
    model = randomise(Qwen2(ModelConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2)))
    tokens, doc_start = torch.randint(97, (1, 40)), starts([13, 7, 20])
    targets = tokens.roll(-1, 1)
    targets[:, [12, 19, 39]] = -100

    def losses(tokens):
        logits = model(tokens, doc_start)[0]
        return torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none", ignore_index=-100)

    before = losses(tokens)
    changed = tokens.clone()
    changed[0, 13:20] = (changed[0, 13:20] + 1) % 97
    after = losses(changed)
    assert torch.equal(before[:13], after[:13]) and torch.allclose(before[20:], after[20:], atol=1e-6)
    assert not torch.allclose(before[13:19], after[13:19])
    # and through the gradient: the first document's loss knows nothing of the second's tokens
    embedded = model.model.embed_tokens(tokens).detach().requires_grad_()
    hook = model.model.embed_tokens.register_forward_hook(lambda *_: embedded)
    losses(tokens)[:12].sum().backward()
    hook.remove()
    assert embedded.grad[0, 13:].abs().max() == 0 < embedded.grad[0, :12].abs().max()


def test_loss_is_the_mean_over_targets_and_ignores_the_rest():
    torch.manual_seed(3)
    model = randomise(Qwen2(ModelConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2)))
    tokens = torch.randint(97, (2, 21))
    targets = tokens.roll(-1, 1)
    targets[:, 15:] = -100
    logp = torch.log_softmax(model(tokens)[0], -1)
    want = -logp[:, :15].gather(-1, targets[:, :15, None]).mean()
    torch.testing.assert_close(model(tokens, None, targets)[1], want)


@pytest.mark.parametrize(
    "bad", [{"hidden_size": 65}, {"num_key_value_heads": 3}, {"num_hidden_layers": 0}, {"hidden_size": 12}]
)
def test_impossible_models_are_user_errors(bad):
    with pytest.raises(UserError):
        ModelConfig(**{**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, **bad})


def test_a_fresh_model_is_its_embedding_until_layers_learn():
    model = Qwen2(ModelConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2))
    tokens = torch.randint(97, (1, 9))
    want = model.model.norm(model.model.embed_tokens(tokens)) @ model.lm_head.weight.T
    torch.testing.assert_close(model(tokens)[0], want)


def test_local_heads_look_as_far_back_as_they_say():
    model = Qwen2(ModelConfig(**{**SMALL, "hidden_size": 128}, num_attention_heads=4, num_key_value_heads=2))
    model.look_nearby(spacing=2)
    attention_layer = model.model.layers[0].self_attn
    cos, sin = rotary(torch.arange(40)[None], 32, 1e4)
    k = rotate(attention_layer.k_proj.bias.view(1, 1, 2, 32).expand(1, 40, 2, 32), cos, sin)[0, :, 0]
    for h in range(4):
        q = rotate(
            attention_layer.q_proj.bias.view(1, 1, 4, 32)[:, :, h : h + 1].expand(1, 40, 1, 32), cos, sin
        )[0, -1, 0]
        weights = torch.softmax(k @ q / 32**0.5, 0)
        assert 39 - int(weights.argmax()) == 2 * (h + 1) and weights.max() > 0.4


def decoded(model, tokens, lengths):
    """Logits of the last of each row's own tokens (R, V), by a cache: of prompts of these lengths, two rows
    each, and the rest of tokens (R, T) as the rows' own."""
    R, config, W, S = len(tokens), model.config, max(lengths), tokens.shape[1]
    cache = torch.zeros(config.num_hidden_layers, 2, R, config.num_key_value_heads, S, config.head_dim)
    prompts = torch.zeros(config.num_hidden_layers, 2, R // 2, config.num_key_value_heads, W, config.head_dim)
    ends, rows = torch.tensor(lengths, dtype=torch.int32), torch.arange(R)

    def read(q, k, v, layer, p):
        prompts[layer, :, p, :, : lengths[p]] = torch.stack((k, v))[:, 0].transpose(1, 2)
        return model.backend.attend(q, k, v, None)

    def step(q, k, v, layer, column):
        cache[layer, :, :, :, column] = torch.stack((k, v))[:, :, 0]
        chunks = cache[layer].split(model.backend.chunk(S, q.device), 3)
        filled = torch.tensor([column + 1])
        return model.backend.decode(q[:, 0], chunks, prompts[layer], ends, rows, 2, filled)[:, None]

    def over(attend, *arguments):
        return [lambda q, k, v, i=i: attend(q, k, v, i, *arguments) for i in range(config.num_hidden_layers)]

    for p, n in enumerate(lengths):
        model.hidden(tokens[2 * p : 2 * p + 1, :n], torch.arange(n)[None], over(read, p))
    start = ends[rows // 2]
    for column in range(S - W):
        position = start + column
        x = model.hidden(tokens[rows, position][:, None], position[:, None], over(step, column))
    return model.head(x[:, 0])


@pytest.mark.parametrize("way", BACKENDS)
def test_every_backend_gives_the_same_logits(way):
    """Of the whole model, packed, dense and decoded with a cache: against the reference; the kernels where
    Triton's interpreter can run them."""
    skip_without_interpreter(way)
    torch.manual_seed(0)
    config = ModelConfig(97, 64, 112, 2, 4, 2, 256)
    model = randomise(Qwen2(config)).eval()
    other = Qwen2(config, BACKENDS[way]).eval()
    other.load_state_dict(model.state_dict())
    assert model.backend.name == "sdpa" and other.backend.name == way
    tokens, doc_start = torch.randint(0, 97, (2, 40)), torch.cat((starts([7, 20, 13]), starts([40])))
    model.backend = BACKENDS["reference"]
    with torch.no_grad():
        torch.testing.assert_close(
            other(tokens, doc_start)[0], model(tokens, doc_start)[0], atol=1e-4, rtol=1e-4
        )
        dense = model(tokens)[0]
        torch.testing.assert_close(other(tokens)[0], dense, atol=1e-4, rtol=1e-4)
        rows = tokens[:, None].expand(2, 2, 40)[..., :20].flatten(0, 1)
        last = dense[
            torch.arange(4) // 2, torch.tensor([18, 18, 19, 19])
        ]  # prompts of 13 and 14 tokens, six of each row's own
        torch.testing.assert_close(decoded(other, rows, [13, 14]), last, atol=1e-4, rtol=1e-4)


def test_matrix_products_in_bfloat16_are_close_and_gradients_are_not_rounded():
    torch.manual_seed(0)
    model, tokens = randomise(Qwen2(ModelConfig(97, 64, 112, 2, 4, 2, 256))), torch.randint(0, 97, (2, 40))
    doc_start = torch.cat((starts([7, 20, 13]), starts([40])))
    exact, _ = model(tokens, doc_start)
    model.compute_dtype = torch.bfloat16
    logits, loss = model(tokens, doc_start, tokens)
    assert logits.dtype == torch.float32 and 1e-4 < float((logits - exact).norm() / exact.norm()) < 2e-2
    loss.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_get_queries_keys_and_values_of_one_type(dtype, monkeypatch):
    """Rotary positions are applied in float32, whatever products are taken in."""
    flash = pytest.importorskip("flash")
    seen = []

    def kernels(q, k, v, bounds):
        seen.extend((q.dtype, k.dtype, v.dtype))
        return attention(q, k, v, Layout.of(bounds[0]))

    monkeypatch.setattr(flash, "flash_attention", kernels)
    model, tokens = randomise(Qwen2(ModelConfig(97, 64, 112, 2, 4, 2, 256))), torch.randint(0, 97, (2, 40))
    model.backend, model.compute_dtype = BACKENDS["triton"], dtype
    model(tokens, torch.cat((starts([7, 20, 13]), starts([40]))), tokens)[1].backward()
    assert len(seen) == 6 and {*seen} == {dtype}
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Counting:
    """A backend of torch.compile that only counts: the forward graphs, and those with a size that stands for
    any number."""

    def __init__(self):
        self.graphs = self.symbolic = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        sizes = [x for i in inputs for x in ([i] if isinstance(i, torch.SymInt) else i.shape)]
        self.symbolic += any(isinstance(x, torch.SymInt) for x in sizes)
        return graph


def test_evaluation_with_other_row_counts_leaves_the_training_graph_as_it_is():
    """Each shape has a graph of its own, none of them symbolic, and training goes on in the one it had."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, count = randomise(Qwen2(ModelConfig(97, 32, 48, 2, 2, 1, 64), BACKENDS["reference"])), Counting()
    model.compile_layers(backend=count)

    def run(rows, train):
        tokens = torch.randint(0, 97, (rows, 24))
        with torch.set_grad_enabled(train):
            model(tokens, starts([5, 19]).expand(rows, 24), tokens, loss_only=True)

    for rows in range(1, 13):  # evaluation at step 0, of what is left of it too
        run(rows, train=False)
    assert count.graphs == 12 and not count.symbolic
    run(4, train=True)
    run(3, train=True)
    assert count.graphs == 14 and not count.symbolic
    for rows, train in ((4, True), (5, False), (4, True), (3, True), (2, False)):
        run(rows, train)
    assert count.graphs == 14
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("way", ["reference", "triton"])
def test_compiled_layers_are_the_same_layers(way):
    """Once for all layers and document layouts: logits, gradients, keys; and a copy of a compiled model
    works."""
    skip_without_interpreter(way)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    model = randomise(Qwen2(ModelConfig(97, 32, 48, 3, 2, 1, 64), BACKENDS[way]))
    compiled = copy.deepcopy(model)
    compiled.compile_layers(backend="aot_eager")
    for lengths in ([7, 20, 13], [40], [1] * 40):
        tokens, doc_start = torch.randint(0, 97, (1, 40)), starts(lengths)
        (a, loss), (b, same) = (m(tokens, doc_start, tokens) for m in (model, compiled))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        for one, two in zip(
            *(torch.autograd.grad(x, list(m.parameters())) for x, m in ((loss, model), (same, compiled)))
        ):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    assert model.state_dict().keys() == compiled.state_dict().keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(copy.deepcopy(compiled)(tokens, doc_start)[0], b, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiler_itself_gives_the_same_logits():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = randomise(Qwen2(ModelConfig(97, 32, 48, 2, 2, 1, 64), BACKENDS["reference"])).requires_grad_(
        False
    )
    tokens, doc_start = torch.randint(0, 97, (1, 40)), starts([7, 20, 13])
    want = model(tokens, doc_start)[0]
    model.compile_layers()
    torch.testing.assert_close(model(tokens, doc_start)[0], want, atol=1e-5, rtol=1e-5)


def test_the_reference_is_compiled_too(monkeypatch):
    """Of GRPO, on a GPU: it takes as many passes as the policy."""
    seen, models = [], [Qwen2(ModelConfig(97, 32, 48, 1, 2, 1, 64)) for _ in range(2)]
    monkeypatch.setattr(Qwen2, "compile_layers", lambda self: seen.append(self))
    it = SimpleNamespace(model=models[0], reference=models[1], held_out=[], saved=None)
    it.device, it.o = SimpleNamespace(type="cuda"), SimpleNamespace(compile="auto", max_bad_steps=3)
    Training.begin(it)
    assert seen == models
    seen.clear()
    it.o.compile = "never"
    Training.begin(it)
    assert not seen


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("width, std", [(64, None), (128, None), (768, None), (768, 0.02)])
def test_the_first_loss_is_that_of_guessing_at_every_width(width, std, tie):
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 546}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2(ModelConfig(**sizes, **heads, tie_word_embeddings=tie, initializer_range=std))
    tokens = torch.randint(546, (4, 128))
    with torch.no_grad():
        assert abs(float(model(tokens, None, tokens.roll(-1, 1))[1]) - math.log(546)) < 0.5


def test_shapes_alone_take_no_memory_and_little_time():
    with torch.device("meta"):
        Qwen2(ModelConfig(num_hidden_layers=1))
        start = time.process_time()
        model = Qwen2(
            ModelConfig(
                hidden_size=1 << 14, num_attention_heads=128, num_hidden_layers=100, vocab_size=1 << 20
            )
        )
    assert time.process_time() - start < 2 and all(p.is_meta for p in model.parameters())
    assert model.state_dict().keys() >= {"lm_head.weight", "model.layers.99.mlp.up_proj.weight"}


def test_a_checkpoint_is_read_without_torchs_compiler(tmp_path):
    """Which takes as long to import as torch itself, and which no evaluation needs."""
    lines = f"""
        import sys, torch
        from checkpoint import load_checkpoint, save_checkpoint
        from model import ModelConfig, Qwen2
        from tokenizer import train_bpe
        tokenizer = train_bpe(["a b"], 270)
        save_checkpoint({str(tmp_path / "it")!r}, Qwen2(ModelConfig(tokenizer.vocab_size, 8, 8, 1, 1, 1)), tokenizer, {{}}, {{}})
        load_checkpoint({str(tmp_path / "it")!r}, torch.device("cpu"))
        print("torch._dynamo" in sys.modules)"""
    command = [sys.executable, "-c", textwrap.dedent(lines)]
    out = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert out.stdout == "False\n", out.stderr


def test_loss_with_and_without_logits():
    torch.manual_seed(0)
    model = randomise(Qwen2(ModelConfig(97, 64, 112, 2, 4, 2, 256)))
    tokens, targets = torch.randint(0, 97, (2, 20)), torch.randint(0, 97, (2, 20))
    targets[:, ::3] = -100
    logits, loss = model(tokens, targets=targets)
    assert logits.shape == (2, 20, 97)
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    )
    none, same = model(tokens, targets=targets, loss_only=True)
    assert none is None
    torch.testing.assert_close(same, loss)
