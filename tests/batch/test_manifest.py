"""Lists of mixtures: what each format says, and every line that says nothing useful."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mcspex_cli.batch.manifest import COLUMNS, Task, files_by_name, read_manifest
from mcspex_cli.errors import PairingError


def read(folder: Path, name: str, text: str | bytes) -> tuple[list[Task], list[str]]:
    """The tasks of a manifest in `folder`, and its problems without the path."""
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    problems: list[str] = []
    tasks = read_manifest(folder / name, problems)
    return tasks, [problem.removeprefix(f"{folder / name} ") for problem in problems]


def line(row: object) -> str:
    return json.dumps(row) + "\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "mixture,reference,truth\na/1.wav,r.wav,t.wav\nb/2.wav,s.wav,\n"),
        ("m.CSV", "\ufeffmixture,reference,truth\r\na/1.wav,r.wav,t.wav\r\nb/2.wav,s.wav,\r\n"),
        ("m.tsv", "truth\tmixture\treference\nt.wav\ta/1.wav\tr.wav\n\n\tb/2.wav\ts.wav\n"),
        ("m.csv", " mixture , reference,note,truth\na/1.wav,r.wav,x,t.wav\nb/2.wav,s.wav,y,\n"),
        ("m.csv", "mixture;reference;truth\na/1.wav;r.wav;t.wav\nb/2.wav;s.wav;\n"),
        ("m.csv", "mixture,reference,truth,,\na/1.wav,r.wav,t.wav\nb/2.wav,s.wav,,,,\n,,,,\n"),
        ("m.csv", "Mixture,enrollment,Target\na/1.wav,r.wav,t.wav\nb/2.wav,s.wav,\n"),
        ("m.tsv", "mixture_path,ENROLMENT,clean\na/1.wav,r.wav,t.wav\nb/2.wav,s.wav,\n"),
        (
            "m.jsonl",
            line({"mixture": "a/1.wav", "reference": "r.wav", "truth": "t.wav", "x": 3})
            + "\n"
            + line({"mixture": "b/2.wav", "references": ["s.wav"], "truth": None}),
        ),
    ],
)
def test_every_format_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    (first, second), problems = read(tmp_path, name, text)
    assert problems == []
    assert (first.mixture, first.id) == (f"{tmp_path}/a/1.wav", "a/1")
    assert (first.references, first.truth) == ((f"{tmp_path}/r.wav",), f"{tmp_path}/t.wav")
    assert (second.mixture, second.id) == (f"{tmp_path}/b/2.wav", "b/2")
    assert (second.references, second.truth) == ((f"{tmp_path}/s.wav",), None)
    assert first.output == second.output == ""


def test_a_task_has_its_line(tmp_path: Path) -> None:
    tasks, _ = read(tmp_path, "m.csv", 'mixture,note\n\na.wav,"two\nlines"\nb.wav,\n')
    assert [task.line for task in tasks] == [4, 5]


def test_columns_that_are_not_used_are_named(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    (tmp_path / "m.csv").write_text("mixture,gender,Speaker ID\na.wav,f,7\n")
    (tmp_path / "m.jsonl").write_text(line({"mixture": "a.wav", "gender": "f", "reason": "no."}))
    for name, unused in (("m.csv", "'gender', 'Speaker ID'"), ("m.jsonl", "'gender'")):
        read_manifest(tmp_path / name, [])
        columns = ", ".join(COLUMNS)
        said = f"{tmp_path / name}: not used: {unused}. The columns are {columns}."
        assert warnings() == [said]


def test_a_span_a_residual_and_an_activity(tmp_path: Path) -> None:
    text = "mixture,span,residual,activity\na.wav,0-2;0:03-0:04.5,r/a.flac,a.rttm\nb.wav,,,\n"
    ((first, second), problems) = read(tmp_path, "m.csv", text)
    assert (first.spans, second.spans, problems) == (("0-2", "0:03-0:04.5"), (), [])
    assert (first.residual, first.activity) == ("r/a.flac", "a.rttm")
    assert (second.residual, second.activity) == ("", "")


def test_an_scp_has_ids_and_files_with_spaces(tmp_path: Path) -> None:
    tasks, problems = read(tmp_path, "wav.scp", "one a b.wav\n\n two/x  /data/c.flac \n")
    assert problems == []
    assert [e.id for e in tasks] == ["one", "two/x"]
    assert [e.mixture for e in tasks] == [f"{tmp_path}/a b.wav", "/data/c.flac"]


@pytest.mark.parametrize(
    ("row", "id_", "output"),
    [
        ({"mixture": "a/b.c.wav"}, "a/b.c", ""),
        ({"mixture": "/data/x/b.wav"}, "b", ""),
        ({"mixture": "../x/b.wav"}, "b", ""),
        ({"mixture": "a/b.wav", "output": "deep/c.flac"}, "deep/c", "deep/c.flac"),
        ({"mixture": "a/b.wav", "id": "7"}, "7", ""),
        ({"mixture": "a/b.wav", "id": "7", "output": "c.wav"}, "7", "c.wav"),
        ({"mixture": "a/b.wav", "id": "", "output": None}, "a/b", ""),
    ],
)
def test_an_id_is_given_or_the_outputs_or_the_mixtures(
    tmp_path: Path, row: dict[str, str], id_: str, output: str
) -> None:
    ((task,), problems) = read(tmp_path, "m.jsonl", line(row))
    assert (task.id, task.output, problems) == (id_, output, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "mixture,references\na.wav,r.wav; s.wav;\n"),
        ("m.csv", "mixture,reference\na.wav,r.wav;s.wav\n"),
        ("m.jsonl", line({"mixture": "a.wav", "references": ["r.wav", "s.wav"]})),
        ("m.jsonl", line({"mixture": "a.wav", "reference": ["r.wav", "s.wav"]})),
    ],
)
def test_several_references_are_one_voice(tmp_path: Path, name: str, text: str) -> None:
    ((task,), _) = read(tmp_path, name, text)
    assert task.references == (f"{tmp_path}/r.wav", f"{tmp_path}/s.wav")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "m.csv",
            "mixture,id\na.wav,1\n,2\n",
            "line 3: names no mixture. Name one, or drop the line.",
        ),
        ("m.csv", "mixture,id\na.wav\n", "line 2: has 1 column, not 2."),
        ("m.csv", "mixture,id\n\na.wav,1,2\n", "line 3: has 3 columns, not 2."),
        ("m.tsv", "mixture\tid\na.wav,1\n", "line 2: has 1 column, not 2."),
        (
            "m.csv",
            "mixture,id\na.wav,/\n",
            r"line 2: id '/' cannot be a file's name.",
        ),
        (
            "m.csv",
            f'mixture\n"{"x" * 200_000}"\n',
            "line 2: field larger than field limit (131072). Check its quotes.",
        ),
        (
            "m.csv",
            'mixture,id\n"a.wav,1\nb.wav,2\n',
            "line 2: unexpected end of data. Check its quotes.",
        ),
        ("m.jsonl", line({"id": "1"}), "line 1: names no mixture. Name one, or drop the line."),
        (
            "m.jsonl",
            '{"mixture": "a.wav", "mixture": "b.wav"}',
            "line 1: not JSON (it has a key twice).",
        ),
        (
            "m.jsonl",
            "\n{mixture: a.wav}\n",
            "line 2: not JSON (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)).",
        ),
        ("m.jsonl", '["a.wav"]\n', 'line 1: not an object like {"mixture": "a.wav"}.'),
        ("m.jsonl", '"a.wav"\n', 'line 1: not an object like {"mixture": "a.wav"}.'),
        ("m.jsonl", line({"mixture": 3}), "line 1: mixture is 3, not text."),
        ("m.jsonl", line({"mixture": "a.wav", "id": 7}), "line 1: id is 7, not text."),
        (
            "m.jsonl",
            line({"mixture": "a.wav", "truth": ["t.wav"]}),
            "line 1: truth is ['t.wav'], not text.",
        ),
        (
            "m.jsonl",
            line({"mixture": "a.wav", "references": ["r.wav", 3]}),
            "line 1: reference is 3, not text.",
        ),
        (
            "m.jsonl",
            line({"mixture": "a.wav", "references": ["r.wav", None]}),
            "line 1: reference is None, not text.",
        ),
        (
            "m.jsonl",
            line({"mixture": "a.wav", "references": {"r": 1}}),
            "line 1: reference is {'r': 1}, not text.",
        ),
        (
            "m.jsonl",
            line({"mixture": "a.wav", "references": ["r\0.wav"]}),
            r"line 1: reference 'r\x00.wav' cannot be a file's name.",
        ),
        (
            "m.jsonl",
            line({"mixture": "a\0.wav"}),
            r"line 1: mixture 'a\x00.wav' cannot be a file's name.",
        ),
        *(
            (
                name,
                text,
                f"line {n}: ~/r.wav: ~ is not read as a home folder. Write the whole path.",
            )
            for name, text, n in (
                ("m.csv", "mixture,reference\na.wav,b.wav;~/r.wav\n", 2),
                ("m.jsonl", line({"mixture": "a.wav", "truth": "~/r.wav"}), 1),
                ("m.scp", "one ~/r.wav", 1),
            )
        ),
        ("m.scp", "one a.wav\ntwo\n", "line 2: needs an id and a file."),
        (
            "m.scp",
            "one sph2pipe -f wav a.sph |\n",
            "line 1: is a command, which is not run. Write its sound to a file and name that.",
        ),
    ],
)
def test_a_line_that_says_nothing_useful_is_named(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    _, problems = read(tmp_path, name, text)
    assert problems == [problem]


def test_a_bad_line_does_not_hide_the_good_ones_and_the_other_bad_ones(tmp_path: Path) -> None:
    text = "mixture,id\na.wav,1\nb.wav\n,3\nd.wav,4\n"
    tasks, problems = read(tmp_path, "m.csv", text)
    assert [task.id for task in tasks] == ["1", "4"]
    assert problems == [
        "line 3: has 1 column, not 2.",
        "line 4: names no mixture. Name one, or drop the line.",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.txt", "a.wav\n", "m.txt: a manifest's name ends in .csv, .tsv, .jsonl, .scp. Rename"),
        (
            "m.csv",
            "",
            "has no column 'mixture' in its first line, which is ''. The columns are mix",
        ),
        ("m.csv", "Mixture,mix\na,b\n", "m.csv: 'Mixture' and 'mix' both name the mixture. Remove"),
        (
            "m.csv",
            "a.wav,r.wav\n",
            "in its first line, which is 'a.wav,r.wav'. The columns are mix",
        ),
        ("m.csv", "mixture\n\n", "m.csv: lists no files. Add some, or name another list."),
        ("m.csv", f"mixture,{'x' * 200_000}\na.wav,1\n", "m.csv line 1: field larger than field"),
        ("m.csv", 'mixture,"id\na.wav,1\n', "m.csv line 1: unexpected end of data. Check its quo"),
        ("m.jsonl", "\n\n", "m.jsonl: lists no files. Add some, or name another list."),
        ("m.scp", "", "m.scp: lists no files. Add some, or name another list."),
        ("m.jsonl", b'{"mixture": "\xff"}', r"m.jsonl: cannot be read \(not UTF-8 text\). Save"),
        ("m.csv", "mixture\na.wav\n".encode("utf-16"), r"cannot be read \(not UTF-8 text\). Save"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(PairingError, match=message):
        read(tmp_path, name, text)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.csv", "no such file or folder"), ("d.scp", "cannot be read: it is a folder")],
)
def test_a_manifest_that_cannot_be_read_says_why(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "d.scp").mkdir()
    with pytest.raises(PairingError, match=rf"{name}: {reason}\."):
        read_manifest(tmp_path / name, [])


def test_an_scp_of_clips_has_each_id_once(tmp_path: Path) -> None:
    (tmp_path / "refs.scp").write_text("ann a.wav\nbob /b.wav\nann c.wav\n")
    problems: list[str] = []
    assert files_by_name(tmp_path / "refs.scp", "references", problems)["bob"] == "/b.wav"
    assert problems == [f"{tmp_path}/refs.scp line 3: ann is there twice. Remove one line."]
