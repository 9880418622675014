"""Duplicates: training rows that are in another split or occur again are found, removed, listed and counted. No Ray."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import tiny_run
from tiny import tiny_tokenizer, write_parquet

from raytrain.config import RunConfig, SequenceClassificationConfig
from raytrain.data.class_weights import class_weights_of
from raytrain.data.encode import report_of
from raytrain.data.prepare import prepare
from raytrain.data.prepared import PreparedStore
from raytrain.data.stages.duplicates import HeldOut, held_out_table
from raytrain.data.stages.near_duplicates import (
    KeyIndex,
    Match,
    band_keys,
    candidate_pairs,
    greedy,
    jaccard,
    near_duplicates,
    normalized,
    shingle_set,
    shingles,
)
from raytrain.errors import ConfigError, DataError
from raytrain.storage import Storage
from raytrain.tasks.sequence_classification import SequenceClassification

WORDS = ["".join(random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=3 + i % 7)) for i in range(2_000)]


def texts(num_texts: int, seed: int, num_words: int = 25) -> list[str]:
    """Texts of some 150 characters, none near another."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=num_words)) for _ in range(num_texts)]


def edited(text: str) -> str:
    """Near the text: one of its words is another one, and the case and blanks differ."""
    words = text.split()
    words[len(words) // 2] = "other"
    return "  ".join(words).upper()


class TestLibrary:
    def test_a_shingle_is_five_characters(self) -> None:
        hashes, offsets = shingles(["abcdef", "", "ab", "abcde", "bcdef"])
        assert offsets.tolist() == [0, 2, 2, 3, 4, 5]
        assert hashes[0] == hashes[3] and hashes[1] == hashes[4] and len(set(hashes.tolist())) == 3

    @pytest.mark.parametrize(
        "text", ["", "a", "abcd", "abcde", "ab\0", "\ud800 lone surrogate", "日本語のテキスト", "🙂" * 9]
    )
    def test_any_text(self, text: str) -> None:
        alone = shingles([text])[0].tolist()
        hashes, offsets = shingles(["before", text, "after"])
        assert hashes[offsets[1] : offsets[2]].tolist() == alone
        assert len(alone) == (max(1, len(text) - 4) if text else 0)

    def test_what_is_compared_is_the_normal_form(self) -> None:
        assert normalized(" \uff26ull  WIDTH\tStraße\n") == "full width strasse"

    def test_the_similarity_is_exact(self) -> None:
        one, other = shingle_set("abcdefgh"), shingle_set("abcdefgx")
        assert jaccard(one, other) == 3 / 5 and jaccard(one, one) == 1.0
        assert jaccard(shingle_set(""), shingle_set("")) == 0.0

    def test_planted_near_duplicates_are_found_and_no_others(self) -> None:
        rng, originals, copies = random.Random(0), texts(500, 0), []
        for text in originals:
            words = text.split()
            for _ in range(rng.randint(0, 4)):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
            copies.append(" ".join(words))
        similar = [jaccard(shingle_set(a), shingle_set(b)) >= 0.8 for a, b in zip(originals, copies, strict=True)]
        found = near_duplicates([*originals, *copies])
        assert [match.index - 500 for match in found] == [i for i, near in enumerate(similar) if near]
        assert all(match.partner == match.index - 500 and match.jaccard >= 0.8 for match in found)
        assert 100 < sum(similar) < 500

    def test_a_row_goes_only_if_one_that_is_kept_is_near_it(self) -> None:
        """A chain: 1 is near 0, 2 is near 1, and 2 is not near 0."""
        assert greedy([Match(1, 0, 0.9), Match(2, 1, 0.9)]) == [Match(1, 0, 0.9)]
        assert greedy([Match(2, 1, 0.8), Match(2, 0, 0.9)]) == [Match(2, 0, 0.9)]

    def test_of_many_equal_texts_the_first_is_kept(self) -> None:
        text, near = texts(1, 0)[0], edited(texts(1, 0)[0])
        found = near_duplicates([text] * 50 + [near] * 50)
        assert [match.index for match in found] == list(range(1, 100))

    def test_a_bucket_does_not_grow_with_the_square_of_its_members(self) -> None:
        import numpy as np

        keys, ids = np.zeros(1_000, dtype=np.uint64), np.arange(1_000)[::-1]
        pairs = candidate_pairs(keys, ids)
        assert len(pairs) < 4 * 1_000 and Counter(pairs[:, 0].tolist()).most_common(1)[0][1] == 4
        assert len(KeyIndex(band_keys(["the same text"] * 100)).candidates(band_keys(["the same text"]))) == 4


CELLS = [
    ("a text", "a text"),
    (["words", "of", "one"], "words of one"),
    ([{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes"}], "user Hi? assistant Yes"),
    (5, ""),
    (None, ""),
    ([[1.5], None], ""),
]


@pytest.mark.parametrize(("cell", "text"), CELLS, ids=str)
def test_the_text_of_a_row_is_all_text_of_its_inputs(cell: Any, text: str) -> None:
    class Numbers(SequenceClassification):
        def input_columns(self) -> list[str]:
            return ["text", "other"]

    task = Numbers(SequenceClassificationConfig(kind="sequence_classification"), 8)
    rows = pa.table({"text": [cell], "other": ["and"], "label": ["not this"]})
    assert [" ".join(one.split()) for one in task.compared_texts(rows)] == [f"{text} and".strip()]
    assert task.compared_texts(rows.select(["label"])) == [""]


def test_equal_rows_of_another_split_do_not_hide_one_that_is_near() -> None:
    """All of these rows are in the same buckets, and no more than four of a bucket are compared."""
    other, text = texts(2, 1)
    rows = held_out_table("test", "file", list(range(1, 8)), [other] * 6 + [text])
    keys = [band_keys([text])[0].tobytes()] * 7
    rows = rows.set_column(4, rows.schema.field("keys"), pa.array(keys, rows.schema.field("keys").type))
    held_out = HeldOut(rows)
    assert held_out.place(held_out.matches([text])[0].partner) == "file:7"


def in_this_process(rows: list[dict[str, Any]], function: Any) -> Iterator[dict[str, Any]]:
    """What Ray Data does for PREPARE, row by row; in an order of its own."""
    for row in random.Random(len(rows)).sample(rows, len(rows)):
        report = report_of(function(row))
        if "error" in report:
            raise DataError(report["error"])
        yield report


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.data.prepare.run_pass", in_this_process)


def labelled(some: list[str]) -> list[dict[str, Any]]:
    return [{"text": text, "label": "ab"[len(text) % 2]} for text in some]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows in the format of the path's ending."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        return write_parquet(path, rows, row_group_size=50)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix in (".csv", ".tsv"):
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join(row[name] for name in ("text", "label")) for row in rows]
        path.write_text("\n".join([f"text{mark}label", *lines]) + "\n")
    else:
        pairs = [[f"{word} x {tag}" for word, tag in zip(row["tokens"], row["tags"], strict=True)] for row in rows]
        path.write_text("".join("\n".join(lines) + "\n\n" for lines in pairs))
    return str(path)


def make_config(folder: Path, paths: dict[str, Any], *overrides: str, **data: Any) -> RunConfig:
    if not (folder / "tokenizer").exists():
        tiny_tokenizer(folder / "tokenizer")
    sources = {split: {"path": path} for split, path in paths.items()}
    return tiny_run(folder, "a", f"data={json.dumps({**sources, **data})}", *overrides)


def removed(store: PreparedStore, name: str = "removed.parquet") -> list[dict[str, Any]]:
    return pq.read_table(f"{store.root}/{name}").to_pylist()


def num_samples(store: PreparedStore) -> dict[str, int]:
    return {split: info.num_samples for split, info in store.manifest.splits.items()}


def check_counts(store: PreparedStore) -> None:
    """Each source row is in a sample, set aside or removed."""
    gone = Counter(row["split"] for row in removed(store))
    for split, info in store.manifest.splits.items():
        assert sum(info.num_removed.values()) == gone[split]
        assert info.num_read == info.num_samples + info.num_quarantined + sum(info.num_removed.values())


@pytest.mark.usefixtures("no_ray")
class TestLeaks:
    @pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "csv", "tsv"])
    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_in_every_format_and_split(self, tmp_path: Path, ending: str, split: str) -> None:
        train, held_out = texts(120, 1), texts(40, 2)
        train[7], train[100] = held_out[3], edited(held_out[30])
        paths = {
            name: write_rows(tmp_path / "data" / f"{name}.{ending}", labelled(some))
            for name, some in (("train", train), (split, held_out))
        }
        store = prepare(make_config(tmp_path, paths))
        assert num_samples(store) == {"train": 118, split: 40}
        first = {"csv": 2, "tsv": 2}.get(ending, 1)  # below the header
        found = removed(store)
        assert [(row["file"], row["row"]) for row in found] == [(paths["train"], i + first) for i in (7, 100)]
        assert [row["partner"] for row in found] == [f"{paths[split]}:{i + first}" for i in (3, 30)]
        assert found[0]["jaccard"] == 1.0 > found[1]["jaccard"] >= 0.8
        assert {(row["split"], row["stage"], row["rule"]) for row in found} == {("train", "dedup", "leakage")}
        assert store.manifest.splits["train"].num_removed == {"dedup.leakage": 2}
        check_counts(store)

    def test_tagged_sentences(self, tmp_path: Path) -> None:
        def sentences(seed: int) -> list[dict[str, Any]]:
            return [{"tokens": text.split(), "tags": ["O"] * 25} for text in texts(30, seed)]

        train, held_out = sentences(1), sentences(2)
        train[4] = held_out[20]
        train[5]["tags"][0] = "B-LOC"
        paths = {
            name: write_rows(tmp_path / "data" / f"{name}.conll", rows)
            for name, rows in (("train", train), ("test", held_out))
        }
        for labels in ("", ", labels: [O, B-LOC]"):  # with and without a survey
            task = f"task={{kind: token_classification{labels}}}"
            store = prepare(make_config(tmp_path, paths, task))
            (found,) = removed(store)
            assert (found["row"], found["partner"]) == (4 * 26 + 1, f"{paths['test']}:{20 * 26 + 1}")
            assert found["jaccard"] == 1.0

    def test_pairs_are_compared_whole(self, tmp_path: Path) -> None:
        def pairs(some: list[str], others: list[str]) -> list[dict[str, Any]]:
            return [
                {"text": a, "other": b, "label": "ab"[i % 2]} for i, (a, b) in enumerate(zip(some, others, strict=True))
            ]

        held_out = pairs(texts(20, 1), texts(20, 2))
        train = pairs(texts(20, 1), texts(20, 3))  # the first text alone is the same
        train[5] = held_out[6]
        paths = {
            name: write_rows(tmp_path / "data" / f"{name}.jsonl", rows)
            for name, rows in (("train", train), ("validation", held_out))
        }
        task = "task={kind: sequence_classification, text_pair_column: other}"
        assert [row["row"] for row in removed(prepare(make_config(tmp_path, paths, task)))] == [6]

    def leaky(self, tmp_path: Path) -> dict[str, str]:
        """Of 60 training rows 2 leaks, and one that is too short to be called one."""
        train, test = [*texts(60, 1), "Central Division"], [*texts(20, 2), "CENTRAL DIVISION"]
        train[10:12] = test[3:5]
        splits = {"train": train, "test": test}
        return {name: write_rows(tmp_path / "data" / f"{name}.jsonl", labelled(some)) for name, some in splits.items()}

    @pytest.mark.parametrize("policy", ["remove", "report", "off"])
    @pytest.mark.parametrize("labels", ["null", "[a, b]"])
    def test_policies(self, tmp_path: Path, policy: str, labels: str, caplog: pytest.LogCaptureFixture) -> None:
        config = make_config(tmp_path, self.leaky(tmp_path), f"data.dedup.leakage={policy}", f"task.labels={labels}")
        store = prepare(config)
        info = store.manifest.splits["train"]
        kept = {"remove": 59, "report": 61, "off": 61}[policy]
        leaks = {"remove": 0, "report": 2, "off": 0}[policy]
        short = {"remove": 1, "report": 1, "off": 0}[policy]
        assert (info.num_samples, info.num_leaks, info.num_short_leaks) == (kept, leaks, short)
        assert len(removed(store)) == 61 - kept and len(removed(store, "leaks.parquet")) == leaks
        said = {
            "remove": "test row: 2 removed (data.dedup.leakage), and 1 of fewer than 40 characters kept; see",
            "report": "test row: 2 kept, since data.dedup.leakage is report, and 1 of fewer than 40 characters kept",
            "off": "",
        }[policy]
        assert said in caplog.text and caplog.text.count("nearly equal") == bool(said)
        assert not (Path(store.root) / "work").exists()
        check_counts(store)

    def test_weights_by_label_are_those_of_the_rows_that_are_left(self, tmp_path: Path) -> None:
        test = [{"text": text, "label": "a"} for text in texts(20, 2)]
        train = [*test[:10], *({"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts(40, 1)))]
        paths = {
            name: write_rows(tmp_path / "data" / f"{name}.jsonl", rows)
            for name, rows in (("train", train), ("test", test))
        }
        config = make_config(tmp_path, paths, "training.class_weights=auto")
        assert class_weights_of(config, prepare(config).manifest) == {"a": 1.0, "b": 1.0}

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        rows = labelled(texts(20, 1))
        paths = {name: write_rows(tmp_path / "data" / f"{name}.jsonl", rows) for name in ("train", "test")}
        with pytest.raises(DataError, match=r"no row is left, as 20 rows.*data\.dedup\.leakage=report"):
            prepare(make_config(tmp_path, paths))


@pytest.mark.usefixtures("no_ray")
class TestFraction:
    """The side of a row is a hash of its content."""

    def sides(self, folder: Path, rows: list[dict[str, Any]], *overrides: str, **validation: Any) -> dict[str, str]:
        """Normalized text -> its split, by the index of the store."""
        name = f"{len(list(folder.iterdir()))}"
        path = write_rows(folder / "data" / f"{name}.jsonl", rows)
        split = {"fraction": 0.3, **validation}
        config = make_config(
            folder, {"train": path}, f"data.prepared_path={folder / name}", *overrides, validation=split
        )
        store, found = prepare(config), {}
        check_counts(store)
        for split, info in store.manifest.splits.items():
            for part in info.parts:
                for row in pq.read_table(f"{store.root}/{part.index_name}")["row"].to_pylist():
                    text = normalized(rows[row - 1]["text"])
                    assert found.setdefault(text, split) == split, "a text is in two splits"
        return found

    def test_equal_texts_are_on_one_side(self, tmp_path: Path) -> None:
        some = texts(200, 1)
        sides = self.sides(tmp_path, labelled([*some, *some[::-1], *(text.upper() for text in some)]))
        assert 40 < Counter(sides.values())["validation"] < 80 and len(sides) == 200

    def test_other_rows_and_their_order_move_none(self, tmp_path: Path) -> None:
        some = texts(200, 1)
        before = self.sides(tmp_path, labelled(some))
        after = self.sides(tmp_path, labelled([*texts(50, 2), *some[::-1]]))
        assert {text: after[text] for text in before} == before and len(after) == 250

    def test_the_seed_decides(self, tmp_path: Path) -> None:
        rows = labelled(texts(200, 1))
        assert self.sides(tmp_path, rows) != self.sides(tmp_path, rows, "seed=1")

    def test_groups_are_on_one_side(self, tmp_path: Path) -> None:
        rows = [{**row, "author": f"name {i % 40}"} for i, row in enumerate(labelled(texts(400, 1)))]
        sides = self.sides(tmp_path, rows, group_column="author")
        of_author = {(row["author"], sides[normalized(row["text"])]) for row in rows}
        assert len(of_author) == 40 and {split for _, split in of_author} == {"train", "validation"}

    def test_rows_without_a_group_are_groups_of_their_own(self, tmp_path: Path) -> None:
        rows = [{**row, "author": None} for row in labelled(texts(200, 1))]
        assert 40 < Counter(self.sides(tmp_path, rows, group_column="author").values())["validation"] < 80

    def test_a_cluster_is_on_one_side_and_nothing_is_lost(self, tmp_path: Path) -> None:
        some = texts(200, 1)
        rows = labelled([*some, *map(edited, some), *some])
        sides = self.sides(tmp_path, rows)
        assert len(sides) == 400, "each text is in one of the two splits"
        assert all(sides[normalized(text)] == sides[normalized(edited(text))] for text in some)
        assert 70 < Counter(sides.values())["validation"] < 170

    def test_rows_that_are_added_move_no_cluster_that_they_do_not_join(self, tmp_path: Path) -> None:
        some = texts(200, 1)
        rows = labelled([*some, *map(edited, some)])
        before = self.sides(tmp_path, rows)
        after = self.sides(tmp_path, [*labelled([*texts(50, 2), *(f"{text} and so on" for text in some[:10])]), *rows])
        untouched = {normalized(text) for text in [*some[10:], *map(edited, some[10:])]}
        assert len(untouched) == 380 and all(before[text] == after[text] for text in untouched)

    @pytest.mark.parametrize("options", [{"group_column": "author"}, {}])
    def test_what_is_near_a_held_out_row_and_not_in_its_unit(self, tmp_path: Path, options: dict[str, str]) -> None:
        """With groups it is removed. Where leaks are not looked for, only rows with the same text are a unit."""
        some = texts(200, 1)
        rows = [{**row, "author": f"name {i}"} for i, row in enumerate(labelled([*some, *map(edited, some)]))]
        overrides = [] if options else ["data.dedup.leakage=off"]
        sides = self.sides(tmp_path, rows, *overrides, **options)
        near = [sides.get(normalized(edited(text))) for text in some if sides.get(normalized(text)) == "validation"]
        assert ("train" in near, None in near) == ((False, True) if options else (True, False))

    @pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
    def test_a_group_column_that_a_file_lacks(self, tmp_path: Path, ending: str) -> None:
        path = write_rows(tmp_path / "data" / f"a.{ending}", labelled(texts(9, 1)))
        config = make_config(tmp_path, {"train": path}, validation={"fraction": 0.3, "group_column": "authr"})
        with pytest.raises(DataError, match=rf"data\.validation\.group_column 'authr': {path} has no .* text, label"):
            prepare(config)

    def test_groups_need_a_fraction(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="group_column needs data.validation.fraction"):
            make_config(tmp_path, {"train": "a"}, validation={"path": "b", "group_column": "author"})


@pytest.mark.usefixtures("no_ray")
class TestWithinTraining:
    def test_rows_below_the_threshold_stay(self, tmp_path: Path) -> None:
        """They share keys, and the check finds that they are not near."""
        some = texts(40, 1)
        below = [" ".join([*text.split()[:21], *texts(1, i)[0].split()[:4]]) for i, text in enumerate(some, 100)]
        values = [jaccard(shingle_set(a), shingle_set(b)) for a, b in zip(some, below, strict=True)]
        keys = [set(row) for row in band_keys([*some, *below]).tolist()]
        assert sum(value < 0.8 and bool(keys[i] & keys[40 + i]) for i, value in enumerate(values)) > 20
        path = write_rows(tmp_path / "data" / "a.jsonl", labelled([*some, *below]))
        store = prepare(make_config(tmp_path, {"train": path}, dedup={"near": True}))
        assert len(removed(store)) == sum(value >= 0.8 for value in values)

    def rows(self) -> list[dict[str, Any]]:
        some = texts(90, 1)
        some[20], some[70] = some[5], edited(some[6])
        some[80] = edited(some[20])
        some[85] = some[86] = "so it goes"
        return labelled(some)

    @pytest.mark.parametrize(
        ("options", "gone"),
        [
            ({}, {}),
            ({"exact": True}, {21: "exact", 87: "exact"}),
            ({"near": True}, {21: "exact", 71: "near", 81: "near"}),
            ({"exact": True, "near": True}, {21: "exact", 71: "near", 81: "near", 87: "exact"}),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("num_files", [1, 4])
    def test_only_the_first_is_kept(
        self, tmp_path: Path, options: dict[str, bool], gone: dict[int, str], num_files: int
    ) -> None:
        rows, size = self.rows(), -(-90 // num_files)
        paths = [
            write_rows(tmp_path / "data" / f"{i}.jsonl", rows[i * size : (i + 1) * size]) for i in range(num_files)
        ]
        store = prepare(make_config(tmp_path, {"train": paths}, dedup=options))
        found = {paths.index(row["file"]) * size + row["row"]: row for row in removed(store)}
        assert {place: row["rule"] for place, row in found.items()} == gone
        assert num_samples(store) == {"train": 90 - len(gone)}
        if options.get("near"):
            assert found[81]["partner"] == f"{paths[5 // size]}:{5 % size + 1}", "the partner is a row that is kept"
        assert not (Path(store.root) / "work").exists()
        check_counts(store)

    @pytest.mark.parametrize("validation", [None, {"fraction": 0.3}])
    def test_ranges_of_keys_and_few_rows_do_not_matter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: dict[str, float] | None
    ) -> None:
        path = write_rows(tmp_path / "data" / "a.jsonl", self.rows())
        data = {"dedup": {"exact": True, "near": True}, "validation": validation}
        one = prepare(make_config(tmp_path, {"train": path}, f"data.prepared_path={tmp_path}/one", **data))
        monkeypatch.setattr("raytrain.data.stages.within_training.KEYS_PER_RANGE", 64)
        monkeypatch.setattr("raytrain.data.stages.duplicate_passes.FEW_KEYS", 0)
        many = prepare(make_config(tmp_path, {"train": path}, f"data.prepared_path={tmp_path}/many", **data))
        assert removed(one) == removed(many) and one.manifest.content == many.manifest.content

    def test_on_storage_that_can_not_rename(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An object store: the files of the passes are removed when the store is complete."""
        path = write_rows(tmp_path / "data" / "a.jsonl", self.rows())
        config = make_config(tmp_path, {"train": path}, dedup={"exact": True, "near": True})
        monkeypatch.setattr(Storage, "local_path", lambda *_: None)
        store = prepare(config)
        assert len(removed(store)) == 4
        assert not (Path(store.root) / "work").exists()
        assert [path.name for path in Path(store.root).parent.iterdir()] == [Path(store.root).name]

    def test_a_leak_is_no_partner(self, tmp_path: Path) -> None:
        """The second copy of a leak is a leak too, and not a duplicate of a row that is gone."""
        test, train = texts(20, 2), texts(40, 1)
        train[3] = train[30] = test[7]
        paths = {
            name: write_rows(tmp_path / "data" / f"{name}.jsonl", labelled(some))
            for name, some in (("train", train), ("test", test))
        }
        store = prepare(make_config(tmp_path, paths, dedup={"exact": True, "near": True}))
        assert [(row["row"], row["rule"]) for row in removed(store)] == [(4, "leakage"), (31, "leakage")]
        check_counts(store)
