"""data.clean: each rule on texts that it must change and on texts that it must not; every row accounted for. No Ray."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.config import (
    CleanConfig,
    LeakagePolicy,
    RunConfig,
    SequenceClassificationConfig,
    TokenClassificationConfig,
)
from raytrain.config.io import parse_config
from raytrain.data.encode import Encoder, Surveyor, report_of
from raytrain.data.fingerprint import fingerprint
from raytrain.data.readers.base import ROW, BadRow, as_column
from raytrain.data.sources import check_sources, read_tasks
from raytrain.data.stages import filters, packages, text_rules
from raytrain.data.stages.clean import Cleaner, clean_text
from raytrain.data.stages.counts import RowCounts, check_shares
from raytrain.data.stages.duplicates import Duplicates
from raytrain.data.stages.filters import c4, fineweb, fineweb_lines, gopher
from raytrain.data.stages.quarantine import Quarantine
from raytrain.data.stages.removed import REMOVED_NAME, SCHEMA, join_removed
from raytrain.errors import ConfigError, DataError
from raytrain.runs.preflight import resolve
from raytrain.storage import Storage
from raytrain.tasks import Task, make_task
from tests.tiny import TINY_BERT, tiny_tokenizer

REVIEWS = SequenceClassificationConfig(kind="sequence_classification")
PAIRS = SequenceClassificationConfig(kind="sequence_classification", text_pair_column="other")
TAGS = TokenClassificationConfig(kind="token_classification")
WORDS = "The plan of the town was to build a bridge over that river and to have it open with the spring fair ."
PAGE = (
    "The council met on Monday to hear what people have said about the bridge. Most of them agreed that the old one is "
    "too narrow for lorries, and a few worried about noise near the school. After two hours the members voted to ask "
    "an engineer for three drawings with prices. Nobody expects work to begin before autumn, when the river runs low "
    "and fewer visitors come through town on their way to the coast."
)


def cleaned(texts: list[Any], split: str = "train", task: Any = REVIEWS, **rules: Any) -> Any:
    column = "tokens" if task is TAGS else "text"
    rows = pa.table({column: texts, "label": ["a"] * len(texts), ROW: list(range(1, len(texts) + 1))})
    return Cleaner(CleanConfig(**rules), make_task(task, 32)).clean(rows, split)


def texts_of(found: Any) -> list[Any]:
    return found.table[found.table.column_names[0]].to_pylist()


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("nfc", "cafe\u0301", "caf\u00e9"),
        ("nfc", "\ufb01n \u201cquoted\u201d", "\ufb01n \u201cquoted\u201d"),
        ("mojibake", "caf\u00c3\u00a9 d\u00c3\u00a9j\u00c3\u00a0 vu", "caf\u00e9 d\u00e9j\u00e0 vu"),
        ("mojibake", "\u201cc\u2019est l\u2019\u00e9t\u00e9\u201d \uff21 &amp; \ufb01", None),
        ("mojibake", "\u4e2d\u6587\uff0c\u5168\u89d2", None),
        ("html", "<p>un<b>believ</b>able</p><p>AT&amp;T</p><script>x()</script>", "unbelievable\nAT&T"),
        ("html", "good<br /><br />not great", "good\n\nnot great"),
        ("html", "<table><tr><td>a</td><td>b</td></tr></table>", "a b"),
        ("html", "if a<b and c>d", None),
        ("html", "I <3 it, x < y > z, <unknown>tag</unknown>, List<int> </int>", None),
        ("html", "a <b only", None),
        ("control_characters", "a\x00b\x1b[31mred\x1b[0m\u200b\ufeff\tc\n", "abred\tc\n"),
        (
            "control_characters",
            "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f468\u200d\U0001f469",
            None,
        ),
        ("white_space", "  a \u00a0 b\t\r\n\r\n \n\nc  ", "a b\n\nc"),
    ],
)
def test_rules_that_change_a_text(rule: str, before: str, after: str | None) -> None:
    expected = before if after is None else after
    for split in ("train", "validation", "test"):
        found = cleaned([before], split, **{rule: True})
        assert texts_of(found) == [expected], split
        counts = found.counts.rules[rule]
        assert (counts.rows_in, counts.changed, counts.dropped, counts.rows_out) == (1, int(expected != before), 0, 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("see https://en.wikipedia.org/wiki/Ray_(fish)?a=b@c.de#x.", "see <url>."),
        ("(www.example.com), http://10.0.0.1:80/x!", "(<url>), <url>!"),
        ("mail Ann.B+c@mail.example.co.uk or mailto:x@y.org; @user a@b", "mail <email> or <email>; @user a@b"),
        ("from 192.168.0.1 to 255.255.255.255.", "from <ip> to <ip>."),
        ("256.1.1.1 1.2.3 1.2.3.4.5 12:30:45 std::abs a::b", None),
        ("fe80::1 and 2001:db8:0:0:0:0:2:1, ::1", "<ip> and <ip>, <ip>"),
    ],
)
def test_placeholders(before: str, after: str | None) -> None:
    """The same one wherever it occurs: which row comes first, and in which process, decides nothing."""
    found = cleaned([before, before], placeholders=["ip", "email", "url"])
    assert texts_of(found) == [after or before] * 2
    assert texts_of(cleaned([before], placeholders=["url"])) != [after] or "<email>" not in (after or "")


def test_rules_come_in_their_order_whatever_the_order_in_the_config() -> None:
    rules: dict[str, Any] = {"max_words": 3, "white_space": True, "placeholders": ["url"], "html": True}
    found = cleaned(['<a href="http://x.org/a b">http://x.org/a</a>   <b>is</b>  good'], **rules)
    assert texts_of(found) == ["<url> is good"]
    assert list(found.counts.rules) == ["html", "placeholders", "white_space", "length"]


@pytest.mark.parametrize(
    ("rules", "kept", "reasons"),
    [
        ({"min_characters": 3, "max_characters": 5}, ["abc", "abcde"], ["min_characters", "max_characters"]),
        ({"min_words": 2, "max_words": 3}, ["a b"], ["min_words", "min_words", "min_words", "max_words"]),
    ],
)
def test_lengths(rules: dict[str, int], kept: list[str], reasons: list[str]) -> None:
    texts = ["ab", "abc", "abcde", "abcdef"] if "min_characters" in rules else ["ab", "abc", "x", "a b", "a b c d"]
    found = cleaned(texts, **rules)
    assert texts_of(found) == kept and [rule for _, rule in found.removed] == reasons
    assert found.counts.reasons == {reason: reasons.count(reason) for reason in reasons}
    assert [texts[row - 1] for row, _ in found.removed] == [text for text in texts if text not in kept]


def test_language() -> None:
    texts = [
        "The weather was lovely and we walked along the river.",
        "Das Wetter war sehr schön und wir gingen spazieren.",
    ]
    texts += [
        "Il faisait très beau et nous avons marché le long de la rivière.",
        "12:30 !!" * 9,
        "Spiderman ROCKS",
        None,
    ]
    texts.append(" " * 250 + texts[1])
    found = cleaned(texts, languages=["en", "fr"])
    assert texts_of(found) == [texts[0], *texts[2:-1]]
    assert found.removed == [(2, "languages.de"), (7, "languages.de")]
    with pytest.raises(ConfigError, match="data.clean.languages: 'xx' is not known; allowed: .*en"):
        cleaned([""], languages=["xx"])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_rows_of_other_splits_are_changed_and_never_dropped(split: str) -> None:
    texts = ["short", "<b></b>", "<i>a</i> text", "x" * 99]
    rules: dict[str, Any] = {
        "html": True,
        "min_words": 2,
        "max_characters": 20,
        "preset": "gopher",
        "languages": ["de"],
    }
    found = cleaned(texts, split, **rules)
    assert texts_of(found) == ["short", "<b></b>", "a text", "x" * 99]
    assert not found.removed and not found.counts.reasons and list(found.counts.rules) == ["html"]


def test_a_text_of_which_nothing_is_left() -> None:
    found = cleaned(["<b> </b>", "<b>a</b>", "\x00\x01", "", "   "], html=True, control_characters=True)
    assert found.removed == [(1, "html.empty"), (3, "control_characters.empty")]
    assert texts_of(found) == ["a", "", "   "], "what was empty before is the task's to refuse"


def test_a_text_at_prediction_time_comes_out_as_in_training() -> None:
    rules: dict[str, Any] = {
        "nfc": True,
        "mojibake": True,
        "html": True,
        "placeholders": ["email"],
        "white_space": True,
    }
    clean = CleanConfig(**rules, control_characters=True, min_words=50, languages=["de"], preset="gopher")
    texts = ["cafe\u0301 \x00 a@b.org", "caf\u00c3\u00a9 <b>noir</b>", "<b></b>", "\x00"]
    assert [clean_text(text, clean) for text in texts] == texts_of(
        cleaned(texts, "test", **rules, control_characters=True)
    )
    assert clean_text(texts[1], clean) == "caf\u00e9 noir"


def test_values_that_are_no_text_are_left_to_the_task() -> None:
    rows = pa.table({"text": as_column([5, None, "a  b", ["c"]]), "label": ["a"] * 4, ROW: [1, 2, 3, 4]})
    found = Cleaner(CleanConfig(white_space=True, min_words=1), make_task(REVIEWS, 32)).clean(rows, "train")
    assert texts_of(found) == [5, None, "a b", ["c"]]


def test_either_text_of_a_pair_decides() -> None:
    rows = pa.table({"text": ["a b", "a b", "a"], "other": ["c", "c d", None], "label": ["x"] * 3, ROW: [1, 2, 3]})
    found = Cleaner(CleanConfig(min_words=2), make_task(PAIRS, 32)).clean(rows, "train")
    assert found.table["other"].to_pylist() == ["c d"] and [row for row, _ in found.removed] == [1, 3]


class TestTags:
    def test_words_keep_their_number(self) -> None:
        words = ["cafe\u0301", "http://a.b/c", "\x00", "caf\u00c3\u00a9", "a\u200bb"]
        rules: dict[str, Any] = {"nfc": True, "mojibake": True, "placeholders": ["url"], "control_characters": True}
        found = cleaned([words], task=TAGS, **rules)
        assert texts_of(found) == [["caf\u00e9", "<url>", "\x00", "caf\u00e9", "ab"]]

    def test_length_counts_the_words(self) -> None:
        found = cleaned([["a"], ["a", "b"]], task=TAGS, min_words=2)
        assert texts_of(found) == [["a", "b"]] and found.removed == [(1, "min_words")]

    @pytest.mark.parametrize("rule", [{"html": True}, {"white_space": True}, {"preset": "c4"}])
    def test_what_would_move_tags_is_refused(self, rule: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"data.clean.{next(iter(rule))} can't be used for words with tags"):
            cleaned([["a"]], task=TAGS, **rule)


def test_a_task_without_texts() -> None:
    class Own(type(make_task(REVIEWS, 32))):  # type: ignore[misc]
        def text_columns(self) -> list[str]:
            return []

    with pytest.raises(ConfigError, match=r"data.clean.nfc needs texts, .*text_columns"):
        Cleaner(CleanConfig(nfc=True), Own(REVIEWS, 32))


class TestPresets:
    """Each number of the papers, on both sides of it."""

    @pytest.mark.parametrize(
        ("text", "broken"),
        [
            (PAGE, ""),
            (WORDS, "gopher.words"),
            (" ".join(["a"] * 60), "gopher.mean_word"),
            (PAGE + " #" * 20, "gopher.symbols"),
            ("- " + PAGE.replace(". ", ".\n- "), "gopher.bullets"),
            (PAGE.replace(". ", "...\n"), "gopher.ellipses"),
            (PAGE + " 1234" * 30, "gopher.letters"),
            (" ".join(f"word{i}" for i in range(60)), "gopher.stop_words"),
            (PAGE + "\n" + PAGE, "gopher.repeated_lines"),
            (PAGE + " the old mill" * 9, "gopher.top_3_grams"),
            (PAGE + " " + PAGE, "gopher.repeated_5_grams"),
        ],
    )
    def test_gopher(self, text: str, broken: str) -> None:
        assert gopher(text) == broken

    def test_c4(self) -> None:
        lines = [f"This is sentence number {i} of it." for i in range(5)]
        menu = ["Home", "Log in to your account", "Enable JavaScript to see this page.", "Read our privacy policy."]
        assert c4("\n".join([*menu, *lines])) == ("\n".join(lines), "")
        assert c4("\n".join(lines[:4]))[1] == "c4.sentences"
        assert c4("\n".join([*lines, "Lorem ipsum dolor."]))[1] == "c4.lorem_ipsum"
        assert c4("\n".join([*lines, "f() { }"]))[1] == "c4.curly_bracket"
        assert c4("\n".join([*lines, f"One {'x' * 1001} word."]))[0] == "\n".join(lines)
        assert c4("\n".join([*lines, "A line without an end"]), line_ends=False)[0].endswith("an end")

    def test_fineweb(self) -> None:
        more = ["A small boat lay at the quay that night.", "Who would pay for it was left open.", "It rained hard."]
        more += ["Two dogs barked at a passing train in the dark.", "The mayor went home on foot, as he always does."]
        page = "\n".join([PAGE, *more])
        assert fineweb(page) == (page, "")
        assert fineweb(page.replace(".", ","))[1] == "fineweb.line_ends"
        short = "\n".join(f"{what} is not a park" for what in PAGE.split()[:40])
        assert fineweb_lines(f"{page}\n{short}") == "fineweb.short_lines"
        assert fineweb_lines(f"{page}\n{more[0]}") == "fineweb.repeated_lines"
        assert fineweb_lines("\n" * 60 + page) == "fineweb.new_lines"

    def test_one_preset_for_web_pages_drops_nearly_all_short_texts(self) -> None:
        found = cleaned([f"{WORDS} {i}" for i in range(20)], preset="gopher")
        assert found.counts.reasons == {"gopher.words": 20}
        with pytest.raises(
            DataError, match=r"data.clean drops 20 of 20 rows of data.train.*gopher.words 20.*made for web pages"
        ):
            check_shares("data.train", [RowCounts(20, reasons=found.counts.reasons)], 0.5, 0.01)


FUNCTIONS = """
from somewhere.helper import LIMIT

def short(row):
    return row if len(row["text"]) < LIMIT else None

def upper(row):
    row["text"] = row["text"].upper()
    return row

def by_kind(row):
    kind = row["text"]
    if kind == "raise":
        return row["nothing"]
    if kind == "drop":
        return None
    if kind == "change":
        return {**row, "text": "changed", "label": "b"}
    odd = {"list": [], "text": "ok", "lacks": {"text": "a"}, "more": {**row, "x": 1}, "set": {**row, "text": {1}}}
    odd["half"] = {**row, "text": "\\ud800"}
    return odd.get(kind, row)

def raises(row):
    raise ValueError("never works")

LIST = []
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the user's in the folder of the command."""
    folder = tmp_path / "somewhere"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("LIMIT = 4\n")
    (folder / "rules.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "somewhere"]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
class TestCustom:
    def test_drops_training_rows_alone(self) -> None:
        texts = ["abc", "abcde"]
        found = cleaned(texts, custom="somewhere.rules:short")
        assert texts_of(found) == ["abc"] and found.removed == [(2, "custom")]
        assert texts_of(cleaned(texts, "test", custom="somewhere.rules:short")) == texts

    def test_changes_rows_of_every_split(self) -> None:
        for split in ("train", "validation"):
            found = cleaned(["a", "B"], split, custom="somewhere.rules:upper")
            assert texts_of(found) == ["A", "B"] and found.counts.rules["custom"].changed == 1

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("raise", "failed: KeyError: 'nothing' (.*rules.py, line 14)"),
            ("list", "returned a list where a row"),
            ("text", "returned a str where a row"),
            ("lacks", "a row without the column 'label'"),
            ("more", "a row with another column, 'x'; its columns: 'text', 'label'"),
            ("set", "a row whose text is of type set"),
            ("half", "a row whose text has half a surrogate pair"),
        ],
    )
    def test_nonsense_costs_its_row(self, kind: str, reason: str) -> None:
        found = cleaned(["good", kind, "change", "drop"], custom="somewhere.rules:by_kind")
        assert texts_of(found) == ["good", "changed"] and found.table["label"].to_pylist() == ["a", "b"]
        ((row, why, values),) = found.failed
        pattern = re.escape(reason).replace(r"\.\*", ".*")
        assert row == 2 and values == {"text": kind, "label": "a"} and re.search(pattern, why), why
        one = found.counts.rules["custom"]
        assert (one.rows_in, one.changed, one.dropped, one.failed, one.rows_out) == (4, 1, 1, 1, 2)

    @pytest.mark.parametrize(
        ("target", "says"),
        [
            ("somewhere.rules:shrt", "data.clean.custom somewhere.rules:shrt: .*has no 'shrt'; did you mean short?"),
            ("nowhere:f", "data.clean.custom nowhere:f: there is no module 'nowhere'"),
            ("somewhere.rules:LIST", "is not a function"),
        ],
    )
    def test_a_function_that_is_not_there(self, target: str, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            cleaned(["a"], custom=target)

    def test_the_hash_is_of_the_whole_package(self, package: Path, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n')
        raw = run_config(tmp_path, "unused", custom="somewhere.rules:short")
        first = resolve(RunConfig.model_validate(raw)).data.clean
        assert first is not None and first.custom_source is not None
        (package / "helper.py").write_text("LIMIT = 5\n")
        second = resolve(RunConfig.model_validate(raw)).data.clean
        assert second is not None and second.custom_source != first.custom_source
        with pytest.raises(ConfigError, match="not those that the run was started with"):
            Cleaner(first, make_task(REVIEWS, 32))


def run_config(folder: Path, tokenizer: str, data: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "task": {"kind": "sequence_classification"},
        "model": {"config": TINY_BERT, "tokenizer": tokenizer},
        "data": {
            "train": {"path": str(folder / "a.jsonl")},
            "max_length": 32,
            **(data or {}),
            **({"clean": rules} if rules else {}),
        },
    }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def encoded(raw: dict[str, Any], folder: Path) -> tuple[list[dict[str, Any]], Task, Any]:
    """The reports of the read tasks, as PREPARE's processes make them."""
    config = RunConfig.model_validate(raw)
    task = make_task(config.task, config.data.max_length)
    tasks = read_tasks(check_sources(config.data, task))
    rows = [{"ordinal": i, "task": json.dumps(asdict(one))} for i, one in enumerate(tasks)]
    plain = config.model_dump(mode="json", exclude_unset=True)
    none = Duplicates(LeakagePolicy.OFF, str(folder))
    state = task.state_from([s for row in rows for s in report_of(Surveyor(plain, none)(row))["surveys"]])
    reports = [report_of(Encoder(plain, state, str(folder), 16, none)(row)) for row in rows]
    return reports, task, state


@pytest.mark.usefixtures("package")
class TestEveryRow:
    def rows(self, folder: Path) -> dict[int, str]:
        """Row of a.jsonl -> what becomes of it."""
        kinds = ["keep", "raise", "drop", "html", "short", "broken", "no label"]
        fate, lines = {}, []
        for i in range(70):
            kind = kinds[i % 7]
            text = {"html": "<b></b>", "short": "x", "keep": f"a fine text {i}"}.get(kind, kind)
            label = None if kind == "no label" else ("y" if kind == "short" else "x" if i % 2 else "z")
            lines.append("{broken" if kind == "broken" else json.dumps({"text": text, "label": label}))
            fate[i + 1] = kind
        (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
        return fate

    @pytest.mark.parametrize("fraction", [None, 0.3])
    def test_is_kept_dropped_or_quarantined(self, tmp_path: Path, tokenizer: str, fraction: float | None) -> None:
        fate = self.rows(tmp_path)
        data = {"on_error": "quarantine", "validation": fraction and {"fraction": fraction}}
        rules: dict[str, Any] = {"html": True, "min_characters": 2, "custom": "somewhere.rules:by_kind"}
        (report,), _, state = encoded(run_config(tmp_path, tokenizer, data, **rules), tmp_path / "store")
        assert "y" not in state["labels"] or fraction, "labels of dropped rows are not learned"
        store = Storage(str(tmp_path / "store"))
        store.write_bytes(REMOVED_NAME, join_removed(store, [report["removed"]]))
        removed = pq.read_table(tmp_path / "store" / "removed.parquet")
        assert removed.schema == SCHEMA
        (file,) = (tmp_path / "store" / "quarantine").glob("*.jsonl")
        quarantined = [json.loads(line) for line in file.read_text().splitlines()]
        seen = {row["row"]: row["rule"] for row in removed.to_pylist()}
        counts = {split: RowCounts.from_json(raw) for split, raw in report["counts"].items()}
        assert sum(one.read for one in counts.values()) == 70
        assert sum(one.dropped for one in counts.values()) == len(seen) == removed.num_rows
        assert sum(one.quarantined for one in counts.values()) == len(quarantined)
        assert sum(one.kept for one in counts.values()) == sum(
            sum(item["part"]["row_group_rows"]) for item in report["written"]
        )
        expected = {"drop": "custom", "html": "html.empty", "short": "min_characters"}
        if fraction is None:
            assert seen == {row: expected[kind] for row, kind in fate.items() if kind in expected}
        else:
            assert all(seen[row] == expected[fate[row]] for row in seen)
            assert not counts["validation"].dropped and counts["validation"].kept
        assert {row["row"]: row["code"] for row in quarantined} == {
            row: {"raise": "custom", "broken": "unreadable", "no label": "bad_target"}[kind]
            for row, kind in fate.items()
            if kind in ("raise", "broken", "no label")
        }
        by_row = {row["row"]: row["data"] for row in quarantined}
        assert (by_row[6], by_row[2]["text"], by_row[7]["text"]) == ("{broken\n", "raise", "no label")

    def test_fails_at_a_row_that_the_function_can_not_use(self, tmp_path: Path, tokenizer: str) -> None:
        self.rows(tmp_path)
        with pytest.raises(DataError, match=r"a.jsonl, row 2: data.clean.custom somewhere.rules:by_kind failed") as one:
            encoded(run_config(tmp_path, tokenizer, custom="somewhere.rules:by_kind"), tmp_path / "store")
        assert "data.on_error=quarantine" in str(one.value)

    def test_a_function_that_fails_on_every_row_is_to_blame(self, tmp_path: Path, tokenizer: str) -> None:
        self.rows(tmp_path)
        lines = [json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) for i in range(20)]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        with pytest.raises(DataError, match="never works.*Correct the function"):
            encoded(run_config(tmp_path, tokenizer, custom="somewhere.rules:raises"), tmp_path / "store")


class TestShares:
    @pytest.mark.parametrize(
        ("read", "dropped", "quarantined", "says"),
        [
            (100, 50, 1, ""),
            (100, 51, 0, "data.clean drops 51 of 100 rows of data.train, more than data.clean.max_dropped 0.5"),
            (100, 0, 2, "2 of 100 rows of data.train can't be used, more than data.max_quarantined 0.01 allows"),
            (0, 0, 0, ""),
        ],
    )
    def test_of_a_source(self, read: int, dropped: int, quarantined: int, says: str) -> None:
        counts = RowCounts(read, quarantined)
        counts.reasons["min_words"] = dropped
        halves = [RowCounts(read // 2), RowCounts(read - read // 2, quarantined)]
        halves[0].reasons["min_words"] = dropped  # a fraction that is held out is of the same source
        for given in ([counts], halves):
            if not says:
                check_shares("data.train", given, 0.5, 0.01)
                continue
            with pytest.raises(DataError) as refusal:
                check_shares("data.train", given, 0.5, 0.01, ["2 x unreadable: broken (a, row 1)"])
            assert "web pages" not in str(refusal.value)
            assert says in str(refusal.value) and refusal.value.exit_code == 2
            assert ("min_words 51" in str(refusal.value)) == bool(dropped)
            assert ("2 x unreadable" in str(refusal.value)) == bool(quarantined)


def test_many_quarantined_rows_do_not_wait_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.data.stages.quarantine.FILE_CHARACTERS", 1_000)
    quarantine = Quarantine(Storage(str(tmp_path)), 7)
    for row in range(10):
        quarantine.add([("train", BadRow("a", row, "broken", data="x" * 600))])
    tally = quarantine.close()
    files = sorted((tmp_path / "quarantine").iterdir())
    rows = [json.loads(line)["row"] for file in files for line in file.read_text().splitlines()]
    assert (tally.count(), rows, len(files)) == (10, list(range(10)), 5)


def test_counts_survive_the_manifest() -> None:
    found = cleaned(["<b>a</b>", "x  y", "<b></b>"], html=True, white_space=True)
    found.counts.read = 3
    again = RowCounts.from_json(json.loads(json.dumps(found.counts.to_json())))
    assert again.to_json() == found.counts.to_json()
    assert again.sentence() == "3 rows read, 1 dropped (html.empty 1), 2 kept; changed: html 1, white_space 1"


def test_versions_of_packages_are_in_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(version: str, **rules: Any) -> str:
        monkeypatch.setattr(packages, "version", lambda package: version)
        return fingerprint(RunConfig.model_validate(run_config(tmp_path, "t", **rules)), {}, "t", 16)

    assert of("1", mojibake=True) != of("2", mojibake=True)
    assert of("1", white_space=True) == of("2", white_space=True)
    assert of("1") == of("2") != of("1", white_space=True)


@pytest.mark.parametrize(
    ("module", "rules"),
    [("ftfy", {"mojibake": True}), ("selectolax.lexbor", {"html": True}), ("py3langid.langid", {"languages": ["en"]})],
)
def test_a_package_that_is_missing(module: str, rules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    text_rules._ftfy.cache_clear()
    filters._identifier.cache_clear()
    name = next(iter(rules))
    with pytest.raises(ConfigError, match=rf"data.clean.{name} needs the package .*raytrain\[clean\]"):
        cleaned(["a"], **rules)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.clean={}", "data.clean names no rule: give one of nfc, mojibake"),
        ("data.clean.max_dropped=0.9", "data.clean names no rule"),
        ("data.clean={min_words: 5, max_words: 4}", "data.clean.min_words 5 is above data.clean.max_words 4"),
        ("data.clean.languages=[english]", "two or three lower-case letters"),
        ("data.clean.languages=[]", "data.clean.languages is empty"),
        ("data.clean.custom=module.function", "must be a function, as package.module:function"),
        ("data.clean={nfc: true, max_dropped: 1.5}", "data.clean.max_dropped: must be at most 1"),
        ("data.max_quarantined=-1", "data.max_quarantined: must be at least 0"),
        ("data.clean.placeholders=[phone]", "must be 'url', 'email' or 'ip'"),
    ],
)
def test_options_that_can_not_be_right(tmp_path: Path, change: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config(run_config(tmp_path, "t"), [change])
    assert says in str(refusal.value)
