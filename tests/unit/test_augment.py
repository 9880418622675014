"""data.augment: what it changes, what survives, and that it depends on the sample alone. No Ray."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import tiny_run
from tiny import VOCABULARY, context, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raytrain.config import AugmentConfig, SequenceClassificationConfig, TokenClassificationConfig
from raytrain.data.augment import Augment
from raytrain.data.word_marks import WordMarks
from raytrain.errors import ConfigError
from raytrain.tasks import make_task
from raytrain.tasks.base import IGNORED
from raytrain.tasks.entities import parts_of

TAGS = {
    "IOB2": ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"],
    "IOB1": ["O", "I-LOC", "I-PER", "B-PER"],
    "IOBES": ["O", "B-PER", "E-PER", "I-PER", "S-PER"],
}
ALL = {"word_drop": 0.4, "word_swap": 0.4, "span_mask": 0.2, "token_replacement": 0.3}
WORDS = VOCABULARY[5:]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return made


def wordpiece(letters: str = "abcdefghijklmnopqrstuvwxyz", words: tuple[str, ...] = ()) -> Any:
    """Words of one to three pieces: each letter is one."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {
        token: i for i, token in enumerate([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    }
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    from tokenizers.processors import BertProcessing

    made.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


PIECES = wordpiece()


def tagged(rows: list[tuple[list[str], list[str]]], tags: list[str], tokenizer: Any = None, **options: Any) -> pa.Table:
    """Sentences as stored samples."""
    task = make_task(TokenClassificationConfig(kind="token_classification", labels=tags, **options), 64)
    table = pa.Table.from_pylist([{"tokens": words, "tags": found, "document": 1} for words, found in rows])
    return task.encode(table, tokenizer or PIECES, {"labels": tags}).table


def words_of(row: dict[str, Any]) -> list[tuple[tuple[int, ...], int]]:
    """(pieces, tag id) of each word of a sample."""
    found: list[tuple[list[int], int]] = []
    for token, label in list(zip(row["input_ids"], row["labels"], strict=True))[1:-1]:
        if label != IGNORED:
            found.append(([], label))
        found[-1][0].append(token)
    return [(tuple(pieces), tag) for pieces, tag in found]


def entities(
    words: list[tuple[tuple[int, ...], int]], tags: list[str]
) -> list[tuple[str, tuple[tuple[int, ...], ...]]]:
    """(type, words) of each entity, by the rules of its scheme."""
    parts = parts_of(tags)
    assert parts is not None
    found: list[tuple[str, list[tuple[int, ...]]]] = []
    before = ("O", "")
    for pieces, tag in words:
        letter, kind = parts[tag]
        if letter != "O":
            continues = letter in "IE" and before[0] in "BI" and before[1] == kind
            if not continues:
                found.append((kind, []))
            found[-1][1].append(pieces)
        before = (letter, kind)
    return [(kind, tuple(members)) for kind, members in found]


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[str], list[tuple[list[str], list[str]]]]:
    tags = TAGS[draw(st.sampled_from(list(TAGS)))]
    word = st.text("abcdefg", min_size=1, max_size=3)
    pairs = st.lists(st.tuples(word, st.sampled_from(["O", "O", *tags])), min_size=1, max_size=15)
    rows = [([w for w, _ in row], [t for _, t in row]) for row in draw(st.lists(pairs, min_size=1, max_size=6))]
    return tags, rows


@given(sentences(), st.integers(0, 2**40), st.integers(0, 5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_all_entities_survive_and_words_keep_their_tags(
    given_rows: tuple[list[str], list[tuple[list[str], list[str]]]], seed: int, epoch: int, joins: bool
) -> None:
    tags, rows = given_rows
    samples = tagged(rows, tags, document_context=joins)
    made = Augment(AugmentConfig(word_drop=0.5, word_swap=0.5), PIECES, {"labels": tags})
    where = context(samples.num_rows, state={"labels": tags}, seed=seed, epoch=epoch)
    for before, after in zip(samples.to_pylist(), made(samples, where).to_pylist(), strict=True):
        old, new = words_of(before), words_of(after)
        assert entities(new, tags) == entities(old, tags)
        assert not Counter(new) - Counter(old), "a word with another tag, or one that was not there"
        assert (after["input_ids"][0], after["input_ids"][-1]) == (2, 3)
        assert sum(after["sentence_lengths"]) == len(new)
        assert len(after["sentence_lengths"]) == len(before["sentence_lengths"]) and min(after["sentence_lengths"]) > 0
    everything = Augment(AugmentConfig(**ALL), PIECES, {"labels": tags})
    for before, after in zip(samples.to_pylist(), everything(samples, where).to_pylist(), strict=True):
        assert entities(words_of(after), tags) == entities(words_of(before), tags), "masks and others leave them alone"
        assert not set(after["input_ids"][1:-1]) & {0, 2, 3}


def test_words_outside_of_entities_are_changed() -> None:
    rows = [(["a", "b", "c", "d", "e"], ["O", "B-PER", "O", "O", "O"])] * 200
    samples, tags = tagged(rows, TAGS["IOB2"]), TAGS["IOB2"]
    made = Augment(AugmentConfig(word_drop=0.5, word_swap=0.5), PIECES, {"labels": tags})
    words = [words_of(row) for row in made(samples, context(200, state={"labels": tags})).to_pylist()]
    assert {len(row) for row in words} == {2, 3, 4, 5}, "all but the entity and the word before it may go"
    assert len({tuple(row) for row in words}) > 10


def cased() -> Any:
    """As PIECES, with letters of both cases, and some words of one piece."""
    return wordpiece("".join(chr(i) for i in [*range(97, 123), *range(65, 91)]), ("film", "plot"))


COMMON = {"a": "film", "b": "plot"}


@given(sentences(), st.integers(0, 2**40), st.integers(6, 64))
@settings(max_examples=100, deadline=None)
def test_respelled_words_keep_their_tags_and_fit(
    given_rows: tuple[list[str], list[tuple[list[str], list[str]]]], seed: int, room: int
) -> None:
    """Every word is there afterwards, with its tag, in its place, and no sample is longer than max_length."""
    (tags, rows), tokenizer = given_rows, cased()
    rows = [([COMMON.get(word, word) for word in words], found) for words, found in rows]
    samples = tagged(rows, tags, tokenizer=tokenizer)
    where = context(len(rows), state={"labels": tags}, seed=seed)
    made = Augment(AugmentConfig(typo=0.7, case=0.5), tokenizer, {"labels": tags}, room)
    after = made(samples, where)
    for old, new in zip(samples.to_pylist(), after.to_pylist(), strict=True):
        assert [tag for _, tag in words_of(new)] == [tag for _, tag in words_of(old)]
        assert len(new["input_ids"]) <= max(room, len(old["input_ids"])), "what does not fit stays as it was"
        assert (new["input_ids"][0], new["input_ids"][-1]) == (2, 3)
        assert new["sentence_lengths"] == old["sentence_lengths"]


def test_slips_and_cases_are_those_of_the_word() -> None:
    tokenizer, tags = cased(), ["O", "B-PER"]
    samples = tagged([(["abcd", "fg"], ["B-PER", "O"])] * 300, tags, tokenizer=tokenizer)
    for option, expected in (("typo", None), ("case", {"ABCD", "Abcd"})):
        made = Augment(AugmentConfig(**{option: 1.0}), tokenizer, {"labels": tags})
        words = [words_of(row) for row in made(samples, context(300)).to_pylist()]
        found = {tokenizer.decode(row[0][0]) for row in words}
        short = {tokenizer.decode(row[1][0]) for row in words}
        if expected is not None:
            assert (found, short) == (expected, {"FG", "Fg"})
        else:
            assert short == {"fg"}, "a slip would make another word of it"
            assert {"bacd", "acbd", "bcd", "acd", "aabcd", "abbcd"} <= found and len(found) > 40


def test_letter_cases_of_an_uncased_model_follow() -> None:
    """task.case_feature: the tokens are the same, and the case is told by token_type_ids."""
    samples = tagged([(["abc", "de"], ["O", "O"])] * 50, ["O"], case_feature=True)
    uncased = wordpiece()
    uncased.backend_tokenizer.normalizer = normalizers.Lowercase()
    made = Augment(AugmentConfig(case=1.0), uncased, {"labels": ["O"]}, has_cases=True)
    after = made(samples, context(50)).to_pylist()
    assert [row["input_ids"] for row in after] == [row["input_ids"] for row in samples.to_pylist()]
    assert {tuple(row["token_type_ids"]) for row in after} == {
        (0, *[a] * 3, *[b] * 2, 0) for a in (1, 2) for b in (1, 2)
    }


@pytest.mark.parametrize("option", ["case", "typo"])
def test_a_sample_is_respelled_alike_in_any_batch(option: str) -> None:
    tokenizer = cased()
    samples = tagged([(["abcd"] * n, ["O"] * n) for n in (1, 4, 9, 2, 12)], ["O"], tokenizer=tokenizer)
    made = Augment(AugmentConfig(**{option: 0.6}, word_drop=0.2), tokenizer, {"labels": ["O"]}, 40)
    together = made(samples, context(5, epoch=2)).to_pylist()
    for order in ([4], [2, 0], [3, 1, 2]):
        part = made(samples.take(order), context(len(order), ids=np.array(order), epoch=2)).to_pylist()
        assert part == [together[i] for i in order]
    assert together != samples.to_pylist()


@pytest.mark.parametrize("byte_level", [True, False])
def test_blanks_before_words_stay(byte_level: bool) -> None:
    """The tokens of byte-level and SentencePiece tokenizers have the blank before a word in them."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else pre_tokenizers.Metaspace()
    made.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace()
    text = "the film was good and the story was not"
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), *"abcdefghijklmnopqrstuvwxyz"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=["<unk>", "<pad>"], show_progress=False
    )
    made.train_from_iterator([text] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")
    ids = tokenizer(text)["input_ids"]
    samples = pa.table({"input_ids": pa.array([ids] * 50, pa.list_(pa.int32()))})
    after = Augment(AugmentConfig(typo=0.5), tokenizer, {})(samples, context(50)).to_pylist()
    decoded = [tokenizer.decode(row["input_ids"]) for row in after]
    assert all(len(one.split()) == 9 for one in decoded)
    assert len(set(decoded)) > 40


def texts(tokenizer: Any, num: int, *, pairs: bool = False) -> pa.Table:
    random = np.random.default_rng(0)
    options = {"text_pair_column": "other"} if pairs else {}
    task = make_task(SequenceClassificationConfig(kind="sequence_classification", labels=["a", "b"], **options), 64)
    made = [" ".join(random.choice(WORDS, random.integers(1, 20))) for _ in range(2 * num)]
    rows = [{"text": made[i], "other": made[num + i], "label": "ab"[i % 2]} for i in range(num)]
    return task.encode(pa.Table.from_pylist(rows), tokenizer, {"labels": ["a", "b"]}).table


@pytest.mark.parametrize("option", list(ALL))
@pytest.mark.parametrize("kind", ["text", "pair", "words"])
def test_a_sample_is_changed_alike_in_any_batch(tokenizer: Any, option: str, kind: str) -> None:
    """What a worker is given beside it depends on how many workers there are (P9)."""
    rows = [(["a"] * n, ["O"] * n) for n in (1, 4, 9, 2, 12)]
    samples = tagged(rows, TAGS["IOB2"]) if kind == "words" else texts(tokenizer, 5, pairs=kind == "pair")
    made = Augment(AugmentConfig(**{option: ALL[option]}), PIECES if kind == "words" else tokenizer, {"labels": ["O"]})
    ids, copies = np.array([7, 3, 3, 10**9, 4]), np.array([0, 0, 1, 2, 0])
    together = made(samples, context(5, ids=ids, copies=copies, epoch=2)).to_pylist()
    for order in ([4], [2, 0], [3, 1, 2]):
        part = made(samples.take(order), context(len(order), ids=ids[order], copies=copies[order], epoch=2)).to_pylist()
        assert part == [together[i] for i in order]


@pytest.mark.parametrize(
    "changed", [{"epoch": 1}, {"seed": 5}, {"copies": np.ones(40, int)}, {"ids": np.arange(40) + 7}]
)
def test_other_epochs_copies_samples_and_seeds_are_changed_in_other_ways(tokenizer: Any, changed: Any) -> None:
    samples, made = texts(tokenizer, 40), Augment(AugmentConfig(**ALL), tokenizer, {})
    one, other = (made(samples, context(40, **options)).to_pylist() for options in ({}, changed))
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    assert made(samples, context(40)).to_pylist() == one


@pytest.mark.parametrize("option", list(ALL))
def test_the_rates_are_what_is_asked_for(tokenizer: Any, option: str) -> None:
    samples, made = texts(tokenizer, 2000), Augment(AugmentConfig(**{option: 0.15}), tokenizer, {})
    old, new = samples.to_pylist(), made(samples, context(2000)).to_pylist()
    words = sum(len(row["input_ids"]) - 2 for row in old)
    if option == "word_drop":
        changed = words - sum(len(row["input_ids"]) - 2 for row in new)
    elif option == "span_mask":
        changed = sum(row["input_ids"].count(tokenizer.mask_token_id) for row in new)
    else:
        pairs = zip(old, new, strict=True)
        changed = sum(a != b for x, y in pairs for a, b in zip(x["input_ids"], y["input_ids"], strict=True))
        changed //= 1 + (option == "word_swap")
    assert 0.11 < changed / words < 0.17, "single words are kept, spans end with the text, equal words are exchanged"


def test_texts_keep_a_word_and_their_places(tokenizer: Any) -> None:
    samples = texts(tokenizer, 300, pairs=True)
    made = Augment(AugmentConfig(word_drop=0.99, word_swap=1.0), tokenizer, {})
    separator = tokenizer.sep_token_id
    for before, after in zip(samples.to_pylist(), made(samples, context(300)).to_pylist(), strict=True):
        ids, old = after["input_ids"], before["input_ids"]
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == separator and ids.count(separator) == 2
        first, second = ids[1 : ids.index(separator)], ids[ids.index(separator) + 1 : -1]
        assert first and second
        assert set(first) <= set(old[: old.index(separator)]) and set(second) <= set(old[old.index(separator) :])
        assert after["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert after["labels"] == before["labels"]


def test_labels_of_samples_are_no_tags(tokenizer: Any) -> None:
    """With multi_label a sample has a list, which may be as long as its text."""
    samples = pa.table(
        {
            "input_ids": pa.array([[2, 6, 7, 3]], pa.list_(pa.int32())),
            "labels": pa.array([[1.0, 0.0, 0.0, 1.0]], pa.list_(pa.float32())),
        }
    )
    after = Augment(AugmentConfig(word_drop=0.9), tokenizer, {"labels": list("abcd")})(samples, context(1))
    assert after["labels"].to_pylist() == [[1.0, 0.0, 0.0, 1.0]] and len(after["input_ids"][0]) == 3


BPE = {
    "sentencepiece": ({"<s>": 0, "▁a": 1, "▁film": 2, "s": 3, "ed": 4}, [0, 2, 3, 1, 2, 4], "010110"),
    "byte-level": ({"<s>": 0, "Ġa": 1, "Ġfilm": 2, "s": 3, "A": 4}, [0, 4, 3, 2, 3, 1], "010101"),
    "ends": ({"<s>": 0, "a</w>": 1, "fil": 2, "m</w>": 3, "s</w>": 4}, [0, 1, 2, 3, 2, 4], "011010"),
    "wordpiece": ({"<s>": 0, "a": 1, "film": 2, "##s": 3, "##ed": 4}, [0, 2, 3, 1, 2, 4], "010110"),
    "none": ({"<s>": 0, "a": 1, "film": 2, "s": 3, "ed": 4}, [0, 2, 3, 1, 2, 4], "011111"),
}


@pytest.mark.parametrize("kind", list(BPE))
def test_marks_of_words(kind: str) -> None:
    vocabulary, ids, expected = BPE[kind]
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "<s>")), bos_token="<s>")
    found = WordMarks(made).starts(np.array(ids), np.arange(len(ids)) == 0)
    assert "".join(map(str, found.astype(int))) == expected


def test_a_replacement_begins_a_word_where_the_token_did() -> None:
    marks, random = WordMarks(PIECES), np.random.default_rng(0)
    ids = np.array([PIECES.convert_tokens_to_ids(token) for token in ("a", "##b", "c", "##d")] * 200)
    others = PIECES.convert_ids_to_tokens(marks.others(ids, random.random(800)).tolist())
    assert [token.startswith("##") for token in others] == [False, True] * 400
    assert len(set(others)) == 52, "all letters, and no special token"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.augment={}"], "data.augment changes nothing: set one of data.augment.word_drop"),
        (["data.augment.word_drop=1"], "data.augment.word_drop: must be below 1, got 1"),
        (["data.augment.word_swaps=1"], "did you mean data.augment.word_swap"),
        (["data.augment.span_mask=0.1", "data.augment.span_words=0"], "span_words: must be at least 1"),
        (
            ["data.augment.word_drop=0.1", "task={kind: python, target: 'a.b:C'}"],
            "data.augment is for the tasks on texts",
        ),
    ],
)
def test_what_the_config_refuses(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_run(tmp_path, "a", *overrides)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    vocabulary = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    bare = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="a")
    with pytest.raises(ConfigError, match="data.augment.span_mask needs a mask token"):
        Augment(AugmentConfig(span_mask=0.1), bare, {})
