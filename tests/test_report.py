"""The page of all results, and what `make bench` says of the run before.

Contract: the page holds every committed file with its machine and commit, loads nothing, and is
right HTML; a section is there where there are results for it; a row moved where the spreads of two
runs of one machine lie apart.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import moved, page, report, results
from benchmarks.page import parts, sources, tables
from benchmarks.problems import Problem
from benchmarks.results import Measurement, Record
from benchmarks.timing import Pair

EMPTY = {"area", "br", "hr", "img", "input", "link", "meta"}
FACTS: dict[str, Any] = {
    "candidate": "rnnfast",
    "cpu": "A processor",
    "isa": "AVX2",
    "threads": 2,
    "dtype": "float32",
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
    "commit": "0123456789ab",
    "load": 0.1,
    "busy": 0,
}


class Page(HTMLParser):
    """Raises at an end tag that ends nothing; keeps tags, what they load, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name == "href" and tag == "a":
                self.links.append(str(value))
            elif name in ("src", "href", "xlink:href", "data", "srcset"):
                self.loaded.append(str(value))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = page.write(tmp_path_factory.mktemp("report") / "report.html", home="index.html")
    return path.read_text("utf-8")


# ---- the page ----


@pytest.mark.xdist_group("report")
def test_every_file_is_on_the_page_with_its_machine_and_commit(written: str) -> None:
    files = sorted(sources.RESULTS.rglob("*.json"))
    assert len(files) >= 10
    rows = written[written.index('<section id="machines">') :].split("<tr>")
    for path in files:
        facts = json.loads(path.read_text())["environment"]
        name = path.relative_to(sources.RESULTS).as_posix()
        row = next(row for row in rows if f"<td>{name}</td>" in row)
        assert facts.get("gpu", facts["cpu"]) in row
        assert all(str(facts[key]) in row for key in ("commit", "torch", "python"))
        assert "driver" not in facts or facts["driver"] in row


@pytest.mark.xdist_group("report")
def test_the_page_is_whole_and_loads_nothing(written: str) -> None:
    parsed = Page(written)
    assert [target for target in parsed.loaded if not target.startswith("#")] == []
    assert "@import" not in written
    assert re.findall(r"url\((?!#)[^)]*\)", written) == []
    assert len(parsed.ids) == len(set(parsed.ids))
    sections_linked = {link.removeprefix("#") for link in parsed.links if link.startswith("#")}
    assert sections_linked <= set(parsed.ids)
    assert "index.html" in parsed.links
    local = set(re.findall(r"url\(#([^)]*)\)", written)) | {t[1:] for t in parsed.loaded}
    assert local <= set(parsed.ids)


@pytest.mark.xdist_group("report")
def test_figures_have_words_marks_and_the_colours_of_the_page(written: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", written, re.DOTALL)
    assert len(drawings) > 50
    for drawing in drawings:
        assert re.search(r'aria-label="[^"]+"', drawing)
        assert '<g class="mark"><title>' in drawing
        assert not re.search(r"stroke: #(000000|ffffff)|fill: #000000", drawing)
    assert "nan" not in "".join(re.findall(r"<title>.*?</title>", written))


@pytest.mark.xdist_group("report")
def test_what_is_behind_is_on_the_page(written: str) -> None:
    part = written[written.index('<section id="behind">') :].split("</section>")[0]
    wanted = [row for run in sources.load() for row in parts.rows_of(run) if row.lead < 1]
    assert len(re.findall(r'class="n behind"', part)) == len(wanted) > 0
    assert f"<p>{len(wanted)} of " in part


@pytest.mark.xdist_group("report")
def test_no_two_lines_of_the_summary_are_named_alike(written: str) -> None:
    part = written[written.index('<section id="summary">') :].split("</section>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row)[:4] for row in part.split("<tr>")[2:]]
    assert len(rows) > 20
    assert len({tuple(row) for row in rows}) == len(rows)


def measurement(
    name: str, ratios: tuple[float, ...], problem: Problem | None = None
) -> Measurement:
    """One whose speed-ups, block beside block, are these."""
    problem = problem or Problem(4, 3, 8, 8, "test")
    pair = Pair(tuple(1e-3 * ratio for ratio in ratios), (1e-3,) * len(ratios))
    return Measurement(problem, "gru", name, pair, None, "GRU(8, 8)")


def test_sections_are_there_where_there_are_results(tmp_path: Path) -> None:
    measured = tuple(measurement(name, (2.0, 2.1, 2.2)) for name in ("inference", "training"))
    results.write(Record(FACTS, measured), tmp_path / "some.json")
    found = page.sections(page.load(tmp_path))
    names = ["summary", "cpu", "method", "repeat", "machines"]
    assert [section.name for section in found] == names
    assert "0 of 1" in found[0].content
    assert "2.10x<small>2.04 to 2.16" in found[1].content
    text = page.page(found)
    assert "Documentation</a>" not in text
    Page(text)


def test_the_roofline_needs_bounds_and_scaling_three_sizes(tmp_path: Path) -> None:
    layers = [measurement("inference", (2.0, 3.0), Problem(9, 2, H, H, "")) for H in (8, 16, 32)]
    for count, names in ((2, []), (3, ["scaling"])):
        results.write(Record(FACTS, tuple(layers[:count])), tmp_path / "some.json")
        found = page.sections(page.load(tmp_path))
        assert [section.name for section in found if section.name == "scaling"] == names
    known = {run.name: bool(parts.roofline(run)) for run in sources.load() if run.kind == "peers"}
    assert {name: "bfloat16" not in name for name in known} == known


def test_a_slower_row_is_set_off_and_words_are_escaped() -> None:
    text = tables.table(["<b>"], [[tables.ratio(0.9)], [tables.ratio(1.1)], ["a & b"]])
    assert '<th scope="col">&lt;b&gt;</th>' in text
    assert '<td class="n behind" data-key="0.9">0.90x</td>' in text
    assert '<td class="n" data-key="1.1">1.10x</td>' in text
    assert "<td>a &amp; b</td>" in text


def test_the_command_writes_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page.write, "__defaults__", (tmp_path, ""))
    path = tmp_path / "a" / "page.html"
    report.main(["--html", str(path)])
    assert capsys.readouterr().out == f"{path}\n"
    assert [tag for tag in Page(path.read_text("utf-8")).tags if tag == "section"] == ["section"]
    with pytest.raises(SystemExit):
        report.main([])


# ---- what moved ----


def test_rows_moved_whose_spreads_lie_apart() -> None:
    other = Problem(5, 3, 8, 8, "test")
    before = [
        measurement("inference", (2.0, 2.1, 2.2)),
        measurement("training", (2.0, 2.1, 2.2)),
        measurement("inference", (3.0, 3.0, 3.0), other),
        measurement("training", (1.0, 1.0, 1.0), other),
    ]
    now = [
        measurement("inference", (2.1, 2.2, 2.3)),  # inside the noise of both
        measurement("training", (1.0, 1.05, 1.1)),  # lost
        measurement("inference", (4.4, 4.5, 4.6), other),  # won
        measurement("step", (9.0, 9.0, 9.0), other),  # not measured before
    ]
    found = moved.moved(Record(FACTS, tuple(before)), Record(FACTS, tuple(now)))
    assert [(m.now.pass_name, m.now.problem.T) for m in found] == [
        ("training", 4),
        ("inference", 5),
    ]
    assert [m.change for m in found] == pytest.approx([0.5, 1.5])
    texts = found[0].texts()
    assert texts[:3] == ["4, 3, 8, 8", "GRU", "training"]
    assert texts[3:6] == ["2.10 (2.04 2.16)", "1.05 (1.02 1.08)", "-50 %"]
    assert texts[6:] == ["1.00 → 1.00", "2.10 → 1.05"]
    assert len(texts) == len(moved.HEADER)


def test_a_wide_spread_of_either_run_hides_a_change() -> None:
    steady, loud = (measurement("inference", r) for r in ((2.0,) * 5, (1.0, 1.2, 1.5, 2.4, 2.6)))
    assert moved.moved(Record(FACTS, (steady,)), Record(FACTS, (loud,))) == []
    assert moved.moved(Record(FACTS, (loud,)), Record(FACTS, (steady,))) == []


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"torch": "2.13.1", "commit": "other", "load": 3.0}, True),
        ({"torch": "2.14.0+cpu"}, False),
        ({"cpu": "Another processor"}, False),
        ({"threads": 4}, False),
        ({"dtype": "bfloat16"}, False),
        ({"isa": "AVX512"}, False),
        ({"busy": 1}, False),
        ({"candidate": "torch.nn"}, False),
        ({"gpu": "A GPU"}, False),
    ],
)
def test_what_makes_a_machine_the_same(change: dict[str, Any], same: bool) -> None:
    assert moved.same_machine(FACTS, {**FACTS, **change}) is same
    old = {key: value for key, value in FACTS.items() if key != "busy"}  # of older files
    assert moved.same_machine(old, {**FACTS, **change}) is same


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def commit(repository: Path, name: str, record: Record, date: int) -> None:
    results.write(record, repository / moved.FOLDER / name)
    run = ("git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run([*run, "add", "."], check=True)
    when = {"GIT_COMMITTER_DATE": f"@{date} +0000", "HOME": str(repository)}
    command = [*run, "commit", "--quiet", "--no-verify", "-m", name]
    subprocess.run(command, check=True, env={**when, "PATH": os.environ["PATH"]})


@needs_git
def test_the_last_committed_run_counts_not_the_file_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    now = Record({**FACTS, "commit": "now"}, (measurement("inference", (1.0, 1.1, 1.2)),))
    moved.show(now, tmp_path)
    assert capsys.readouterr().out.count("\n") == 1
    for date, name, ratio in ((1, "a.json", 3.0), (3, "b.json", 2.0), (2, "c.json", 4.0)):
        record = Record({**FACTS, "commit": name}, (measurement("inference", (ratio,) * 3),))
        commit(tmp_path, name, record, 1_700_000_000 + date)
    results.write(now, tmp_path / moved.FOLDER / "b.json")  # as `make bench` does
    found = moved.committed(FACTS, tmp_path)
    assert found is not None
    assert (found[0], found[1].measurements[0].speed_up) == ("benchmarks/results/b.json", 2.0)
    moved.show(now, tmp_path)
    printed = capsys.readouterr().out
    assert "1 of 1 rows moved against benchmarks/results/b.json, commit b.json" in printed
    assert "-45 %" in printed
    moved.show(replace(now, measurements=found[1].measurements), tmp_path)
    assert capsys.readouterr().out.startswith("0 of 1 rows moved against")
    moved.show(replace(now, environment={**FACTS, "threads": 3}), tmp_path)
    assert "nothing to compare with" in capsys.readouterr().out


def test_without_a_repository_there_is_nothing_to_compare_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved.show(Record(FACTS, ()), tmp_path)
    assert "nothing to compare with" in capsys.readouterr().out
