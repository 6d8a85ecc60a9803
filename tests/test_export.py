"""The Hugging Face folder against transformers and tokenizers themselves, and back."""

import json
import re
import shutil
import time
from itertools import product

from lab.options import UserError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import randomise

import checkpoint as common
import data
import datagen
import export_hf
import sampler
from model import ModelConfig, Qwen2
from tokenizer import train_bpe

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
CPU = torch.device("cpu")
KINDS = list(product(range(2, 21), datagen.MODES, datagen.TEMPLATES, (2, 3)))
PROBLEMS = [
    datagen.generate(8, i, op=op, mode=m, template=t, layers=n) for i, (op, m, t, n) in enumerate(KINDS)
]
TOKENIZER = train_bpe([data.prompt_text(p) + data.completion_text(p) for p in PROBLEMS], 700)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def exported(request, tmp_path_factory):
    """(our checkpoint, the exported folder) of a model with grouped queries."""
    path = tmp_path_factory.mktemp("hf")
    torch.manual_seed(3)
    model = randomise(
        Qwen2(ModelConfig(TOKENIZER.vocab_size, 64, 128, 3, 4, 2, 2048, tie_word_embeddings=request.param)),
        0.15,
    )
    common.save_checkpoint(
        path / "ckpt", model, TOKENIZER, {"preset": "tiny", "lr": 0.1}, {"step": 7, "nll": {"2": 0.5}}
    )
    ok("--ckpt", path / "ckpt", "--out", path / "hf")
    return common.load_checkpoint(path / "ckpt", CPU), path / "hf"


def ok(*arguments):
    export_hf.main(list(map(str, arguments)))


def refused(*arguments):
    """The message of a command that must be refused, one line."""
    with pytest.raises(UserError) as error:
        ok(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def theirs(exported):
    folder = exported[1]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    ).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_logits(exported, theirs):
    assert type(theirs[0]).__name__ == "Qwen2ForCausalLM"
    tokens = torch.randint(0, TOKENIZER.vocab_size, (3, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            exported[0].model(tokens)[0], theirs[0](tokens).logits, atol=1e-4, rtol=1e-4
        )


def test_greedy_generations_of_100_prompts(exported, theirs):
    prompts = [TOKENIZER.encode(data.prompt_text(p)) for p in PROBLEMS[:100]]
    ours = sampler.generate(
        exported[0].model, prompts, max_new_tokens=12, temperature=0, stop_id=TOKENIZER.eos_id
    )
    for prompt, ids in zip(prompts, ours.ids):
        out = (
            theirs[0]
            .generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12)[0]
            .tolist()
        )
        assert out[len(prompt) :] == ids


def test_token_ids_of_10000_texts(theirs):
    texts = []
    for i in range(10_000):
        op, mode, template, layers = KINDS[i % len(KINDS)]
        p = datagen.generate(9, i, op=op, mode=mode, template=template, layers=layers)
        texts.append(data.prompt_text(p) + data.completion_text(p))
    assert theirs[1](texts)["input_ids"] == [TOKENIZER.encode(t) for t in texts]
    assert theirs[1].batch_decode(theirs[1](texts[:50])["input_ids"]) == texts[:50]
    names = ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id")
    special_ids = [TOKENIZER.special_ids[name] for name in ("[PAD]", "[UNK]", "[BOS]", "[EOS]")]
    assert [getattr(theirs[1], name) for name in names] == special_ids


def test_token_ids_of_random_unicode(theirs):
    @settings(max_examples=500, deadline=None, derandomize=True)
    @given(st.text())
    def same(text):
        ids = theirs[1](text)["input_ids"]
        assert ids == TOKENIZER.encode(text) and theirs[1].decode(ids) == text

    same()


def test_import_is_the_inverse_of_export(exported, tmp_path):
    checkpoint, folder = exported
    ok("--import", "--ckpt", folder, "--out", tmp_path / "ckpt")
    back = common.load_checkpoint(tmp_path / "ckpt", CPU)
    assert (
        back.options == checkpoint.options
        and back.model.config == checkpoint.model.config
        and back.tokenizer.hash == checkpoint.tokenizer.hash
    )
    for key, value in checkpoint.model.state_dict().items():
        assert torch.equal(value, back.model.state_dict()[key])
    ok("--ckpt", tmp_path / "ckpt", "--out", tmp_path / "hf")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "hf" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_that_transformers_made(tmp_path, tied):
    config = transformers.Qwen2Config(
        vocab_size=800,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        rope_theta=50000.0,
    )
    torch.manual_seed(0)
    peer = transformers.Qwen2ForCausalLM(config).eval()
    for name, p in peer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p)
    peer.save_pretrained(tmp_path / "hf")
    TOKENIZER.save(tmp_path / "tokenizer.json")
    ok(
        "--import",
        "--ckpt",
        tmp_path / "hf",
        "--tokenizer",
        tmp_path / "tokenizer.json",
        "--out",
        tmp_path / "ckpt",
    )
    model = common.load_checkpoint(tmp_path / "ckpt", CPU).model
    tokens = torch.randint(0, 800, (2, 300))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], peer(tokens).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="--tokenizer"):
        export_hf.import_(tmp_path / "hf", None)


def test_import_never_deletes_what_the_folder_held(exported, tmp_path):
    """Issue 10, point 17."""
    _, folder = exported
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for held in ("thesis", "file"):
        before = contents(tmp_path)
        assert "not empty" in refused("--import", "--ckpt", folder, "--out", tmp_path / held)
        assert contents(tmp_path) == before and before
    ok("--import", "--ckpt", folder, "--out", tmp_path / "ckpt")
    assert "not empty" in refused("--import", "--ckpt", folder, "--out", tmp_path / "ckpt")
    common.save_checkpoint(tmp_path / "step", exported[0].model, TOKENIZER, {}, {"step": 1})
    assert "not empty" in refused(
        "--import", "--ckpt", folder, "--out", tmp_path / "step"
    )  # a run's checkpoint
    assert "inside" in refused("--import", "--ckpt", folder, "--out", folder / "ckpt")


def test_export_writes_into_no_checkpoint_and_no_foreign_folder(exported, tmp_path):
    """Issue 10, point 17: --ckpt R/latest --out R/latest."""
    run = tmp_path / "run"
    common.save_checkpoint(run / "step_0000007", exported[0].model, TOKENIZER, {}, {"step": 7})
    (run / "latest").symlink_to("step_0000007")
    before = contents(tmp_path)
    for out in (
        run / "latest",
        run / "step_0000007",
        run / "latest" / "hf",
        run / "step_0000007" / "a" / "hf",
    ):
        assert "inside" in refused("--ckpt", run / "latest", "--out", out)
    for out in (run, tmp_path):
        assert "not empty" in refused("--ckpt", run / "latest", "--out", out)
    assert contents(tmp_path) == before
    ok("--ckpt", run / "latest", "--out", tmp_path / "hf")
    assert "not empty" in refused("--ckpt", run / "latest", "--out", tmp_path / "hf")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_hidden_layers": 100_000}, "100000 layers"),
        ({"num_hidden_layers": 10**12}, "layers"),
        ({"vocab_size": 10**12}, "weight has shape"),
        ({"intermediate_size": 10**14}, "mlp.down_proj.weight has shape"),
        ({"hidden_size": 2**40}, "overflow|has shape"),
        ({"hidden_size": 2**20}, "has shape"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hidden_size": "64"}, "hidden_size|TypeError"),
        ({"rms_norm_eps": "small"}, ""),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"reasoning_lab": []}, ""),
    ],
)
def test_a_config_that_the_weights_contradict_is_refused_at_once(exported, tmp_path, change, words):
    """Issue 10, point 18: nothing is allocated before the shapes agree."""
    folder = shutil.copytree(exported[1], tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    started = time.process_time()
    message = refused("--import", "--ckpt", folder, "--out", tmp_path / "ckpt")
    assert re.search(words, message) and str(folder) in message and not (tmp_path / "ckpt").exists()
    assert time.process_time() - started < 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(exported, tmp_path, value):
    """Issue 10, point 18: a single one, wherever it is."""
    folder = shutil.copytree(exported[1], tmp_path / "hf")
    weights = safetensors.load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    safetensors.save_file(weights, folder / "model.safetensors")
    message = refused("--import", "--ckpt", folder, "--out", tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()
    assert "layers.1.mlp.up_proj.weight" in message and "not finite" in message


@pytest.mark.parametrize(
    "results", ["{", "[]", "3", '{"results": {"base": {"band": {"id": {}}}}, "options": {}}']
)
def test_foreign_results_are_one_line(exported, tmp_path, results):
    (tmp_path / "results.json").write_text(results)
    checkpoint = exported[0].path
    refused("--ckpt", checkpoint, "--out", tmp_path / "hf", "--results", tmp_path / "results.json")
    assert not (tmp_path / "hf").exists()


def test_what_cannot_be_imported_is_one_line(tmp_path):
    for content in (None, "{", json.dumps({"model_type": "llama"}), json.dumps({"model_type": "qwen2"})):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError) as error:
            export_hf.import_(tmp_path, None)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_the_model_card_names_recipe_and_results(exported, tmp_path):
    checkpoint, folder = exported
    card = (folder / "README.md").read_text()
    assert '"lr": 0.1' in card
    stats = {"correct@1": {"mean": 0.5, "low": 0.4, "high": 0.6}, "answer@1": {"mean": 0.75}}
    (tmp_path / "results.json").write_text(
        json.dumps({"options": {"samples": 8, "seed": 1}, "results": {"base": {"band": {"id": stats}}}})
    )
    export_hf.export(checkpoint, tmp_path / "hf", json.loads((tmp_path / "results.json").read_text()))
    assert "| base | id | 0.500 | 0.400 to 0.600 | 0.750 |" in (tmp_path / "hf" / "README.md").read_text()
