"""The Hugging Face folder against transformers and tokenizers themselves, and back."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from functools import cache
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
from verify import verify

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


@cache
def texts_of_all_kinds():
    texts = []
    for i in range(10_000):
        op, mode, template, layers = KINDS[i % len(KINDS)]
        p = datagen.generate(9, i, op=op, mode=mode, template=template, layers=layers)
        texts.append(data.prompt_text(p) + data.completion_text(p))
    return texts


def test_token_ids_of_10000_texts(theirs):
    texts = texts_of_all_kinds()
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_transformers_writes_of_ours_comes_back(tmp_path, tied, dtype):
    """After somebody trained it there, say: in several files, in bfloat16, with a head of its own."""
    torch.manual_seed(1)
    config = ModelConfig(TOKENIZER.vocab_size, 64, 128, 3, 4, 2, 2048, tie_word_embeddings=tied)
    model = randomise(Qwen2(config), 0.15)
    common.save_checkpoint(tmp_path / "ckpt", model, TOKENIZER, {}, {"step": 7})
    ok("--ckpt", tmp_path / "ckpt", "--out", tmp_path / "hf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=dtype)
    assert (peer.lm_head.weight is peer.model.embed_tokens.weight) == tied
    peer.save_pretrained(tmp_path / "back", max_shard_size="100KB")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "back")
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 1 and (tmp_path / "back" / "model.safetensors.index.json").exists()
    ok("--import", "--ckpt", tmp_path / "back", "--out", tmp_path / "again")
    again = common.load_checkpoint(tmp_path / "again", CPU)
    assert again.tokenizer.hash == TOKENIZER.hash and again.model.config.tie_word_embeddings == tied
    for key, value in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value.to(dtype).float()), key
    files[1].unlink()
    message = refused("--import", "--ckpt", tmp_path / "back", "--out", tmp_path / "half")
    assert "has shape None" in message or "layers" in message


def test_what_others_decode_can_be_judged(theirs):
    """They leave out special tokens: the tags of the answer are none of these."""
    text = data.completion_text(PROBLEMS[0])
    ids = theirs[1](data.prompt_text(PROBLEMS[0]) + text)["input_ids"]
    decoded = theirs[1].decode(ids, skip_special_tokens=True)
    assert decoded.endswith(text.removesuffix("[EOS]")) and decoded.startswith("<question> ")
    assert verify(decoded.partition("<solution>")[2], PROBLEMS[0]).faithful


def records_of(path, problems):
    path.write_text("".join(json.dumps(datagen.to_record(p)) + "\n" for p in problems))
    return path


def test_a_task_for_lm_evaluation_harness(tmp_path):
    """Its files, without the harness: the prompt is ours, and the judge is ours, wherever it is called from."""
    problems = PROBLEMS[40:44] + [datagen.generate(1, 0, op=5, mode="reverse")]
    ok("--lm-eval", records_of(tmp_path / "records.jsonl", problems), "--out", tmp_path / "task")
    lines = [json.loads(line) for line in (tmp_path / "task" / "problems.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [data.prompt_text(p) for p in problems]
    script = """import json, re, judge
for line in open("problems.jsonl"):
    doc = json.loads(line)
    solution = json.loads(doc["record"])["solution"]
    first = re.search("Define [^.]* as (.);[^.]*[.]", solution)
    again = solution.replace(first[0], f"{first[0]} <backtrack> {first[1]}. {first[0]}", 1)
    print(*(judge.judge(doc, [text]) for text in (solution, again, "Answer: 1000.")))"""
    how = dict(cwd=tmp_path / "task", capture_output=True, text=True)
    out = subprocess.run([sys.executable, "-c", script], **how)
    right, wrong = (str(dict.fromkeys(export_hf.METRICS, value)) for value in (1.0, 0.0))
    assert out.stdout.splitlines() == [f"{right} {right} {wrong}"] * 5, out.stderr
    (tmp_path / "texts.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert "texts.jsonl, line 1: key 'question' is missing" in refused(
        "--lm-eval", tmp_path / "texts.jsonl", "--out", tmp_path / "x"
    )
    assert "give one of them" in refused("--lm-eval", "a", "--ckpt", "b", "--out", tmp_path / "x")
    odd = {"problem": "a", "question": "b", "solution": "Answer: 1.", "nodes": [1], "answer": 1}
    (tmp_path / "odd.jsonl").write_text(json.dumps(odd))
    told = refused("--lm-eval", tmp_path / "odd.jsonl", "--out", tmp_path / "x")
    assert "odd.jsonl, line 1: item 1 of its `nodes`" in told and not (tmp_path / "x").exists()
    assert not (tmp_path / "x").exists()


def test_a_task_of_problems_with_an_answer_alone(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"question": "What is 3 + 4?", "answer": "3 + 4 = 7\\n#### 7"}\n')
    ok("--lm-eval", tmp_path / "own.jsonl", "--out", tmp_path / "task")
    line = json.loads((tmp_path / "task" / "problems.jsonl").read_text())
    judge = runpy.run_path(str(tmp_path / "task" / "judge.py"))["judge"]
    for answer, right in ((7, 1.0), (8, 0.0)):
        judged = judge(line, [f"</solution> <answer> {answer} </answer>"])
        assert judged == {"correct": right, "answer": right, "faithful": 0.0, "process": 0.0}
    assert line["prompt"] == "[BOS]<question> What is 3 + 4? </question> <solution>"


@pytest.mark.slow
def test_lm_evaluation_harness_counts_what_we_count(exported, tmp_path):
    """`pip install lm-eval`; as a command, for our evaluate.py has the name of a package that it needs."""
    pytest.importorskip("lm_eval")
    problems, limit = PROBLEMS[:6], 40
    ok("--lm-eval", records_of(tmp_path / "records.jsonl", problems), "--out", tmp_path / "task")
    words = [
        "--model",
        "hf",
        "--model_args",
        f"pretrained={exported[1]}",
        "--device",
        "cpu",
        "--batch_size",
        "2",
    ]
    words += [
        "--tasks",
        "reasoning_lab",
        "--include_path",
        tmp_path / "task",
        "--gen_kwargs",
        f"max_gen_toks={limit}",
    ]
    words += ["--output_path", tmp_path / "out", "--log_samples"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    out = subprocess.run(
        [sys.executable, "-m", "lm_eval", *map(str, words)], cwd=tmp_path, env=offline, capture_output=True, text=True)  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())["results"][
        "reasoning_lab"
    ]
    samples = [
        json.loads(line) for line in next((tmp_path / "out").rglob("samples*.jsonl")).read_text().splitlines()
    ]
    prompts = [TOKENIZER.encode(data.prompt_text(p)) for p in problems]
    ours = sampler.generate(
        exported[0].model, prompts, max_new_tokens=limit, temperature=0, stop_id=TOKENIZER.eos_id
    )
    texts = [TOKENIZER.decode(ids).replace("[EOS]", "") for ids in ours.ids]
    special = re.compile(r"\[(?:PAD|UNK|BOS|EOS)\]")
    found = [sample["resps"][0][0] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    assert found == [special.sub("", text) for text in texts]
    for name in export_hf.METRICS:
        assert f"{name},none" in results


@pytest.mark.slow
def test_two_steps_of_trl_with_our_judge_as_reward(exported, tmp_path):
    """`pip install trl`. The prompts and the judge are ours, the trainer and what it samples are theirs."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = [{"prompt": data.prompt_text(p), "record": json.dumps(datagen.to_record(p))} for p in PROBLEMS[:8]]
    seen = []

    def judged(completions, record, **more):
        verdicts = [verify(text, json.loads(gold)) for text, gold in zip(completions, record)]
        seen.extend(completions)
        return [1 / (1 + len(verdict.errors)) + verdict.process for verdict in verdicts]

    config = trl.GRPOConfig(
        output_dir=str(tmp_path / "trl"), max_steps=2, num_generations=4, per_device_train_batch_size=8,
        max_completion_length=24, learning_rate=1e-3, report_to=[], save_strategy="no", use_cpu=True, bf16=False)  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported[1], dtype=torch.float32)
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    trainer = trl.GRPOTrainer(
        theirs, judged, config, datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(exported[1]))  # fmt: skip
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert trainer.state.global_step == 2 and len(seen) == 16 and rewards
    assert any(not torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
    theirs.save_pretrained(tmp_path / "hf")
    transformers.AutoTokenizer.from_pretrained(exported[1]).save_pretrained(tmp_path / "hf")
    ok("--import", "--ckpt", tmp_path / "hf", "--out", tmp_path / "back")
    back = common.load_checkpoint(tmp_path / "back", CPU).model.state_dict()
    assert all(torch.equal(back[name], value) for name, value in theirs.state_dict().items())


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
