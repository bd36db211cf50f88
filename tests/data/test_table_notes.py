"""What a Parquet file notes beside its rows is another's JSON."""

import pytest

pytest.importorskip("datasets")

import pyarrow
import pyarrow.parquet

from fewstep.data.table import Table

NOTES = {
    "lists": b"[" * 200_000,
    "mappings": b'{"info":' * 200_000,
    "a number": b"9" * 5000,
    "no text": b"\xff",
    "no mapping": b'{"info": 3}',
    "no features": b'{"info": {"features": [1]}}',
    "unknown features": b'{"info": {"features": {"caption": {"_type": "Nope"}}}}',
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES)
def test_notes_that_nobody_can_read_name_the_file(tmp_path, note):
    table = pyarrow.table({"caption": ["a", "b"]}).replace_schema_metadata({b"huggingface": note})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet is damaged or cannot be used"):
        Table(path=str(tmp_path / "x.parquet")).read()
