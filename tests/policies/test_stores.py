"""Named stores: what is put is on disk, belongs to its owner, and survives the process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from waver.policies.job import Caller
from waver.policies.stores import StoreError, Stores


async def test_values_belong_to_their_owner_and_survive(tmp_path: Path) -> None:
    stores = Stores(tmp_path / "state")
    assert not (tmp_path / "state").exists(), "nothing is made before it is needed"
    mine, other = stores.open("notes", Caller("a", "b").owner), stores.open("notes", Caller("a", "c").owner)
    assert await mine.get("k") is None
    await mine.put("k", {"deep": [1, None, "ü"]})
    await mine.put("l", 2)
    await other.put("k", "theirs")
    stores.close()
    again = Stores(tmp_path / "state")
    mine = again.open("notes", "a/b")
    assert await mine.items() == {"k": {"deep": [1, None, "ü"]}, "l": 2}
    assert await mine.items("l") == {"l": 2}
    assert await again.open("other", "a/b").items() == {}
    assert [await mine.delete("k"), await mine.delete("k")] == [True, False]
    assert await mine.clear() == 1
    assert await again.open("notes", "a/c").get("k") == "theirs"
    again.close()


async def test_many_at_once(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    store = stores.open("notes", "o")
    await asyncio.gather(*(store.put(f"k{i:02}", i) for i in range(40)))
    assert list((await store.items()).values()) == list(range(40))
    stores.close()


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a" * 65])
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="no name for a store"):
        Stores(tmp_path).open(name, "o")


async def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    store = stores.open("notes", "o")
    for key, value in (("k", float("nan")), ("k", {1, 2}), ("k", "x" * 2**20), ("k" * 513, 1)):
        with pytest.raises(StoreError):
            await store.put(key, value)
    assert await store.items() == {}
    stores.close()
    (tmp_path / "broken.sqlite3").write_text("no database" * 99)
    with pytest.raises(StoreError, match="'broken' cannot be used"):
        await stores.open("broken", "o").get("k")
    stores.close()
