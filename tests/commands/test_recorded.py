"""Records found by name."""

from __future__ import annotations

import pytest

from kdcore.commands import recorded


def test_a_record_is_found_by_path_and_by_name(root):
    path = root / "book" / "records" / "cpu" / "foundations" / "kd.json"
    assert recorded.find_record("cpu:kd") == recorded.find_record("cpu:foundations/kd") == path
    assert recorded.find_record(str(path)) == path
    with pytest.raises(ValueError, match=r"no record 'cup:kd'. Did you mean 'cpu:kd'"):
        recorded.find_record("cup:kd")
    with pytest.raises(ValueError, match="A record is a file, or a name such as cpu:spherical_kd"):
        recorded.find_record("zzzzzzzzzzz")
