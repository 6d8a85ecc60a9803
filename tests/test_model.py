import shutil

import pytest
import torch

import cli
import common
from attention import attention, document_layout, document_mask, reference
from model import ModelConfig, Qwen2

SMALL = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "max_position_embeddings": 256}


def randomise(model, std=None):
    """Weights of a trained model's kind: a fresh one adds nothing in its layers."""
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name), std=0.3 if p.ndim == 1 else std or model.config.hidden_size**-0.5)
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
    q, k, v, g = (torch.randn(B, T, h, D, dtype=torch.float64, requires_grad=i < 3) for i, h in enumerate((heads, kv, kv, heads)))
    expected = reference(q, k, v, doc_start)
    want = torch.autograd.grad(expected, (q, k, v), g)
    q32, k32, v32 = (x.detach().float().requires_grad_() for x in (q, k, v))
    for layout in (document_layout(doc_start), document_mask(doc_start)):  # the CPU's way and the GPU's
        got = attention(q32, k32, v32, layout=layout)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(torch.autograd.grad(got, (q32, k32, v32), g.float()), want):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention(q32, k32, v32, doc_start), attention(q32, k32, v32, layout=document_mask(doc_start)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attention(q32, k32, v32).double(), reference(q, k, v), rtol=1e-5, atol=1e-5)


def test_reference_by_hand():
    """One head, one dimension, three tokens; the third begins a document."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).view(1, 3, 1, 1) for x in ([1.0, 2.0, 3.0], [0.5, -1.0, 4.0], [10.0, 20.0, 30.0]))
    e0, e1 = torch.exp(torch.tensor([2 * 0.5, 2 * -1.0], dtype=torch.float64))
    want = [10.0, float((10 * e0 + 20 * e1) / (e0 + e1)), 30.0]
    got = reference(q, k, v, torch.tensor([[0, 0, 2]])).flatten().tolist()
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


@pytest.mark.parametrize("heads, kv, tie, theta", [(4, 2, True, 1e4), (4, 1, False, 1e4), (8, 8, True, 1e6), (4, 2, False, 500.0)])
def test_logits_equal_transformers(heads, kv, tie, theta):
    torch.manual_seed(1)
    config = ModelConfig(**SMALL, num_attention_heads=heads, num_key_value_heads=kv, tie_word_embeddings=tie, rope_theta=theta)
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


@pytest.mark.parametrize("bad", [{"hidden_size": 65}, {"num_key_value_heads": 3}, {"num_hidden_layers": 0}, {"hidden_size": 12}])
def test_impossible_models_are_user_errors(bad):
    with pytest.raises(cli.UserError):
        ModelConfig(**{**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, **bad})


def test_a_fresh_model_is_its_embedding_until_layers_learn():
    model = Qwen2(ModelConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2))
    tokens = torch.randint(97, (1, 9))
    want = model.model.norm(model.model.embed_tokens(tokens)) @ model.lm_head.weight.T
    torch.testing.assert_close(model(tokens)[0], want)


def test_local_heads_look_as_far_back_as_they_say():
    from model import rotary, rotate

    model = Qwen2(ModelConfig(**{**SMALL, "hidden_size": 128}, num_attention_heads=4, num_key_value_heads=2))
    model.look_nearby(spacing=2)
    attention_layer = model.model.layers[0].self_attn
    cos, sin = rotary(torch.arange(40)[None], 32, 1e4)
    k = rotate(attention_layer.k_proj.bias.view(1, 1, 2, 32).expand(1, 40, 2, 32), cos, sin)[0, :, 0]
    for h in range(4):
        q = rotate(attention_layer.q_proj.bias.view(1, 1, 4, 32)[:, :, h : h + 1].expand(1, 40, 1, 32), cos, sin)[0, -1, 0]
        weights = torch.softmax(k @ q / 32**0.5, 0)
        assert 39 - int(weights.argmax()) == 2 * (h + 1) and weights.max() > 0.4


def test_the_three_ways_give_the_same_logits(monkeypatch):
    """Of the whole model, packed and cached: sdpa, the reference, and, where Triton's interpreter can run them, the kernels."""
    import attention as module
    import sampler

    torch.manual_seed(0)
    model = randomise(Qwen2(ModelConfig(97, 64, 112, 2, 4, 2, 256))).eval()
    tokens, doc_start = torch.randint(0, 97, (2, 40)), torch.cat((starts([7, 20, 13]), starts([40])))
    ways = ["sdpa", "reference"]
    if not torch.cuda.is_available():
        ways += ["triton"] if pytest.importorskip("triton") else []
    out = []
    for way in ways:
        monkeypatch.setattr(module, "_backend", way)
        with torch.no_grad():
            logits = model(tokens, doc_start)[0], model(tokens)[0]
        out.append((*logits, sampler.generate(model, [[5, 6, 7], [8, 9]], group_size=2, max_new_tokens=6, stop_id=3)))
    for other in out[1:]:
        torch.testing.assert_close(other[0], out[0][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other[1], out[0][1], atol=1e-4, rtol=1e-4)
        assert other[2].ids == out[0][2].ids


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


def test_which_precision_is_chosen():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert common.compute_dtype("auto", cpu) == common.compute_dtype("auto", torch.device("mps")) == torch.float32
    assert common.compute_dtype("auto", gpu) == torch.bfloat16 == common.compute_dtype("bfloat16", cpu)


def test_compiled_layers_are_the_same_layers(monkeypatch):
    """Once for all layers and document layouts: logits, gradients, keys; and a copy of a compiled model works."""
    import copy

    import attention as module

    monkeypatch.setattr(module, "_backend", "reference")  # whose layout is a tensor, as on a GPU
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = randomise(Qwen2(ModelConfig(97, 32, 48, 3, 2, 1, 64)))
    compiled = copy.deepcopy(model)
    compiled.compile_layers()
    for lengths in ([7, 20, 13], [40], [1] * 40):
        tokens, doc_start = torch.randint(0, 97, (1, 40)), starts(lengths)
        (a, loss), (b, same) = (m(tokens, doc_start, tokens) for m in (model, compiled))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        for one, two in zip(torch.autograd.grad(loss, list(model.parameters())), torch.autograd.grad(same, list(compiled.parameters()))):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    assert model.state_dict().keys() == compiled.state_dict().keys()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 and not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(copy.deepcopy(compiled)(tokens, doc_start)[0], b, atol=1e-5, rtol=1e-5)


def test_a_way_that_cannot_be_had_is_a_user_error():
    from attention import choose

    with pytest.raises(cli.UserError, match="CUDA"):
        choose("triton", torch.device("cpu"))


def test_loss_with_and_without_logits():
    torch.manual_seed(0)
    model = randomise(Qwen2(ModelConfig(97, 64, 112, 2, 4, 2, 256)))
    tokens, targets = torch.randint(0, 97, (2, 20)), torch.randint(0, 97, (2, 20))
    targets[:, ::3] = -100
    logits, loss = model(tokens, targets=targets)
    assert logits.shape == (2, 20, 97)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    none, same = model(tokens, targets=targets, loss_only=True)
    assert none is None
    torch.testing.assert_close(same, loss)
