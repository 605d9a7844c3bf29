"""``items:upsert`` and ``items:remove``: what is found after a change, by which versions and processes, and what is refused."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnx
import polars as pl
import pytest

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.bundle import ITEM_FILE, ITEMS_FILE, KEY
from pipelines.bench.synthetic_towers import COLOURS, ITEM_FEATURES, write_towers
from serving.items import ItemTable, View
from serving.repository import Repository
from serving.settings import ServingSettings
from tests.serving.live import service, wait_until
from tests.serving.shop import ITEMS, VECTORS, ask, change, in_order, items, refused, rewrite


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def test_items_come_change_and_go_without_a_restart(own: Path, few: str) -> None:
    before = digests(own)
    with service(own, ServingSettings(poll_s=0)) as address:
        best = in_order(7, range(ITEMS))
        new = {"item": ITEMS + 7, "colour": "gold", "tags": ["new"], "boost": 0.5}
        assert change(address, "upsert", [new]) == {"model": "shop", "version": 1, "added": 1, "changed": 0}
        (one,) = ask(address, user={"likes": 7}, k=2)["recommendations"]
        assert one["items"] == [{"item": ITEMS + 7, "score": pytest.approx(1.5)}, {"item": 7, "score": pytest.approx(1.0)}]
        assert items(address, user={"likes": 7}, where={"colour": "gold"}) == [ITEMS + 7]
        assert items(address, user={"likes": 7}, k=1, where={"tags": ["new", "t0"]}) == [ITEMS + 7]
        assert items(address, user={"likes": 7, "recent": [ITEMS + 7]}, k=2) == best[:2]
        assert change(address, "upsert", [{"item": best[9], "boost": 9}, {**new, "boost": -3}])["changed"] == 2
        assert items(address, user={"likes": 7}, k=3) == [best[9], best[0], best[1]]
        colour = COLOURS[best[9] % 4]
        assert best[9] not in items(address, user={"likes": 7}, k=ITEMS, where={"colour": colour}), "what is left out is missing"
        assert change(address, "remove", [best[0], best[9], ITEMS + 7, 10**6]) == {
            "model": "shop",
            "version": 1,
            "removed": 3,
            "unknown": 1,
        }
        assert items(address, user={"likes": 7}, k=8) == best[1:9]
        assert items(address, user={"likes": 7}, allow=[best[0], best[9]]) == []
        assert change(address, "remove", [best[0]])["unknown"] == 1
        assert change(address, "upsert", [{"item": best[0]}])["added"] == 1
        assert items(address, user={"likes": 7}, k=2) == best[:2]
        text = httpx.get(f"{address}/metrics").text
        assert 'ctrkit_items{model="shop",state="hidden",version="1"} 2.0' in text
        assert len(items(address, user={"likes": 7}, k=10 * ITEMS)) == ITEMS - 1
    assert digests(own) == before, "requests never write to the repository"


def test_items_without_a_value_are_found_by_null(own: Path) -> None:
    with service(own, ServingSettings(poll_s=0)) as address:
        change(address, "upsert", [{"item": 5000}, {"item": 5001, "colour": "gold", "tags": ["new"]}])
        for feature in ("colour", "tags"):
            assert items(address, user={"likes": 7}, where={feature: None}) == [5000]
            assert set(items(address, user={"likes": 7}, where={feature: ["gold", "new", None]})) == {5000, 5001}


def test_a_change_that_is_refused_changes_nothing(own: Path) -> None:
    with service(own, ServingSettings(poll_s=0, max_changed_items=2, max_rows=3)) as address:
        path = "shop/items:upsert"
        for body, said in (
            ({}, "body.items: the body has no 'items'"),
            ({"items": [{"item": 1, "color": "x"}]}, "body.items.0.color: item 0, field 'color': unknown feature. Did you mean 'colour'?"),
            ({"items": [{"item": 5000}, {"colour": "x"}]}, "body.items.1.item: item 1 has no 'item', which is its key"),
            ({"items": [{"item": 5000}, {"item": 5000}]}, "body.items.1.item: item 1 has the 'item' of another one"),
            ({"items": [{"item": 5000, "boost": "x"}]}, "body.items.0.boost: item 0, field 'boost': expected a number"),
        ):
            assert refused(address, 422, path, **body).startswith(said)
        assert "3 items would differ from the indexed catalogue, 2 may" in refused(
            address, 413, path, items=[{"item": 5000 + i} for i in range(3)]
        ).replace(",", ",")
        assert "3 items would differ" in refused(address, 413, "shop/items:remove", items=[1, 2, 3])
        assert httpx.get(f"{address}/v1/models/shop").json()["items"] == {"indexed": ITEMS, "hidden": 0, "added": 0}
        assert change(address, "upsert", []) == {"model": "shop", "version": 1, "added": 0, "changed": 0}
        assert change(address, "upsert", [{"item": 5000}, {"item": 1}]) | {"version": 0} == {
            "model": "shop",
            "version": 0,
            "added": 1,
            "changed": 1,
        }
        assert change(address, "upsert", [{"item": 5000, "boost": 1}])["changed"] == 1


def test_a_catalogue_of_several_chunks_is_joined_once() -> None:
    """Rows of a list column in several chunks cost Polars a copy of it, and each answer names its items' rows."""
    parts = [pl.DataFrame({KEY: [number], "tags": [["a", "b"]]}) for number in range(3)]
    frame = pl.concat(parts, rechunk=False)
    assert frame.n_chunks() == 3
    view = View.of(ItemTable(frame, np.zeros((3, 2), np.float32))).with_items(parts[0], np.ones((1, 2), np.float32))
    assert [table.frame.n_chunks("all") for table in (view.base, view.added)] == [[1, 1], [1, 1]]
    assert view.keys(np.array([2, 3])) == [2, 0]


def test_readers_never_see_half_of_a_change(own: Path) -> None:
    """Two items change together, again and again: their scores always tell of the same change."""
    ratio = float(VECTORS[8] @ VECTORS[7])
    stop, wrong = threading.Event(), []

    def look(address: str) -> None:
        with httpx.Client(base_url=address) as client:
            while not stop.is_set():
                body = {"user": {"likes": 7}, "allow": [ITEMS + 7, ITEMS + 8], "k": 2}
                found = client.post("/v1/models/shop:recommend", json=body).json()["recommendations"][0]["items"]
                scores = {entry["item"]: entry["score"] for entry in found}
                if len(scores) != 2 or abs(scores[ITEMS + 8] / scores[ITEMS + 7] - ratio) > 1e-4:
                    wrong.append(found)

    with service(own, ServingSettings(poll_s=0)) as address:
        change(address, "upsert", [{"item": ITEMS + 7}, {"item": ITEMS + 8}])
        threads = [threading.Thread(target=look, args=(address,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for boost in range(25):
            change(address, "upsert", [{"item": ITEMS + 7, "boost": boost}, {"item": ITEMS + 8, "boost": boost}])
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_new_version_takes_over_with_the_changes(own: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with service(own, ServingSettings(poll_s=0.05)) as address:
        change(address, "upsert", [{"item": ITEMS + 7, "colour": "gold", "boost": 1}])
        change(address, "remove", [7])
        write_towers(tmp_path_factory.mktemp("new"), "shop", 2, VECTORS[::-1].copy()).rename(own / "shop" / "2")
        wait_until(lambda: ask(address, user={"likes": 7}, k=1)["version"] == 2)
        (one,) = ask(address, user={"likes": 7}, k=2)["recommendations"]
        assert one["items"][0] == {"item": ITEMS + 7, "score": pytest.approx(2.0)} and one["items"][1]["item"] != 7
        (old,) = ask(address, "shop/versions/1", user={"likes": 7}, k=2)["recommendations"]
        assert old["items"][0]["item"] == ITEMS + 7
        change(address, "remove", [ITEMS + 7])
        for path in ("shop", "shop/versions/1"):
            assert ask(address, path, user={"likes": 7}, k=1)["recommendations"][0]["items"][0]["item"] not in (7, ITEMS + 7)


def colours_are_numbers(folder: Path) -> None:
    graph = onnx.load(folder / ITEM_FILE)
    (colour,) = [one for one in graph.graph.input if one.name == "colour"]
    colour.type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(graph, folder / ITEM_FILE)
    catalogue = pl.read_parquet(folder / ITEMS_FILE)
    catalogue.with_columns(colour=pl.lit(1, pl.Int64)).write_parquet(folder / ITEMS_FILE)
    features = tuple(f.model_copy(update={"dtype": "int"}) if f.name == "colour" else f for f in ITEM_FEATURES)
    rewrite(folder, item_features=features)


def test_an_item_that_an_older_version_cannot_take_is_named(own: Path) -> None:
    """A service that starts loads both versions."""
    colours_are_numbers(own / "shop" / "1")
    write_towers(own, "shop", 2, VECTORS)
    with service(own, ServingSettings(poll_s=0)) as address:
        assert httpx.get(f"{address}/v1/models/shop").json()["versions"] == [1, 2]
        said = refused(address, 422, "shop/items:upsert", items=[{"item": 5000}, {"item": 5001, "colour": "gold"}])
        assert said.startswith(
            "body.items.1.colour: item 1, field 'colour': version 1, which is loaded too, cannot take it: expected an integer, got 'gold'"
        )
        assert said.endswith("Send what all loaded versions take, or serve the newest alone: --set live_versions=1")
        assert httpx.get(f"{address}/v1/models/shop").json()["items"]["added"] == 0
        assert change(address, "upsert", [{"item": 5000}])["added"] == 1
    with service(own, ServingSettings(poll_s=0, live_versions=1)) as address:
        assert change(address, "upsert", [{"item": 5001, "colour": "gold"}])["added"] == 1


def test_a_journal_keeps_changes_and_processes_share_it(own: Path) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as one, service(own, settings) as other:
        change(one, "upsert", [{"item": ITEMS + 7, "colour": "gold", "boost": 1}])
        assert items(other, user={"likes": 7}, k=1) == [ITEMS + 7], "the next request of another process sees it"
        assert change(other, "upsert", [{"item": ITEMS + 7, "boost": 2}, {"item": ITEMS + 8}])["changed"] == 1
        assert change(one, "remove", [ITEMS + 8, 7]) | {"model": ""} == {"model": "", "version": 1, "removed": 2, "unknown": 0}
        file = own / "kept" / "shop.jsonl"
        with file.open("ab") as stream:  # a process died while it wrote
            stream.write(b"[[9, null")
        for address in (one, other):
            (found,) = ask(address, user={"likes": 7}, k=3)["recommendations"]
            assert found["items"][0] == {"item": ITEMS + 7, "score": pytest.approx(3.0)}
            assert {7, ITEMS + 8}.isdisjoint(entry["item"] for entry in found["items"])
        change(other, "remove", [9])
        assert len(file.read_bytes().splitlines()) == 4 and b"[[9, null" not in file.read_bytes()
    with service(own, settings) as again:
        assert httpx.get(f"{again}/v1/models/shop").json()["items"] == {"indexed": ITEMS, "hidden": 2, "added": 1}
        assert items(again, user={"likes": 7}, k=1) == [ITEMS + 7] and items(again, user={"likes": 9}, allow=[9]) == []


def test_an_item_of_another_process_that_a_version_cannot_take_is_hidden_there(tmp_path: Path) -> None:
    """As while a new version is rolled out, one service after the other."""
    settings = ServingSettings(poll_s=0, journal=tmp_path / "kept")
    for repo, version in (("before", 1), ("after", 2)):
        write_towers(tmp_path / repo, "shop", version, VECTORS)
    colours_are_numbers(tmp_path / "before" / "shop" / "1")
    with service(tmp_path / "before", settings) as before, service(tmp_path / "after", settings) as after:
        one, other = ITEMS + 7, 2 * ITEMS + 7
        change(before, "upsert", [{"item": one, "boost": 2}])
        change(after, "upsert", [{"item": one, "colour": "gold", "boost": 2}, {"item": other, "boost": 1}, {"item": 5}])
        assert items(after, user={"likes": 7}, k=2) == [one, other]
        assert items(before, user={"likes": 7}, k=2) == [other, 7]
        with service(tmp_path / "before", settings) as again:
            assert items(again, user={"likes": 7}, k=2) == [other, 7], "and where it starts again"
        change(after, "upsert", [{"item": one, "boost": 2}])
        assert items(before, user={"likes": 7}, k=2) == [one, other]


def test_writers_of_several_processes_agree(own: Path) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as one, service(own, settings) as other:

        def write(address: str, first: int) -> None:
            for step in range(6):
                change(address, "upsert", [{"item": 1000 + first + step}, {"item": 2000, "boost": first + step}])

        threads = [threading.Thread(target=write, args=(address, 100 * place)) for place, address in enumerate((one, other, one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers = [ask(address, user={"likes": 7}, k=ITEMS + 25)["recommendations"] for address in (one, other)]
    assert answers[0] == answers[1] and len(answers[0][0]["items"]) == ITEMS + 25


def test_a_journal_that_cannot_be_used_is_said(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as address:

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("serving.journal.os.fsync", full)
            assert "No space left on device" in refused(address, 503, "shop/items:remove", items=[7])
        assert items(address, user={"likes": 7}, k=1) == [7] and (own / "kept" / "shop.jsonl").read_bytes() == b""
        change(address, "remove", [7])
    file = own / "kept" / "shop.jsonl"
    file.write_bytes(b"nonsense\n")
    pool = ThreadPoolExecutor(1)
    with pytest.raises(CtrkitError, match="is damaged"):
        Repository(own, pool, settings).load()
    pool.shutdown()


def test_a_journal_that_was_damaged_spoils_no_answer(own: Path) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as address:
        change(address, "upsert", [{"item": ITEMS + 7, "boost": 1}])
        with (own / "kept" / "shop.jsonl").open("ab") as stream:
            stream.write(b"nonsense\n")
        for _ in range(2):
            assert items(address, user={"likes": 7}, k=1) == [ITEMS + 7]
            assert "is damaged" in refused(address, 503, "shop/items:upsert", items=[{"item": 9}])


def test_a_journal_that_was_emptied_takes_no_change_until_the_service_starts_again(own: Path) -> None:
    settings = ServingSettings(poll_s=0, journal=own / "kept")
    with service(own, settings) as address:
        change(address, "remove", [7])
        file = own / "kept" / "shop.jsonl"
        file.write_bytes(b"")
        assert "the journal is shorter than it was" in refused(address, 503, "shop/items:remove", items=[9])
        assert file.read_bytes() == b"" and items(address, user={"likes": 7}, allow=[7, 9]) == [9]
    with service(own, settings) as address:
        change(address, "remove", [9])
        assert items(address, user={"likes": 7}, allow=[7, 9]) == [7]


def test_several_workers_take_changes_with_a_journal_only(own: Path, tmp_path: Path) -> None:
    with service(own, ServingSettings(poll_s=0, workers=2)) as address:
        assert "one of several workers" in refused(address, 403, "shop/items:upsert", items=[])
        assert "one of several workers" in refused(address, 403, "shop/items:remove", items=[])
    with service(own, ServingSettings(poll_s=0, workers=2, journal=tmp_path / "kept")) as address:
        assert httpx.post(f"{address}/v1/models/shop/items:remove", json={"items": [3]}).json()["removed"] == 1
