"""Prompts without pictures."""

import pytest
import torch
from tests.data.picture_files import made, write_pictures

from fewstep.choice import kind_of
from fewstep.cli.configure import source_of
from fewstep.data.prompts import Prompts

LINES = ["a cat", "two dogs", "größer"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", "a cat\ntwo dogs\ngrößer"),
        ("x.TXT", "\ufeffa cat\r\n\r\n  two dogs\r\ngrößer\r\n"),
        ("x.tsv", "Prompt\tCategory\na cat\tx\ntwo dogs\ty\ngrößer\tz\n"),
        ("x.csv", 'prompt,n\n"a cat",1\n"two dogs",2\n"größer",3\n'),
        ("x.jsonl", '{"prompt": "a cat"}\n{"prompt": "two dogs"}\n{"prompt": "größer"}\n'),
    ],
)
def test_the_same_prompts_in_every_format(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    source = source_of(str(tmp_path / name), ["split=all"])
    dataset = source.dataset()
    assert kind_of(type(source)) == ("prompts" if name[2:].lower() == "txt" else "table")
    assert dataset.rows(torch.arange(3)) == {"caption": LINES}
    assert dataset.shape == ()


def test_empty_lines_are_counted(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("\na\n \nb\n\n")
    dataset = Prompts(path=str(file)).read()
    assert dataset.rows(torch.arange(2))["caption"] == ["a", "b"]
    assert dataset.notes == {"files": str(file), "passed over": "3 empty lines"}
    file.write_text("a\nb\n")
    assert Prompts(path=str(file)).read().notes == {"files": str(file)}


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_prompts(tmp_path, content):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"no prompts in .*x\.txt"):
        Prompts(path=str(tmp_path / "x.txt")).read()


def test_texts_in_folders_are_no_prompts(tmp_path):
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(ValueError, match="no data in"):
        source_of(str(tmp_path))
    with pytest.raises(ValueError, match=r"give data\.path=FILE"):
        Prompts(path=str(tmp_path)).read()
    write_pictures(tmp_path, a=made(1)[0][0])
    assert kind_of(type(source_of(str(tmp_path)))) == "folder"
