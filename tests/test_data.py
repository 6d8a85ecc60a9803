import dataclasses
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from test_model import randomise

import cli
import data
import datagen
from data import Mixture, Source, batches
from model import ModelConfig, Qwen2
from tokenizer import train_bpe

MIXTURE = Mixture.parse("op 2-10:3, 11-14:1; template zoo:0.9, school:0.1; mode forward, reverse; tokens 1M")


def tokenizer():
    problems = (datagen.generate(1, i, op=2 + i % 9, mode=datagen.MODES[i % 2], template=list(datagen.TEMPLATES)[i % 3]) for i in range(300))
    return train_bpe((data.prompt_text(p) + data.completion_text(p) for p in problems), 600)


TOKENIZER = tokenizer()


def test_mixture_weights_are_normalised_and_drawn():
    ops = dict(MIXTURE.ops)
    assert sum(ops.values()) == pytest.approx(1) and ops[2] == pytest.approx(0.75 / 9) and ops[14] == pytest.approx(0.25 / 4)
    assert dict(MIXTURE.templates) == {"zoo": pytest.approx(0.9), "school": pytest.approx(0.1)} and MIXTURE.tokens == 1_000_000
    rand = np.random.default_rng(0).random
    drawn = [MIXTURE.arguments(rand) for _ in range(4000)]
    assert sum(a["op"] > 10 for a in drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    assert sum(a["template"] == "school" for a in drawn) / 4000 == pytest.approx(0.1, abs=0.02)
    assert sum(a["mode"] == "reverse" for a in drawn) / 4000 == pytest.approx(0.5, abs=0.03)
    knobs = Mixture.parse("op 5; distractors 2-3; literals 1-9; bound 99; degree 3; operators +-; letters ordered; layers 3").arguments(rand)
    assert knobs == {"op": 5, "template": "zoo", "mode": "forward", "layers": 3, "min_distractors": 2, "max_distractors": 3, "min_literal": 1,
                     "max_literal": 9, "bound": 99, "max_in_degree": 3, "operators": "+-", "letters": "ordered"}  # fmt: skip


@pytest.mark.parametrize("spec", [
    "", "template zoo", "op", "op 1-5", "op 5-2", "op 2-21", "op 2:x", "op 2:-1", "op 2:0", "op 2; op 3", "op 2; template farm", "op 2; mode sideways",
    "op 2; layers 4", "op 2; tokens lots", "op 2; tokens 0", "op 2; distractors 5", "op 2; bound 3", "op 2; colour red", "op 2; letters greek",
    "op ٢", "op 2; operators -",
])  # fmt: skip
def test_invalid_mixtures_are_user_errors(spec):
    with pytest.raises(cli.UserError) as error:
        Mixture.parse(spec)
    assert "\n" not in str(error.value)


def test_counts():
    assert [data.parse_count(t) for t in ("7", "500k", "6M", "1.5B")] == [7, 500_000, 6_000_000, 1_500_000_000]


@pytest.mark.parametrize("rows, row_tokens, mixture", [(4, 2048, MIXTURE), (1, 1536, Mixture.parse("op 2-4; distractors 1-3"))])
def test_rows_hold_whole_documents_and_little_padding(rows, row_tokens, mixture):
    source = Source(mixture, TOKENIZER, 0, rows, row_tokens)
    padding, documents = 0, set()
    for batch in islice(batches(source), 40):
        assert batch.tokens.shape == (rows, row_tokens)
        padding += (batch.tokens == TOKENIZER.pad_id).mean() / 40
        for row in range(rows):
            starts = np.flatnonzero(batch.doc_start[row] == np.arange(row_tokens))
            for a, b in zip(starts, [*starts[1:], row_tokens]):
                ids, targets = batch.tokens[row, a:b], batch.targets[row, a:b]
                assert (batch.doc_start[row, a:b] == a).all()
                if ids[0] == TOKENIZER.pad_id:
                    assert (ids == TOKENIZER.pad_id).all() and (targets == data.IGNORE).all() and b == row_tokens
                    continue
                assert ids[0] == TOKENIZER.bos_id and ids[-1] == TOKENIZER.eos_id
                assert (targets[:-1] == ids[1:]).all() and targets[-1] == data.IGNORE
                documents.add(TOKENIZER.decode(ids.tolist()))
    assert padding < 0.03 and len(documents) > 200


def test_batch_is_a_function_of_seed_and_step_not_of_workers():
    source = Source(MIXTURE, TOKENIZER, 3, 2, 2048)
    plain = list(islice(batches(source), 20))
    for first, workers in ((0, 2), (13, 0), (13, 1)):
        for a, b in zip(plain[first:], batches(source, first, workers)):
            assert all((x == y).all() for x, y in zip(a, b))
    other = next(batches(Source(MIXTURE, TOKENIZER, 4, 2, 2048)))
    assert (other.tokens != plain[0].tokens).any()


def test_solution_only_trains_on_what_follows_the_prompt():
    source = Source(MIXTURE, TOKENIZER, 0, 1, 2048, solution_only=True)
    batch = next(batches(source))
    trained = next(TOKENIZER.decode(batch.targets[0][m].tolist()) for m in [batch.targets[0] != data.IGNORE])
    assert trained.count("</answer>[EOS]") == (batch.tokens == TOKENIZER.eos_id).sum()
    assert "<question>" not in trained and "<solution>" not in trained


def test_changing_one_document_changes_no_other_documents_loss():
    torch.manual_seed(0)
    model = randomise(Qwen2(ModelConfig(TOKENIZER.vocab_size, 32, 64, 2, 2, 1, 2048)))
    problems = [datagen.generate(1, i, op=3) for i in range(6)]
    documents = [data.encode(TOKENIZER, p) for p in problems]
    places, rows = data.place([len(ids) for ids, _ in documents], 512)

    def losses(documents):
        batch = data.fill(documents, places, rows, 512, TOKENIZER.pad_id)
        tokens, targets, doc_start = (torch.from_numpy(a).long() for a in batch)
        logp = torch.log_softmax(model(tokens, doc_start)[0], -1).gather(-1, targets.clamp(min=0)[..., None])[..., 0] * (targets >= 0)
        return [float(logp[row, start : start + len(ids)].sum()) for (row, start), (ids, _) in zip(places, documents)]

    before = losses(documents)
    ids, prompt = documents[2]
    documents[2] = ([ids[0], *reversed(ids[1:-1]), ids[-1]], prompt)
    after = losses(documents)
    assert [a == pytest.approx(b, abs=1e-4) for a, b in zip(before, after)] == [True, True, False, True, True, True]


def test_placing_leaves_nothing_out_when_rows_are_free():
    lengths = [5, 9, 3, 3, 10, 1, 7]
    places, rows = data.place(lengths, 10)
    used = set()
    for (row, start), n in zip(places, lengths):
        span = {(row, start + i) for i in range(n)}
        assert start + n <= 10 and not used & span
        used |= span
    assert rows == 4  # 38 tokens in rows of 10
    assert data.place(lengths, 10, 1)[0].count(None) == len(lengths) - 1


def test_replay_share():
    school = Mixture.parse("op 2; template school")
    source = Source(Mixture.parse("op 2; template zoo"), TOKENIZER, 0, 1, 2048, replay=school, replay_share=0.25)
    texts = [TOKENIZER.decode(ids) for ids, _ in islice(source.documents(0), 600)]
    assert sum("School" in t for t in texts) / 600 == pytest.approx(0.25, abs=0.06)


def test_external_records(tmp_path):
    path = tmp_path / "r.jsonl"
    shared = Path(__file__).parents[2] / "shared" / "gsm_infinite" / "sample.jsonl"
    if shared.exists():
        records = data.read_records(shared)
        assert len(records) == 570
        assert data.completion_text(records[0]).endswith(" </answer>[EOS]") and "Answer:" not in data.completion_text(records[0])
    good = json.dumps(datagen.to_record(datagen.generate(0, 0, op=3)))
    for text, said in ((good + "\n{", "line 2"), (good + '\n{"problem": "x"}', "line 2"), ("[1]", "line 1"), ("", "no records"),
                       (good.replace("Answer:", "Reply:"), "line 1")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(cli.UserError, match=said):
            data.read_records(path)
    path.write_text(good)
    source = Source(None, TOKENIZER, 0, 1, 512, records=tuple(data.read_records(path)))
    assert next(batches(source)).tokens.shape == (1, 512)
    with pytest.raises(cli.UserError, match="row"):
        next(batches(Source(MIXTURE, TOKENIZER, 0, 1, 64)))


def test_splits_share_no_problem_and_the_audit_would_see_it(monkeypatch):
    mixture = Mixture.parse("op 2-6; template zoo, school; mode forward, reverse")
    for counts in data.audit(mixture, 1500).values():
        assert counts["exact"] == counts["canonical"] == 0
    everything = {split: tuple(range(8)) for split in datagen.SPLITS}
    monkeypatch.setattr(datagen, "SPLITS", everything)
    one = Mixture.parse("op 2; distractors 0-0; literals 1-2; bound 16")  # few different problems: without buckets the splits must meet
    assert all(counts["exact"] and counts["canonical"] >= counts["exact"] for counts in data.audit(one, 1500).values())


def test_structure_does_not_depend_on_words():
    for i in range(50):
        graph = datagen.generate(2, i, op=7, mode=datagen.MODES[i % 2]).graph
        assert len({data.structure(datagen.render(graph, template)) for template in datagen.TEMPLATES}) == 1
    assert len({data.structure(datagen.generate(2, i, op=9)) for i in range(200)}) > 195


def test_a_dead_worker_is_one_line():
    source = Source(MIXTURE, TOKENIZER, 0, 2, 2048)
    stream = batches(source, workers=1)
    next(stream)
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(cli.UserError, match="--workers 0"):
        for _ in range(1000):
            next(stream)


@pytest.mark.parametrize("rows, row_tokens, chunks", [(2, 512, 1), (64, 2048, 4), (48, 2048, 3)])
def test_the_shares_of_processes_make_the_batch(rows, row_tokens, chunks):
    mixture = Mixture.parse("op 2-3; distractors 1-2")
    whole = Source(mixture, TOKENIZER, 3, rows, row_tokens)
    assert whole.chunks_per_batch == chunks
    for size in (2, 4):
        if rows % size:
            continue
        streams = [islice(batches(Source(mixture, TOKENIZER, 3, rows, row_tokens, rank=rank, size=size), step=5), 3) for rank in range(size)]
        for batch, *parts in zip(islice(batches(whole, step=5), 3), *streams):
            for a, shares in zip(batch, zip(*parts)):
                assert a.shape == (rows, row_tokens) and np.array_equal(a, np.concatenate(shares))


def test_the_audit_sees_a_problem_whose_statements_are_reordered(monkeypatch):
    p = datagen.generate(4, 0, op=4)
    turned = " ".join(reversed(datagen.statements_of(p.problem)))
    assert turned != p.problem and datagen.split_of(p) == "train"
    told = {"train": p, "mid": dataclasses.replace(p, problem=turned)}
    monkeypatch.setattr(datagen, "SPLITS", told)
    monkeypatch.setattr(datagen, "generate", lambda seed, i, split, **k: told[split])
    assert data.audit(Mixture.parse("op 4"), 1)["train", "mid"] == {"exact": 0, "canonical": 1, "structural": 0}
