import dataclasses
import gc
import json
import multiprocessing
import signal
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

from lab.options import UserError
from lab.worker import worked_out

import numpy as np
import pytest
import torch
from test_model import randomise

import data
import datagen
from data import Document, Source, batches
from datagen import Mixture
from model import ModelConfig, Qwen2
from tasks import read_records
from tokenizer import train_bpe

MIXTURE = Mixture.parse("op 2-10:3, 11-14:1; template zoo:0.9, school:0.1; mode forward, reverse; tokens 1M")
TINY = Mixture.parse("op 2-4; distractors 2-4; literals 1-9; bound 99; letters ordered")


def make_tokenizer():
    kinds = Mixture.parse("op 2-10; template zoo, school, festival; mode forward, reverse")
    problems = (kinds.problem(1, i, "train") for i in range(300))
    return train_bpe((data.prompt_text(p) + data.completion_text(p) for p in problems), 600)


TOKENIZER = make_tokenizer()


def texts(batch):
    """The documents of a batch, decoded, row by row."""
    out = []
    for row in range(len(batch.tokens)):
        starts = np.flatnonzero(batch.doc_start[row] == np.arange(batch.tokens.shape[1]))
        for a, b in zip(starts, [*starts[1:], batch.tokens.shape[1]]):
            ids, targets = batch.tokens[row, a:b], batch.targets[row, a:b]
            assert (batch.doc_start[row, a:b] == a).all()
            if ids[0] == TOKENIZER.pad_id:
                assert (ids == TOKENIZER.pad_id).all() and (targets == data.IGNORE).all()
                assert b == batch.tokens.shape[1]
                continue
            assert ids[0] == TOKENIZER.bos_id and ids[-1] == TOKENIZER.eos_id
            assert (targets[:-1] == ids[1:]).all() and targets[-1] == data.IGNORE
            out.append(TOKENIZER.decode(ids.tolist()))
    return out


@pytest.mark.parametrize("rows, row_tokens, mixture", [(4, 2048, MIXTURE), (1, 1536, TINY)])
def test_rows_hold_whole_documents_and_little_padding(rows, row_tokens, mixture):
    source = Source(mixture, TOKENIZER, 0, rows, row_tokens)
    padding, documents = 0, set()
    for batch, _ in islice(batches(source), 40):
        assert batch.tokens.shape == (rows, row_tokens)
        assert batch.trained == (batch.targets != data.IGNORE).sum()
        padding += (batch.tokens == TOKENIZER.pad_id).mean() / 40
        documents |= set(texts(batch))
    assert padding < 0.03 and len(documents) > 200


@pytest.mark.parametrize("rows, mixture", [(1, TINY), (3, Mixture.parse("op 2-20; template zoo, school"))])
def test_what_is_drawn_is_trained_on_whatever_its_length(rows, mixture):
    """Every document of each lane is in a row or waits for one, none twice: op by op what is packed is what
    was drawn.
    """
    source, seen = Source(mixture, TOKENIZER, 0, rows, 1536), []
    for batch, after in islice(batches(source), 60):
        seen += texts(batch)
        cursors = after
    drawn, waiting = Counter(), Counter()
    for r, (following, *later) in enumerate(cursors):
        drawn.update(TOKENIZER.decode(source.document(r + i * rows).ids) for i in range(following))
        waiting.update(TOKENIZER.decode(source.document(r + i * rows).ids) for i in later)
        assert max(later) - min(later) < 4 * data.AHEAD  # nothing waits for ever
    assert Counter(seen) + waiting == drawn and len(seen) > 400
    op_of = {}
    for r, (following, *_) in enumerate(cursors):
        for i in range(following):
            record = source.record(r + i * rows)
            op_of[TOKENIZER.decode(source.document(r + i * rows).ids)] = record.op
    ops = [Counter(op_of[text] for text in some.elements()) for some in (Counter(seen), waiting, drawn)]
    assert ops[0] + ops[1] == ops[2] and set(ops[0]) == set(mixture.ops)


def test_batches_are_a_function_of_the_seed_and_go_on_from_a_cursor():
    source = Source(MIXTURE, TOKENIZER, 3, 2, 2048)
    plain = list(islice(batches(source), 20))
    for first, workers in ((0, 1), (13, 0), (13, 1)):
        cursors = plain[first - 1][1] if first else None
        again = batches(source, cursors=json.loads(json.dumps(cursors)), workers=workers)
        for (a, one), (b, two) in zip(plain[first:], again):
            assert (a.tokens == b.tokens).all() and (a.targets == b.targets).all() and one == two
            assert (a.doc_start == b.doc_start).all()
    other = next(batches(Source(MIXTURE, TOKENIZER, 4, 2, 2048)))[0]
    assert (other.tokens != plain[0][0].tokens).any()


@pytest.mark.parametrize("parts", [(range(0, 3), range(3, 6)), (range(0, 1), range(1, 2), range(2, 6))])
def test_the_parts_of_processes_make_the_batch(parts):
    source = Source(Mixture.parse("op 2-3; distractors 1-2"), TOKENIZER, 3, 6, 512)
    streams = [islice(batches(source, part), 4) for part in parts]
    for (batch, cursors), *shares in zip(islice(batches(source), 4), *streams):
        assert np.array_equal(batch.tokens, np.concatenate([share.tokens for share, _ in shares]))
        assert cursors == [cursor for _, some in shares for cursor in some]


def test_solution_only_trains_on_what_follows_the_prompt():
    batch, _ = next(batches(Source(MIXTURE, TOKENIZER, 0, 1, 2048, solution_only=True)))
    trained = TOKENIZER.decode(batch.targets[0][batch.targets[0] != data.IGNORE].tolist())
    assert trained.count("</answer>[EOS]") == (batch.tokens == TOKENIZER.eos_id).sum()
    assert "<question>" not in trained and "<solution>" not in trained


def test_pack_by_hand():
    documents = [Document([7] * n, [True] * n) for n in (5, 3, 2, 2)]
    batch = data.pack(documents, 6, 0)
    assert batch.tokens.tolist() == [[7, 7, 7, 7, 7, 0], [7, 7, 7, 7, 7, 0], [7, 7, 0, 0, 0, 0]]
    assert batch.doc_start.tolist() == [[0, 0, 0, 0, 0, 5], [0, 0, 0, 3, 3, 5], [0, 0, 2, 2, 2, 2]]
    with pytest.raises(UserError, match="--row-tokens"):
        data.pack(documents, 4, 0)


def test_a_mask_in_the_middle_and_values_stand_where_their_token_is_predicted():
    document = Document(
        [1, 2, 3, 4, 5], [True, True, False, False, True], {"old_logp": [0.0, -0.2, -0.3, -0.4, -0.5]}
    )
    plain = Document([8, 9], [False, True], {"old_logp": [0.0, -0.9]})
    batch = data.pack([document, plain], 8, 0)
    no = data.IGNORE
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 8, 9, 0]]
    assert batch.targets.tolist() == [[2, no, no, 5, no, 9, no, no]] and batch.trained == 3
    assert batch.values["old_logp"][0].tolist() == pytest.approx([-0.2, 0, 0, -0.5, 0, -0.9, 0, 0])


def test_micro_batches_are_the_batch():
    batch, _ = next(batches(Source(MIXTURE, TOKENIZER, 0, 5, 2048)))
    batch.targets[2:4] = data.IGNORE  # rows without a target are not computed
    parts = list(batch.micro_batches(2, torch.device("cpu")))
    assert [len(part.tokens) for part in parts] == [2, 1] and sum(p.trained for p in parts) == (
        batch.targets != data.IGNORE
    ).sum()
    T = int((batch.targets[:2] != data.IGNORE).nonzero()[1].max()) + 1  # what follows predicts nothing
    assert torch.equal(parts[0].tokens, torch.from_numpy(batch.tokens[:2, :T]))
    assert torch.equal(parts[0].doc_start, torch.from_numpy(batch.doc_start[:2, :T]))


def test_a_gpu_gets_micro_batches_of_one_shape(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking: x)
    batch, _ = next(batches(Source(MIXTURE, TOKENIZER, 0, 3, 2048)))
    first, last = batch.micro_batches(2, SimpleNamespace(type="cuda"))
    assert first.tokens.shape == last.tokens.shape == last.doc_start.shape == (2, 2048)
    assert torch.equal(last.targets[0], torch.from_numpy(batch.targets[2]))
    assert (last.targets[1] == data.IGNORE).all() and first.trained + last.trained == batch.trained


def test_a_prompt_stands_once_before_as_many_of_its_documents_as_a_row_holds():
    def document(n, token):
        return Document([token] * n, [False] + [True] * (n - 1), {"old_logp": [-1.0] * n}, goes_on=True)

    groups = [([7, 8, 9], [document(2, 1), document(2, 2), document(3, 3)]), ([], [document(2, 4)])]
    batch = data.pack_groups(groups, 8, 0)
    assert batch.tokens.tolist() == [[7, 8, 9, 1, 1, 2, 2, 0], [7, 8, 9, 3, 3, 3, 4, 4]]
    assert batch.doc_start.tolist() == [[0, 0, 0, 3, 3, 5, 5, 7], [0, 0, 0, 3, 3, 3, 6, 6]]
    start, end = batch.prompts
    assert not start[0].any() and end.tolist() == [[0, 0, 0, 3, 3, 3, 3, 0], [0, 0, 0, 3, 3, 3, 6, 6]]
    assert start[1].tolist() == [0, 0, 0, 0, 0, 0, 6, 6]
    no = data.IGNORE
    assert batch.targets.tolist() == [[no] * 3 + [1, no, 2, no, no], [no] * 3 + [3, 3, no, 4, no]]
    assert batch.values["old_logp"].tolist() == (batch.targets != no).astype(float).__neg__().tolist()
    assert batch.trained == 5


def test_changing_one_document_changes_no_other_documents_loss():
    torch.manual_seed(0)
    model = randomise(Qwen2(ModelConfig(TOKENIZER.vocab_size, 32, 64, 2, 2, 1, 2048)))
    documents = [data.to_document(datagen.generate(1, i, op=3), TOKENIZER) for i in range(6)]

    def losses(documents):
        for i, document in enumerate(documents):
            document.values = {"number": [i + 1.0] * len(document.ids)}
        (micro,) = data.pack(documents, 512, TOKENIZER.pad_id).micro_batches(9, torch.device("cpu"))
        logp = torch.log_softmax(model(micro.tokens, micro.doc_start)[0], -1)
        logp = logp.gather(-1, micro.targets.clamp(min=0)[..., None])[..., 0]
        return [float(logp[micro.values["number"] == i + 1.0].sum()) for i in range(len(documents))]

    before = losses(documents)
    ids = documents[2].ids
    documents[2].ids = [ids[0], *reversed(ids[1:-1]), ids[-1]]
    after = losses(documents)
    same = [a == pytest.approx(b, abs=1e-4) for a, b in zip(before, after)]
    assert same == [True, True, False, True, True, True]


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5])
def test_replay_has_its_share_with_and_without_records(share):
    school = Mixture.parse("op 2; template school")
    records = tuple(datagen.to_record(datagen.generate(0, i, op=3)) for i in range(40))
    for some in ((), records):
        source = Source(
            Mixture.parse("op 2; template zoo"), TOKENIZER, 0, 1, 2048, replay=school, replay_share=share, records=some)  # fmt: skip
        drawn = [source.record(i) for i in range(600)]
        assert sum("School" in data.get(record, "problem") for record in drawn) == pytest.approx(
            600 * share, abs=1
        )
    epochs = [r["id"] for r in drawn if isinstance(r, dict)]
    assert (
        len(set(epochs[:40])) == 40 == len(set(epochs[40:80])) and epochs[:40] != epochs[40:80]
    )  # each once an epoch


def test_repeated_documents_have_their_share_and_are_the_first_ones():
    mixture = Mixture.parse("op 2-3; template zoo")
    fresh, repeating, alike = (Source(mixture, TOKENIZER, 0, 2, 2048, repeat=share, repeat_pool=20) for share in (0, 0.25, 0.25))  # fmt: skip
    number = {fresh.record(i).id: i for i in range(800)}
    drawn = [number[repeating.record(i).id] for i in range(800)]
    again = [n for i, n in enumerate(drawn) if n != i]
    assert len(again) / 800 == pytest.approx(0.25, abs=0.04)
    assert set(again) == set(range(20))
    for row in range(2):  # a row is a lane of its own: neither has all that repeat
        assert sum(n != i for i, n in enumerate(drawn) if i % 2 == row) == pytest.approx(100, abs=25)
    assert drawn == [number[alike.record(i).id] for i in range(800)]


def test_external_records(tmp_path):
    path = tmp_path / "r.jsonl"
    shared = Path(__file__).parents[2] / "shared" / "gsm_infinite" / "sample.jsonl"
    if shared.exists():
        records = read_records(shared)
        assert len(records) == 570
        assert data.completion_text(records[0]).endswith(
            " </answer>[EOS]"
        ) and "Answer:" not in data.completion_text(records[0])
    good = json.dumps(datagen.to_record(datagen.generate(0, 0, op=3)))
    bad = ((good + "\n{", "line 2"), (good + '\n{"problem": "x"}', "line 2"), ("[1]", "line 1"), ("", "no records"),
           (good.replace("Answer:", "Reply:"), "line 1"), ('{"prompt": "x"}', "line 1"))  # fmt: skip
    for text, said in bad:
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_records(path)
    path.write_text(good)
    source = Source(TINY, TOKENIZER, 0, 1, 512, records=tuple(read_records(path)))
    assert next(batches(source))[0].tokens.shape == (1, 512)
    for workers in (0, 1):
        with pytest.raises(
            UserError, match=r"^a document has \d+ tokens but a row only 64; raise --row-tokens$"
        ):
            next(batches(Source(MIXTURE, TOKENIZER, 0, 1, 64), workers=workers))


def test_a_record_longer_than_a_row_is_found_at_the_start(tmp_path):
    path = tmp_path / "r.jsonl"
    short, long = ({"prompt": "a", "completion": "b " * n} for n in (3, 90))
    path.write_text(json.dumps(short) + "\n\n" + json.dumps(long))
    records = tuple(read_records(path))
    with pytest.raises(UserError) as error:
        Source(TINY, TOKENIZER, 0, 1, 64, records=records)
    tokens = len(data.to_document(long, TOKENIZER).ids)
    told = f"{path}, line 3 has {tokens} tokens but a row only 64; raise --row-tokens"
    assert str(error.value) == told
    Source(TINY, TOKENIZER, 0, 1, tokens, records=records)


def test_a_text_to_continue(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt": "The otters number 3. ", "completion": "So do the pandas."}))
    (record,) = read_records(path)
    for only in (False, True):
        document = data.to_document(record, TOKENIZER, solution_only=only)
        assert TOKENIZER.decode(document.ids) == "[BOS]The otters number 3. So do the pandas.[EOS]"
        trained = TOKENIZER.decode([i for i, t in zip(document.ids, document.trained) if t])
        assert trained == ("So do the pandas.[EOS]" if only else TOKENIZER.decode(document.ids))


def test_spans_of_a_completion_that_are_no_targets(tmp_path):
    path, text = tmp_path / "r.jsonl", "So a = 3. So b = 4. So c = 5."
    record = {"prompt": "Go. ", "completion": text, "unlearned": [[0, 9], [13, 19]]}
    path.write_text(json.dumps(record))
    for only in (False, True):
        document = data.to_document(read_records(path)[0], TOKENIZER, solution_only=only)
        assert TOKENIZER.decode(document.ids) == f"[BOS]Go. {text}[EOS]"
        kept = TOKENIZER.decode([i for i, t in zip(document.ids, document.trained) if t])
        assert kept == ("" if only else "[BOS]Go. ") + " So  So c = 5.[EOS]"
    for wrong in (
        [[0, 99]],
        [[3, 1]],
        [[0, 5], [4, 9]],
        [[-1, 2]],
        [[0]],
        [5],
        "0-3",
        {"a": 1},
        [[0, 1.5]],
        [[0, True]],
    ):
        path.write_text(json.dumps({**record, "unlearned": wrong}))
        with pytest.raises(UserError, match=r"line 1: its `unlearned` is no list of \[start, end\]"):
            read_records(path)
    solved = {**datagen.to_record(datagen.generate(0, 0, op=3)), "unlearned": [[0, 9]]}
    path.write_text(json.dumps(solved))  # the spans are of a completion
    with pytest.raises(UserError, match="unlearned"):
        read_records(path)


def signals():
    """Which are blocked."""
    return {number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


class Blocked:
    def __iter__(self):
        return iter([signals()])


def test_a_worker_is_born_deaf_to_signals():
    """It imports torch for seconds before it can ignore them: ctrl-C in these must not end it."""
    before = signals()
    assert {"SIGINT", "SIGTERM"} <= next(worked_out(Blocked(), workers=1)) and signals() == before


def test_a_dead_worker_is_one_line():
    others = {child.pid for child in multiprocessing.active_children()}  # of tests before, if any is left
    stream = batches(Source(MIXTURE, TOKENIZER, 0, 2, 2048), workers=1)
    next(stream)
    for child in multiprocessing.active_children():
        if child.pid not in others:
            child.kill()
    with pytest.raises(UserError, match="--workers 0"):
        for _ in range(1000):
            next(stream)
    del stream
    gc.collect()  # while torch knows of that worker, the end of any child is an error here


def test_a_source_travels_to_a_worker():
    source = Source(MIXTURE, TOKENIZER, 3, 2, 2048, records=({"prompt": "a", "completion": "b"},))
    source.record(0)
    assert dataclasses.replace(source).record(0) == source.record(0)
