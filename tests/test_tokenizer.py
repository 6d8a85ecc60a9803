import itertools
import json
import pickle
import random
import re

from lab.options import UserError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import datagen
from studies import CONTROL
from tasks import read_records
from tokenizer import FIRST_MERGE, KNOWN_WORDS, LONGEST_WORD, PATTERN, SPECIALS, Tokenizer, main, train_bpe
from train_pretrain import train_tokenizer


def corpus(n=600):
    modes, templates = datagen.MODES, datagen.TEMPLATES
    kinds = list(itertools.product((2, 5, 9, 14), modes, templates, (2, 3)))
    for i in range(n):
        op, mode, template, layers = kinds[i % len(kinds)]
        p = datagen.generate(31, i, op=op, mode=mode, template=template, layers=layers)
        yield data.prompt_text(p) + data.completion_text(p)


TEXTS = list(corpus())
TOKENIZER = train_bpe(TEXTS, 700)


def encode_by_definition(text):
    """What tiktoken must agree with: in each pre-token, always merge the adjacent pair of lowest rank."""
    out = []
    for part in re.split("(" + "|".join(map(re.escape, SPECIALS)) + ")", text):
        if part in SPECIALS:
            out.append(SPECIALS.index(part))
            continue
        for word in re.findall(PATTERN, part):
            parts = [bytes([b]) for b in word.encode("utf-8")]
            while len(parts) > 1:
                pairs = enumerate(zip(parts, parts[1:]))
                rank, i = min((TOKENIZER.ranks.get(a + b, 1 << 30), i) for i, (a, b) in pairs)
                if rank == 1 << 30:
                    break
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            out += [TOKENIZER.ranks[p] for p in parts]
    return out


@settings(max_examples=400, deadline=None)
@given(st.text() | st.lists(st.sampled_from(SPECIALS) | st.text()).map("".join))
def test_tiktoken_agrees_with_the_definition_and_round_trips_on_random_unicode(text):
    ids = TOKENIZER.encode(text)
    assert ids == encode_by_definition(text)
    assert TOKENIZER.decode(ids) == text


ODD = ["", "a", "\ud83d", "\ude00", "\n", "\u00a0", "12.5", "[BOS]", "</answer>[EOS]", "<", "b" * 60, "adult"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(ODD) | st.text(st.characters(), max_size=30)).map(" ".join))
def test_known_words_change_no_id(text):
    tokenizer = Tokenizer(TOKENIZER.merges)
    ids = tokenizer._encoding.encode(text, allowed_special="all")
    assert tokenizer.encode(text) == ids == tokenizer.encode(text) == TOKENIZER.encode(text)


def test_the_words_that_are_known_are_few_and_short():
    tokenizer = Tokenizer(TOKENIZER.merges)
    for text in (" ".join(map(str, range(50_000))), "漢" * 25, "the end"):
        for _ in range(2):
            assert tokenizer.encode(text) == tokenizer._encoding.encode(text)
    assert len(tokenizer._known) == KNOWN_WORDS and max(map(len, tokenizer._known)) <= LONGEST_WORD


def test_on_generated_text():
    for text in TEXTS[:200]:
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
        assert TOKENIZER.encode(text) == encode_by_definition(text)


def test_hugging_face_gives_the_same_ids():
    """A second outside oracle: tokenizers' BPE with our vocabulary and merges."""
    import tokenizers

    byte_to_char = {}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    for b in range(256):
        byte_to_char[b] = chr(b) if b in printable else chr(256 + sum(x not in printable for x in range(b)))

    def spell(token):
        return "".join(byte_to_char[b] for b in token)

    vocab = {spell(token): rank for token, rank in TOKENIZER.ranks.items()}
    merges = []
    for token in TOKENIZER.merges:  # the pair that the ranks below this one leave apart
        parts, rank = [bytes([b]) for b in token], TOKENIZER.ranks[token]
        while len(parts) > 2:
            best = min(
                range(len(parts) - 1), key=lambda i: TOKENIZER.ranks.get(parts[i] + parts[i + 1], 1 << 30)
            )
            assert TOKENIZER.ranks[parts[best] + parts[best + 1]] < rank
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        merges.append((spell(parts[0]), spell(parts[1])))
    peer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    peer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    rng = random.Random(0)
    texts = [re.sub(r"\[[A-Z]+\]|</?[a-z]+>", "", t) for t in TEXTS[:100]]
    texts += ["".join(rng.choice("aé漢 09,.\n\tZ😀") for _ in range(30)) for _ in range(200)]
    for text in texts:
        assert TOKENIZER.encode(text) == peer.encode(text, add_special_tokens=False).ids


def test_first_merges_by_brute_force():
    """Counts of pairs by definition, on a text where no tie decides."""
    tokenizer = train_bpe(["aaab aaab aaab ab ab ab ab cd"], FIRST_MERGE + 3)
    assert tokenizer.merges[0] == b"ab"  # 7 times, against "aa" 6 and " a" 6
    words, merges = [list(w) for w in (["aaab"] + [" aaab"] * 2 + [" ab"] * 4 + [" cd"])], []
    for _ in range(3):
        counts = {}
        for w in words:
            for pair in zip(w, w[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts.values())
        candidates = {a + b for (a, b), n in counts.items() if n == best}
        merges.append(candidates)
        chosen = tokenizer.merges[len(merges) - 1].decode()
        assert chosen in candidates
        for w in words:
            i = 0
            while i + 1 < len(w):
                if w[i] + w[i + 1] == chosen:
                    w[i : i + 2] = [chosen]
                i += 1


def test_digits_and_specials_are_tokens_of_their_own():
    for text in ("1234567", "x = 1205", " 42", "7*x + 13"):
        digits = sum(c.isdigit() for c in text)
        tokens = [TOKENIZER.decode([i]) for i in TOKENIZER.encode(text)]
        assert sum(any(c.isdigit() for c in token) for token in tokens) == digits
    for i, special in enumerate(SPECIALS):
        assert TOKENIZER.encode(special) == [i]
    assert len(SPECIALS) == 10


def test_vocabulary_size_and_compression():
    assert train_bpe(TEXTS, FIRST_MERGE).vocab_size == FIRST_MERGE
    assert train_bpe(TEXTS, 300).vocab_size == 300
    assert train_bpe(["ab"], 2200).vocab_size == FIRST_MERGE + 1  # no more pairs to merge
    with pytest.raises(UserError):
        train_bpe(TEXTS, 265)


def test_no_merge_is_spent_on_special_tokens():
    """A space before one is a pre-token of its own, as it is when text is encoded."""
    text = "[BOS]<question> a? </question> <solution> b </solution> <answer> b </answer>[EOS]"
    assert train_bpe([text] * 9, 300).merges == (b" b", b" a")
    assert not any(set(token) & set(b"<>[]") for token in TOKENIZER.merges)


def test_paper_bar_on_public_records():
    path = data.__file__.rsplit("/", 2)[0] + "/shared/gsm_infinite/sample.jsonl"
    try:
        records = read_records(path)
    except UserError:
        pytest.skip("../shared is not beside the checkout")
    texts = [f"{r['problem'].strip()} {r['question']} {r['solution']}" for r in records]
    tokenizer = train_bpe(texts, 2200)
    assert sum(len(tokenizer.encode(t)) for t in texts) / len(texts) <= 425
    assert all(tokenizer.decode(tokenizer.encode(t)) == t for t in texts)


def test_every_generated_text_fits_the_paper_preset():
    """Prompt and solution are at most 1,024 tokens each, in the longest kinds of problem."""
    longest = [0, 0]
    for i in range(1500):
        p = datagen.generate(
            5,
            i,
            op=18 + i % 3,
            mode=datagen.MODES[i % 2],
            template=list(datagen.TEMPLATES)[i % 3],
            layers=2 + i % 2,
        )
        longest[0] = max(longest[0], len(TOKENIZER.encode(data.prompt_text(p))))
        longest[1] = max(longest[1], len(TOKENIZER.encode(data.completion_text(p))))
    assert max(longest) <= 1024


def test_deterministic_saved_and_loaded(tmp_path):
    again = train_bpe(TEXTS, 700)
    assert again.hash == TOKENIZER.hash and again.merges == TOKENIZER.merges
    assert train_bpe(TEXTS, 699).hash != TOKENIZER.hash
    TOKENIZER.save(tmp_path / "t.json")
    loaded = Tokenizer.load(tmp_path / "t.json")
    assert loaded.hash == TOKENIZER.hash and loaded.encode(TEXTS[0]) == TOKENIZER.encode(TEXTS[0])
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode(TEXTS[1]) == TOKENIZER.encode(TEXTS[1])


def test_errors(tmp_path):
    for i in (-1, TOKENIZER.vocab_size):
        with pytest.raises(UserError):
            TOKENIZER.decode([i])
    TOKENIZER.save(tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    others = [{**content, "merges": merges} for merges in (content["merges"][:-1], [1], ["ab", "ab"], None)]
    for damage in ("{", "[]", "{}", *map(json.dumps, others)):
        (tmp_path / "bad.json").write_text(damage)
        with pytest.raises(UserError):
            Tokenizer.load(tmp_path / "bad.json")
    with pytest.raises(UserError):
        Tokenizer.load(tmp_path / "none.json")


def test_long_and_odd_texts():
    for text in ("a" * 200_000, " " * 1000, "\0" * 100, "漢" * 10_000, "-" * 10_000):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode("\ud800")) == "\ufffd"


def test_command_line(tmp_path, capsys):
    records = [
        dict(problem=f"{i} bears.", question="How many?", solution=f"So \ud800 = {i}.") for i in range(40)
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    main([str(tmp_path / "r.jsonl"), "--vocab-size", "280", "--out", str(tmp_path / "t.json")])
    assert "280 tokens" in capsys.readouterr().out and Tokenizer.load(tmp_path / "t.json").vocab_size == 280


@pytest.mark.parametrize(
    "line, options, words",
    [
        ('{"problem": "a", "question": "b"}', [], "line 1: key 'solution'"),
        ('{"problem": "a", "question": "b", "solution": 3}', [], "line 1: key 'solution'"),
        ('{"problem": "", "question": "", "solution": " "}', [], "no text"),
        ("", [], "no records"),
        ("{", [], "not JSON"),
        ('{"text": "a"}', ["--keys", "text", "--vocab-size", "200"], "--vocab-size"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(line, options, words, tmp_path):
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=words) as error:
        main([str(tmp_path / "r.jsonl"), *options, "--out", str(tmp_path / "t.json")])
    assert "\n" not in str(error.value) and not (tmp_path / "t.json").exists()


def test_words_beside_those_of_the_mixture_are_tokens():
    mixture = datagen.Mixture.parse("op 2; world mini")
    plain, more = (train_tokenizer(mixture, (), 700, 0, documents=50, words=words) for words in ("", CONTROL))
    for tag in CONTROL.split():
        parts = 3 if tag.startswith("<") else 1  # <, the word, >
        assert len(more.encode(" " + tag)) == parts < len(plain.encode(" " + tag)) or tag == "a"
    assert more.decode(more.encode(CONTROL)) == CONTROL
