"""Lists of classes: their names and order, and what is told of malformed ones."""

import csv

import pytest

from cavmae_sync_jax.utils.errors import UserError
from data_prep.sources import csv_files


def write_classes(path, rows, header="index,mid,display_name"):
    with path.open("w", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)
    return path


def test_class_names_are_the_display_names_in_the_order_of_the_indices(tmp_path):
    rows = [(2, "c", "Dog, barking"), (0, " a ", " Cat "), (1, "b", "Bird"), (3, "d", "Bird")]
    path = write_classes(tmp_path / "classes.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    expected = [("a", "Cat"), ("b", "Bird (b)"), ("c", "Dog, barking"), ("d", "Bird (d)")]
    assert list(csv_files.read_classes(path).by_mid.items()) == expected
    path = write_classes(path, [("x", 0, "a", "Cat")], "note,index,mid,display_name")
    assert csv_files.read_classes(path).by_mid == {"a": "Cat"}
    path.write_text("index\tMID\tdisplay_name\n0\ta\tCat, meow\n")
    assert csv_files.read_classes(path).by_mid == {"a": "Cat, meow"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("", "the header lacks index, mid, display_name"),
        ("index,name\n0,a\n", "line 1: the header lacks mid, display_name"),
        ("index,mid,display_name\n", "has no class"),
        ("index,mid,display_name\n0,a,A\n1,b\n", "line 3: need 3 cells"),
        ("index,mid,display_name\n0,a,Dog, barking\n", "line 2: need 3 cells"),
        ("index,mid,display_name\n0,a,A\n1,a,B\n", "line 3: the mid 'a' comes a second time"),
        ("index,mid,display_name\n0,a,A\n0,b,B\n", "line 3: the index 0 comes a second time"),
        ("index,mid,display_name\n1,a,A\n2,b,B\n", "line 3: the indices .* must be 0 to 1: 2"),
        ("index,mid,display_name\n-1,a,A\n", "line 2: the index '-1' is not a whole number"),
        ("index,mid,display_name\n0,,A\n", "line 2: '' can't be a mid"),
        ('index,mid,display_name\n0,"a,b",A\n', "line 2: 'a,b' can't be a mid"),
        ("index,mid,display_name\n0,a,\n", "line 2: the display_name must be one line"),
        ('index,mid,display_name\n0,a,"A\nB"\n', "line 3: the display_name must be one line"),
    ],
)
def test_a_malformed_class_list_is_told_in_a_sentence(tmp_path, text, message):
    path = tmp_path / "classes.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        csv_files.read_classes(path)
    assert str(path) in str(error.value)
