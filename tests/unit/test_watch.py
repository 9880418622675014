"""`raytrain watch`: each text is counted once, also after a kill; rules begin and end; webhooks hear of it. No Ray."""

import contextlib
import http.server
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from saved_models import model_config, save_best
from tiny import make_reviews

from raytrain.errors import ConfigError
from raytrain.inference.card import find_model, read_card
from raytrain.inference.predictor import Predictor
from raytrain.watching import webhook as webhook_module
from raytrain.watching.files import MOST_LINE_BYTES, Files
from raytrain.watching.journal import Journal
from raytrain.watching.rules import Alarm, Change, parse_rule
from raytrain.watching.shares import MOST_PERIODS, Shares
from raytrain.watching.watch import WatchRequest, watch_source

KILLS = 20
LABELS = ["negative", "very positive"]
TEXTS = [row["text"] for row in make_reviews(900, seed=5)]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    config = model_config(folder, {"kind": "sequence_classification"})
    return save_best(config, {"labels": LABELS}, folder)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def predicted(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "predictions").glob("*.jsonl")) for row in lines_of(path)]


def write_jsonl(path: Path, texts: list[str], mode: str = "w") -> Path:
    with path.open(mode) as file:
        file.writelines(f"{json.dumps({'text': text})}\n" for text in texts)
    return path


def once(best: str, source: Path, out: Path, *alerts: str, **options: Any) -> Any:
    return watch_source(best, WatchRequest(str(source), str(out), alerts, is_once=True, **options))


class TestRules:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("negative above 30%", "is not a rule: write LABEL > NUMBER% of WINDOW"),
            ("negative > 30 of 500", "is not a rule"),
            ("negative >= 30% of 500", "has no label|is not a rule"),
            ("negativ > 30% of 500", "no label 'negativ'; it has 'negative', 'very positive'; did you mean negative"),
            ("negative > 100% of 500", "can never hold: with > the percentage is from 0 to less than 100"),
            ("negative < 0% of 500", "can never hold: with < the percentage is more than 0"),
            ("negative > 30% of 0", "the window is 0; allowed is more than 0, and 100,000 texts at most"),
            ("negative > 30% of 31d", "the window is 31d; allowed is more than 0, and 30d at most"),
            ("", "is not a rule"),
        ],
    )
    def test_what_is_not_a_rule(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            parse_rule(text, LABELS)

    def test_labels_may_have_blanks(self) -> None:
        rule = parse_rule(" very positive<2.5%  of 15m ", LABELS)
        assert (rule.label, rule.is_above, float(rule.limit), rule.seconds) == ("very positive", False, 0.025, 900)
        assert parse_rule(rule.text, LABELS) == rule

    @pytest.mark.parametrize("text", ["negative > 30% of 50", "negative < 60% of 50", "negative > 0% of 50"])
    def test_windows_of_texts_are_those_of_a_recount(self, text: str) -> None:
        """One event when it begins and one when it ends, though the share moves about the limit."""
        rule, rng, seen, events = parse_rule(text, LABELS), random.Random(1), list[bool](), list[str]()
        alarm, holds = Alarm(rule), False
        for number in range(2000):
            seen.append(rng.random() < (0.45 if number // 500 % 2 else 0.2))
            change = alarm.add(["negative"] if seen[-1] else ["very positive"], number)
            hits, margin = sum(seen[-50:]), min(rule.limit, 1 - rule.limit) / 10
            assert alarm.num_hits == hits
            if len(seen) >= 50:
                share = rule.limit.from_float(0) + hits / rule.limit.from_float(50)
                above = share > (rule.limit - margin if holds else rule.limit)
                below = share < (rule.limit + margin if holds else rule.limit)
                now = above if rule.is_above else below
                assert (change is None) == (now == holds)
                holds = now
            events += [str(change)] * (change is not None)
            if number % 97 == 0:  # continued by another process
                again = Alarm(rule, json.loads(json.dumps(alarm.to_json())))
                again.refill([["negative"] if hit else [] for hit in seen])
                alarm = again
        assert events == (["begins", "ends"] * len(events))[: len(events)]
        if rule.is_above and rule.limit:
            assert len(events) < 12

    def test_a_window_of_time(self) -> None:
        alarm = Alarm(parse_rule("negative > 50% of 1m", LABELS))
        assert [alarm.add(["negative"], 1000.0 + i) for i in range(9)] == [None] * 9, "too few texts"
        assert alarm.add(["negative"], 1010.0) == "begins"
        assert alarm.pass_time(1050.0) is None
        assert [alarm.add(["very positive"], 1055.0) for _ in range(14)].count(Change.ENDS) == 1
        alarm.pass_time(2000.0)
        assert (alarm.num_texts, alarm.num_hits) == (0, 0)


def test_shares_do_not_grow() -> None:
    shares, rng = Shares(100), random.Random(0)
    for number in range(20_000):
        shares.add([rng.choice(LABELS)], number * 7.0)
        if number % 5000 == 0:
            shares = Shares(100, json.loads(json.dumps(shares.to_json())))
    assert len(shares.periods) <= MOST_PERIODS and len(shares.last) == 100
    assert sum(texts for _, texts, _ in shares.periods) == sum(shares.total.values()) == 20_000
    assert all(begin % shares.period_s == 0 for begin, _, _ in shares.periods)


class TestFiles:
    @pytest.fixture
    def read(self, tmp_path: Path) -> Callable[..., list[str]]:
        """Reads what is new; each call is another process, which knows only what was kept."""
        self.kept: Any = None
        self.notes: list[str] = []

        def read(source: Path, *, is_last: bool = False, most: int = 1000) -> list[str]:
            files = Files(str(source), self.kept)
            found = [line.refused or line.data.decode() for line in files.lines(most, is_last=is_last)]
            self.kept = json.loads(json.dumps(files.to_json()))
            self.notes = files.notes
            return found

        return read

    def test_a_file_that_grows(self, tmp_path: Path, read: Any) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": 1}\n\n{"a": ')
        assert read(path) == ['{"a": 1}']
        path.open("a").write("2}\n[3]\n")
        assert read(path, most=1) == ['{"a": 2}'] and read(path) == ["[3]"] and read(path) == []

    def test_a_last_line_without_its_end(self, tmp_path: Path, read: Any) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": 1}\n{"a": 2}')
        assert read(path) == ['{"a": 1}'], "more may follow at once"
        assert read(path, is_last=True) == ['{"a": 2}'] and read(path, is_last=True) == []
        path.open("a").write("\n")
        assert read(path) == []
        path.open("a").write('{"a": 3}\n')
        assert read(path) == ['{"a": 3}']
        path.open("a").write('{"a": 4}')
        assert read(path, is_last=True) == ['{"a": 4}']
        path.open("a").write(' junk\n{"a": 5}\n')
        assert read(path) == ["text was added to a line that was complete", '{"a": 5}']

    def test_rotation(self, tmp_path: Path, read: Any) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", ["1", "2"])
        assert len(read(path)) == 2
        write_jsonl(path, ["3"], "a")
        path.rename(tmp_path / "a.jsonl.1")
        write_jsonl(path, ["4"])
        assert sorted(read(path)) == ['{"text": "3"}', '{"text": "4"}'] and read(path) == []
        shutil.copy(path, tmp_path / "a.jsonl.2")  # and truncated, where its writer keeps it open
        path.write_text("")
        assert read(path) == []
        write_jsonl(path, ["5"], "a")
        assert read(path) == ['{"text": "5"}'] and self.notes == []

    def test_truncation(self, tmp_path: Path, read: Any) -> None:
        path = write_jsonl(tmp_path / "a.jsonl", ["1", "2", "3"])
        assert len(read(path)) == 3
        write_jsonl(path, ["9"])
        assert read(path) == ['{"text": "9"}'] and "was truncated or written anew" in self.notes[0]
        write_jsonl(path, ["7", "8", "6", "5"])  # longer than before
        assert len(read(path)) == 4

    def test_a_folder(self, tmp_path: Path, read: Any) -> None:
        write_jsonl(tmp_path / "b.jsonl", ["2"])
        write_jsonl(tmp_path / ".hidden.jsonl", ["0"])
        write_jsonl(tmp_path / "c.jsonl.tmp", ["0"])
        (tmp_path / "a.txt").write_text("one\n\ntwo\nthr")
        assert read(tmp_path) == ["one", "two", '{"text": "2"}']
        (tmp_path / "c.jsonl.tmp").rename(tmp_path / "c.jsonl")
        (tmp_path / "b.jsonl").rename(tmp_path / "z.jsonl")
        shutil.copy(tmp_path / "a.txt", tmp_path / "copy")
        (tmp_path / "copy").rename(tmp_path / "a.txt")  # as an editor saves
        assert read(tmp_path) == ['{"text": "0"}']

    def test_names_of_one_file_are_not_mixed_up(self, tmp_path: Path, read: Any) -> None:
        write_jsonl(tmp_path / "a.jsonl", ["1"])
        os.link(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
        assert len(read(tmp_path)) == 2
        write_jsonl(tmp_path / "a.jsonl", ["2"], "a")
        assert len(read(tmp_path)) == 2 and read(tmp_path) == []

    def test_what_is_not_read_is_told(self, tmp_path: Path, read: Any) -> None:
        (tmp_path / "a.csv").write_text("text\na\n")
        (tmp_path / "b.txt").write_text("one\ntwo")
        assert read(tmp_path) == ["one"] and self.notes == [
            f"not read, since only .jsonl, .ndjson, .txt are: {tmp_path}/a.csv"
        ]
        assert read(tmp_path, is_last=True) == ["two"] and read(tmp_path, is_last=True) == []

    def test_a_line_that_is_too_long(self, tmp_path: Path, read: Any) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"a": "' + b"x" * (MOST_LINE_BYTES + 9))
        assert read(path) == ["it is longer than 16 MiB"] and read(path) == []
        path.open("a").write('xx"}\n{"a": 1}\n')
        assert read(path) == ['{"a": 1}']


def test_predictions_are_those_of_the_model(best: str, tmp_path: Path) -> None:
    import raytrain

    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_jsonl(source / "a.jsonl", TEXTS[:80])
    (source / "b.txt").write_text("\ufeffa good film\r\n\na dull plot\n")
    (source / "b.txt").open("ab").write(b"caf\xe9\n")
    (source / "c.jsonl").write_text('{"text": "a", "n": 1}\n{"txt": "b"}\nno\n[1]\n{"text": ""}\n{"text": 5}\n')
    found = once(best, source, out, "negative > 1% of 80")
    rows, refused = predicted(out), lines_of(out / "quarantined.jsonl")
    model = raytrain.load(best, device="cpu")
    answers = model([row["data"]["text"] for row in rows])
    assert [row["predicted_label"] for row in rows] == [one["predicted_label"] for one in answers]
    assert [row["row"] for row in rows] == [*range(1, 81), 1, 3, 1]
    assert (found.num_texts, found.num_quarantined) == (83, 6)
    assert [(os.path.basename(row["file"]), row["row"]) for row in refused] == [
        ("b.txt", 4),
        *(("c.jsonl", row) for row in (2, 3, 4, 5, 6)),
    ]
    assert refused[2]["data"] == "no" and refused[1]["data"] == {"txt": "b"}
    assert [row["data"] for row in rows[-3:]] == [
        {"text": "a good film"},
        {"text": "a dull plot"},
        {"text": "a", "n": 1},
    ]
    page = (out / "watch.html").read_text()
    assert "negative &gt; 1% of 80" in page and 'http-equiv="refresh"' in page and page.count("data:image/png") == 2
    assert once(best, source, out).num_texts == 83, "nothing is counted twice"
    write_jsonl(source / "a.jsonl", TEXTS[80:90], "a")
    assert once(best, source, out, "negative > 1% of 80").num_texts == 93
    assert {event["id"] for event in lines_of(out / "alerts.jsonl")} == {1}


WATCH = """
import os, sys
import torch
from raytrain.inference.card import find_model, read_card
from raytrain.inference.predictor import Predictor
from raytrain.watching import watch

torch.set_num_threads(1)
loaded = Predictor.load(read_card(find_model(sys.argv[1])), (), "cpu")
watch.Predictor.load = lambda *_: loaded
watch._Watch._write_page = lambda *_, **__: None  # drawn for longer than a process lives here
rules = ("negative > 40% of 50", "very positive < 60% of 50")
for _ in sys.stdin:
    if not (child := os.fork()):
        watch.watch_source(sys.argv[1], watch.WatchRequest(*sys.argv[2:4], rules, interval_s=0.01))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_a_watch_that_is_killed_again_and_again(best: str, tmp_path: Path) -> None:
    """Texts are written meanwhile, the file rotates, and the process dies at any moment."""
    rng, folder, out = random.Random(3), tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    source = write_jsonl(folder / "in.jsonl", [])
    words = [sys.executable, "-c", WATCH, best, str(folder), str(out)]
    starter = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert starter.stdin is not None and starter.stdout is not None

    def asked() -> int:
        assert starter.stdout is not None
        while not (line := starter.stdout.readline().strip()).isdecimal():  # DeepSpeed prints
            assert starter.poll() is None
        return int(line)

    number = 0
    for kill in range(KILLS + 1):
        starter.stdin.write("\n")
        starter.stdin.flush()
        child, end_s = asked(), time.monotonic() + 0.25 * rng.random()
        while time.monotonic() < end_s:
            line = json.dumps({"text": TEXTS[number % 900], "n": number}) + "\n"
            cut = rng.randrange(len(line))
            with source.open("a") as file:
                file.write(line[:cut])
                file.flush()
                time.sleep(0.001)
                file.write(line[cut:])
            number += 1
            if rng.random() < 0.003:
                source.rename(folder / f"in-{number}.jsonl")
                write_jsonl(source, [])
        while kill == KILLS and number_of_texts(out) < number:
            assert time.monotonic() < end_s + 60
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL if kill < KILLS else signal.SIGTERM)
        assert asked() == (signal.SIGKILL if kill < KILLS else 0)
    starter.stdin.close()
    starter.wait(30)
    once(best, folder, out, "negative > 40% of 50", "very positive < 60% of 50")
    rows = predicted(out)
    assert sorted(row["data"]["n"] for row in rows) == list(range(number))
    assert number_of_texts(out) == number > 200
    alarm, events = Alarm(parse_rule("negative > 40% of 50", LABELS)), list[tuple[int, str]]()
    for place, row in enumerate(rows, 1):
        if change := alarm.add([row["predicted_label"]], 0.0):
            events.append((place, str(change)))
    told = [event for event in lines_of(out / "alerts.jsonl") if event["label"] == "negative"]
    assert [(event["texts"], event["event"]) for event in told] == events != []


def number_of_texts(out: Path) -> int:
    return int(json.loads((out / "watch.json").read_text())["state"].get("shares", {"texts": 0})["texts"])


def test_a_step_that_was_cut_off_is_done_again(best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of its writes: what was appended does not count before the state is there."""
    loaded = Predictor.load(read_card(find_model(best)), (), "cpu")
    monkeypatch.setattr(Predictor, "load", lambda *_: loaded)
    monkeypatch.setattr("raytrain.watching.page.draw_page", lambda *_: "")
    monkeypatch.setattr("raytrain.watching.watch.BATCH_LINES", 16)
    monkeypatch.setattr("raytrain.watching.journal.SEGMENT_BYTES", 3000)
    source, out = write_jsonl(tmp_path / "in.jsonl", TEXTS[:60]), tmp_path / "out"
    write_jsonl(source, ["", TEXTS[60]], "a")
    expected = once(best, source, tmp_path / "whole", "negative > 1% of 20")
    for broken in ("append", "commit", "write_page"):
        shutil.rmtree(out, ignore_errors=True)
        write = getattr(Journal, broken)
        for after, number in itertools.product((False, True), (2, 5, 8)):
            left = iter(range(number, -1, -1))

            def killed(self: Journal, *given: Any, write: Any = write, after: bool = after, left: Any = left) -> None:
                is_due = next(left, 0) == 0
                if after or not is_due:
                    write(self, *given)
                if is_due:
                    raise KeyboardInterrupt

            monkeypatch.setattr(Journal, broken, killed)
            with contextlib.suppress(KeyboardInterrupt):
                once(best, source, out, "negative > 1% of 20")
            monkeypatch.setattr(Journal, broken, write)
        assert once(best, source, out, "negative > 1% of 20").shares == expected.shares
        assert len(list((out / "predictions").iterdir())) > 2
        for ours, theirs in (
            (predicted(out), predicted(tmp_path / "whole")),
            *(
                (lines_of(folder / name) for folder in (out, tmp_path / "whole"))
                for name in ("quarantined.jsonl", "alerts.jsonl")
            ),
        ):
            assert [{**row, "time": 0} for row in ours] == [{**row, "time": 0} for row in theirs]


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(URL of a webhook on this machine that fails twice, what has arrived)."""
    got: list[dict[str, Any]] = []
    answers = iter([503, 302])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code = next(answers, 204)
            if code == 204:
                got.append(body)
            self.send_response(code)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook/s3cret-path", got
    server.shutdown()


def test_a_webhook_hears_of_each_event(
    best: str, tmp_path: Path, receiver: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A webhook that can't be reached costs no text, and is told later by the next process."""
    url, got = receiver
    monkeypatch.setattr(webhook_module, "DELAYS_S", (0.01,))
    monkeypatch.setattr("raytrain.watching.watch.WEBHOOK_AT_END_S", 0.3)
    source, out = write_jsonl(tmp_path / "in.jsonl", TEXTS[:60]), tmp_path / "out"
    found = once(best, source, out, "negative > 1% of 20", webhook="http://127.0.0.1:9/hook/s3cret-path")
    assert found.num_texts == 60 and "wait for 127.0.0.1, which can't be reached" in found.webhook
    assert got == []
    assert once(best, source, out, "negative > 1% of 20", webhook=url).webhook == ""
    assert [(event["id"], event["event"], event["rule"]) for event in got] == [(1, "begins", "negative > 1% of 20")]
    once(best, source, out, "negative > 1% of 20", webhook=url)
    assert len(got) == 1
    written = "".join(path.read_text() for path in out.rglob("*") if path.is_file())
    assert "s3cret" not in written


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "nothing.jsonl"}, "there is no such folder or file"),
        ({"source": "nothing"}, "there is no such folder or file"),
        ({"source": "s3://bucket/in"}, "a local folder or file can be watched"),
        ({"out": "s3://bucket/out"}, "a watch writes to a local folder"),
        ({"source": "a.csv"}, "a file that is watched ends in .jsonl"),
        ({"out": "full"}, "full holds notes.txt, and is not of a watch"),
        ({"out": "in"}, "this is where the texts come from"),
        ({"out": "in/a.jsonl"}, "is a file"),
        ({"alerts": ("neg > 1% of 5",)}, "did you mean negative"),
        ({"webhook": "http://example.com/s3cret", "alerts": ("negative > 1% of 5",)}, "not encrypted: give an https"),
        ({"webhook": "example", "alerts": ("negative > 1% of 5",)}, "give a URL such as"),
        ({"webhook": "https://example.com/"}, "is told of alerts: give --alert too"),
        ({"window": 0}, "--window 0: give a number of texts"),
        ({"threshold": 0.4}, "it is for models that give several labels per row"),
        ({"overrides": ("training.epochs=2",)}, "the model was trained with it"),
        ({"overrides": ("task.text_column=body",)}, "columns"),
    ],
)
def test_mistakes(best: str, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    for folder in ("in", "full"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "a.csv").write_text("text\na\n")
    write_jsonl(tmp_path / "in" / "a.jsonl", ["a"])
    given = {"source": "in", "out": "out", **change}
    given |= {name: f"{tmp_path}/{given[name]}" for name in ("source", "out") if "://" not in given[name]}
    if said == "columns":
        found = watch_source(best, WatchRequest(**given, is_once=True))
        assert (found.num_texts, found.num_quarantined) == (0, 1)
        return
    with pytest.raises(ConfigError, match=said) as raised:
        watch_source(best, WatchRequest(**given))
    assert "s3cret" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_watch(best: str, tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", TEXTS[:5]), tmp_path / "out"
    once(best, source, out)
    with pytest.raises(ConfigError, match=r"is of the source .*in.jsonl: give another name"):
        once(best, write_jsonl(tmp_path / "other.jsonl", ["a"]), out)
    with Journal(str(out)), pytest.raises(ConfigError, match="another `raytrain watch` writes there"):
        once(best, source, out)
    (out / "predictions" / "00000.jsonl").write_text("")
    with pytest.raises(ConfigError, match="has 0 bytes, and .* were written: restore it"):
        once(best, source, out)
    (out / "watch.json").write_text("{")
    with pytest.raises(ConfigError, match="watch.json is damaged"):
        once(best, source, out)
