"""A collection gets another model while it is searched and written to; no change is lost, no search fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest

from revln.db.collections.generations import follow
from revln.db.jobs.reports import write_report
from revln.jobs.index_schemas import IndexResult
from tests.conftest import DATABASES, fresh_database
from tests.inline import InlineStack, inline_stack
from tests.integration.test_search_over_http import found, ids, run
from tests.pictures import png
from tests.word_model import WordCatalog

OLD, NEW = "old", "new"
Says = dict[str, Any]


@pytest.fixture(scope="module", params=DATABASES)
def inline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineStack]:
    folder = tmp_path_factory.mktemp("migration")
    with (
        fresh_database(request.param, folder, request) as url,
        inline_stack(url, folder, WordCatalog(old=24, new=40), default_model=OLD) as running,
    ):
        yield running


def texts(inline: InlineStack, count: int) -> str:
    name = f"moving-{uuid4().hex[:12]}"
    assert inline.http.put(f"/v1/collections/{name}", json={"metadata": {"about": "it"}}).status_code == 201
    write(inline, name, *({"id": f"t{n}", "text": f"word{n} common", "metadata": {"n": n}} for n in range(count)))
    return name


def write(inline: InlineStack, name: str, *items: Says) -> None:
    job = run(inline, "index", {"collection": name, "items": list(items)})
    assert job["counts"]["failed"] == 0, job


def migrate(inline: InlineStack, name: str, model: str, **more: Any) -> Says:
    return run(inline, "index", {"collection": name, "operation": "migrate", **more}, model=model)


def moved(inline: InlineStack, name: str, model: str, **more: Any) -> list[Says]:
    job = migrate(inline, name, model, **more)
    assert job["status"] == "succeeded", job
    IndexResult.model_validate(job["result"])
    items: list[Says] = job["result"]["items"]
    return items


def test_a_collection_is_embedded_anew_and_keeps_everything_else(inline: InlineStack) -> None:
    name = texts(inline, 30)
    run(inline, "index", {"collection": name, "operation": "delete", "ids": ["t3"]})
    write(inline, name, {"id": "t4", "text": "replaced", "metadata": {"n": 4}})
    before = inline.http.get(f"/v1/collections/{name}").json()
    (only,) = moved(inline, name, NEW)
    assert only["migration"] == {
        "model": NEW, "model_fingerprint": "new-40", "former_model": OLD, "former_fingerprint": "old-24", "items": 29,
        "missing": 0,
    }  # fmt: skip
    after = inline.http.get(f"/v1/collections/{name}").json()
    assert (after["model"], after["dim"], after["count"]) == (NEW, 40, 29)
    assert {key: after[key] for key in ("name", "metadata", "created_at")} == {
        key: before[key] for key in ("name", "metadata", "created_at")
    }
    assert ids(inline, name, {"text": "word7 common"}, k=1) == ["t7"]
    assert ids(inline, name, {"text": "replaced"}, k=1, filter={"n": {"gt": 3}}) == ["t4"]
    assert found(inline, name, {"id": "t9"}, k=1)[0][0] == {
        "id": "t9", "score": 1.0, "text": "word9 common", "metadata": {"n": 9}, "image": None
    }  # fmt: skip
    assert [one["name"] for one in inline.http.get("/v1/collections").json()["collections"]].count(name) == 1
    assert moved(inline, name, NEW)[0]["migration"]["missing"] == 0  # again is fine


def test_searches_and_changes_go_on_all_the_while(inline: InlineStack) -> None:
    name = texts(inline, 300)
    stop, failures, searches = Event(), [], 0
    written: dict[str, str | None] = {f"t{n}": f"word{n} common" for n in range(300)}

    def search() -> None:
        nonlocal searches
        while not stop.is_set():
            job = run(inline, "search", {"collection": name, "queries": [{"text": "word5 common"}], "k": 1})
            hits = (job.get("result") or {}).get("results", [{}])[0].get("hits")
            if job["status"] != "succeeded" or not hits or hits[0]["id"] != "t5":
                failures.append(job)
            searches += 1

    def change() -> None:
        number = 0
        while not stop.is_set() and number < 500:
            number += 1
            if number % 3:
                item = f"t{100 + number % 150}"
                written[item] = f"word{number} again"
                write(inline, name, {"id": item, "text": written[item]})
            elif written.pop(item := f"t{10 + number}", None):
                run(inline, "index", {"collection": name, "operation": "delete", "ids": [item]})

    threads = [Thread(target=search), Thread(target=change)]
    for thread in threads:
        thread.start()
    try:
        for model in (NEW, OLD, NEW):
            moved(inline, name, model)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]
    assert searches > 3
    listed = [item for page in inline.client.item_pages(name) for item in page]
    assert {item["id"]: item["text"] for item in listed} == written
    for item, text in list(written.items())[::40]:
        assert found(inline, name, {"text": text}, k=400)[0][0]["score"] == pytest.approx(1.0, abs=1e-5), item


def test_what_the_new_model_cannot_embed_is_told_and_left_out_only_if_that_is_allowed(inline: InlineStack) -> None:
    name = texts(inline, 3)
    kept, lost = (inline.client.upload(png(seed=seed)) for seed in (1, 2))
    write(inline, name, {"id": "kept", "image": {"sha256": kept["sha256"]}, "text": "a caption"},
          {"id": "lost", "image": {"sha256": lost["sha256"]}})  # fmt: skip
    brought = {"id": "brought", "vector": [1.0] * 24, "text": "of something else"}
    vectors = {"collection": name, "items": [brought], "vectors_of": "old-24"}
    assert run(inline, "index", vectors)["status"] == "succeeded"
    inline.runtime.blobs.delete(lost["sha256"], "images")
    refused = migrate(inline, name, NEW)
    assert (refused["status"], refused["counts"]["failed"]) == ("failed", 3)
    whole, *each = refused["result"]["items"]
    assert "2 of 6 items cannot be embedded by new" in whole["error"]["detail"]
    assert "allow_missing" in whole["error"]["detail"]
    assert [(one["id"], one["error"]["code"]) for one in each] == [
        ("brought", "invalid_item"), ("lost", "item_not_found")
    ]  # fmt: skip
    assert inline.http.get(f"/v1/collections/{name}").json()["model"] == OLD
    assert ids(inline, name, {"text": "word1 common"}, k=1) == ["t1"]
    # What was mended goes over; what is allowed to be missing is told too.
    inline.client.upload(png(seed=2))
    head, missing = moved(inline, name, NEW, allow_missing=True)
    assert (head["migration"]["items"], head["migration"]["missing"]) == (5, 1)
    assert missing["id"] == "brought"
    assert ids(inline, name, {"id": "kept"}, k=1) == ["kept"]
    # Back again: the former generation has it still.
    assert moved(inline, name, OLD)[0]["migration"]["items"] == 6
    assert ids(inline, name, {"id": "brought"}, k=1) == ["brought"]


def test_vectors_of_two_models_never_meet_and_the_error_names_the_way_out(inline: InlineStack) -> None:
    name = texts(inline, 3)
    search = {"kind": "search", "input": {"collection": name, "queries": [{"text": "a"}]}, "model": NEW}
    answer = inline.http.post("/v1/jobs", json=search)
    assert (answer.status_code, answer.json()["code"]) == (409, "fingerprint_mismatch")
    for part in ("old-24", "new-40", f"revln index migrate {name} --model new"):
        assert part in answer.json()["detail"]
    moved(inline, name, NEW)
    late = {"kind": "index", "input": {"collection": name, "items": [{"text": "a"}]}, "model": OLD}
    assert inline.http.post("/v1/jobs", json=late).json()["code"] == "fingerprint_mismatch"
    own = f"own-{uuid4().hex[:12]}"
    assert inline.http.put(f"/v1/collections/{own}", json={"dim": 4}).status_code == 201
    for body, pointer in (
        ({"input": {"collection": own, "operation": "migrate"}, "model": NEW}, "/input/collection"),
        ({"input": {"collection": name, "operation": "migrate"}}, "/model"),
        ({"input": {"collection": name, "operation": "migrate"}, "model": "none"}, "/model"),
        ({"input": {"collection": name, "items": [{"text": "a"}], "allow_missing": True}}, "/input"),
    ):  # fmt: skip
        answer = inline.http.post("/v1/jobs", json={"kind": "index", **body})
        assert answer.status_code == 422, answer.text
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_generations_are_shown_and_given_up(inline: InlineStack) -> None:
    name = texts(inline, 4)
    path = f"/v1/collections/{name}/generations"
    assert [one["role"] for one in inline.http.get(path).json()["generations"]] == ["serving"]
    moved(inline, name, NEW)
    shown = inline.http.get(path).json()["generations"]
    assert [(one["role"], one["model"], one["count"]) for one in shown] == [("serving", NEW, 4), ("former", OLD, 4)]
    assert inline.http.delete(f"{path}/former").status_code == 204
    assert inline.http.delete(f"{path}/former").status_code == 404
    assert inline.http.delete(f"{path}/serving").status_code == 422
    moved(inline, name, OLD)  # anew, from the vectors that are kept
    assert ids(inline, name, {"text": "word2 common"}, k=1) == ["t2"]
    assert inline.http.delete(f"/v1/collections/{name}").status_code == 204
    assert json.loads(inline.http.get(path).text)["status"] == 404
    with inline.runtime.db.read() as connection:
        left = connection.exec_driver_sql("SELECT count(*) FROM collections WHERE shadow_of IS NOT NULL").scalar()
    assert isinstance(left, int)


def test_a_migration_that_is_cut_off_goes_on_where_it_stopped(
    inline: InlineStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = texts(inline, 95)
    calls: list[tuple[int, int]] = []

    def dies_once(connection: Any, shadow: Any, entries: Any, from_seq: int, to_seq: int) -> None:
        calls.append((from_seq, to_seq))
        follow(connection, shadow, entries, from_seq, to_seq)
        if len(calls) == 4:
            raise RuntimeError("as if it had been killed before it could commit")

    monkeypatch.setattr("worker.handlers.index.migrate._TOGETHER", 10)
    monkeypatch.setattr("worker.handlers.index.migrate.follow", dies_once)
    assert moved(inline, name, NEW)[0]["migration"]["items"] == 95
    assert calls[:5] == [(0, 10), (10, 20), (20, 30), (30, 40), (30, 40)]
    after = inline.http.get(f"/v1/collections/{name}").json()
    assert (after["model"], after["count"], after["head_seq"]) == (NEW, 95, 95)  # no item was written twice


def test_a_change_that_was_computed_before_the_swap_is_made_on_what_serves_after_it(
    inline: InlineStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = texts(inline, 5)
    begun, swapped = Event(), Event()

    def slowly(context: Any, collection: Any, contents: Any) -> None:
        if collection.model == OLD and not begun.is_set():
            begun.set()
            assert swapped.wait(60)

    monkeypatch.setattr("worker.handlers.index.upsert.prepare_next", slowly)
    late = inline.client.submit("index", {"collection": name, "items": [{"id": "late", "text": "late word"}]})
    assert begun.wait(60)
    moved(inline, name, NEW)
    swapped.set()
    assert inline.client.wait(late["id"], 60)["status"] == "succeeded"
    hits = found(inline, name, {"text": "late word"}, k=1)[0]
    assert [(hit["id"], hit["score"]) for hit in hits] == [("late", pytest.approx(1.0, abs=1e-5))]
    assert inline.client.collection(name)["count"] == 6


def test_a_collection_deleted_under_its_migration_ends_it_and_leaves_nothing(
    inline: InlineStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = texts(inline, 5)

    def delete_it(*_: Any) -> None:
        assert inline.http.delete(f"/v1/collections/{name}").status_code == 204

    monkeypatch.setattr("worker.handlers.index.migrate._try_missing", delete_it)
    job = migrate(inline, name, NEW)
    assert (job["status"], job["error"]["code"]) == ("failed", "not_found")
    with inline.runtime.db.read() as connection:
        orphans = "SELECT count(*) FROM collections WHERE shadow_of NOT IN (SELECT id FROM collections)"
        assert connection.exec_driver_sql(orphans).scalar() == 0


def test_of_two_migrations_at_once_the_later_one_is_told_of_the_other(
    inline: InlineStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = texts(inline, 5)
    begun, go_on = Event(), Event()

    def slowly(*_: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr("worker.handlers.index.migrate._try_missing", slowly)
    first = inline.client.submit("index", {"collection": name, "operation": "migrate"}, model=NEW)
    assert begun.wait(60)
    try:
        second = migrate(inline, name, NEW)
    finally:
        go_on.set()
    assert (second["status"], second["error"]["code"]) == ("failed", "conflict")
    assert f"being migrated to {NEW} by job {first['id']}" in second["error"]["detail"]
    assert inline.client.wait(first["id"], 60)["status"] == "succeeded"
    assert moved(inline, name, OLD)[0]["migration"]["items"] == 5  # one that is over is in nobody's way


def test_a_worker_that_dies_at_the_swap_leaves_it_undone_and_the_next_tells_what_is_missing(
    inline: InlineStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = texts(inline, 4)
    brought = {"id": "brought", "vector": [1.0] * 24}
    assert (
        run(inline, "index", {"collection": name, "items": [brought], "vectors_of": "old-24"})["counts"]["failed"] == 0
    )
    deaths: list[str] = []

    def dies_once(*arguments: Any) -> int:
        if not deaths:
            deaths.append("after the swap, before the commit")
            raise RuntimeError(deaths[0])
        return write_report(*arguments)

    monkeypatch.setattr("revln.db.jobs.chunks.write_report", dies_once)
    head, missing = moved(inline, name, NEW, allow_missing=True)
    assert deaths
    assert (head["migration"]["former_model"], head["migration"]["items"], head["migration"]["missing"]) == (OLD, 4, 1)
    assert missing["id"] == "brought"


@pytest.mark.parametrize("database", DATABASES)
def test_new_weights_under_the_same_name_take_a_collection_over(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As after an upgrade of revln whose built-in model is another one: the former weights are gone."""
    with fresh_database(database, tmp_path, request) as url:
        with inline_stack(url, tmp_path, WordCatalog(built_in=24), default_model="built_in") as before:
            name = texts(before, 6)
        with inline_stack(url, tmp_path, WordCatalog(built_in=40), default_model="built_in") as after:
            search = {"kind": "search", "input": {"collection": name, "queries": [{"text": "word3 common"}]}}
            refused = after.http.post("/v1/jobs", json=search)
            assert (refused.status_code, refused.json()["code"]) == (409, "fingerprint_mismatch")
            assert f"revln index migrate {name} --model built_in" in refused.json()["detail"]
            (only,) = moved(after, name, "built_in")
            assert (only["migration"]["items"], only["migration"]["missing"]) == (6, 0)
            assert ids(after, name, {"text": "word3 common"}, k=1) == ["t3"]
