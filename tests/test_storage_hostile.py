"""Whoever can write to a store writes data: nothing in it runs code here, is read or written outside it, or passes for
what it is not."""

import base64
import hashlib
import json
import pickle
import shutil

import pytest
from stage_helpers import built, states
from test_storage_s3 import KEY, names, publish, s3, server  # noqa: F401 - fixtures

from storage.digest import digest_of
from storage.lineage import file_users
from storage.store import Store, StoreError, open_store
from storage.withdrawal import rule_for


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def prefect_record(trap):
    """A record that runs code when Prefect reads it."""
    result = base64.b64encode(pickle.dumps(Trap(trap))).decode()
    return json.dumps({"metadata": {"serializer": {"type": "pickle", "picklelib": "pickle"}}, "result": result})


def test_a_record_for_prefect_that_came_with_an_artifact_is_never_read(tmp_path, player, s3):  # noqa: F811
    trap = tmp_path / "trap"
    record = prefect_record(trap)
    made = player(tmp_path / "one", s3.env)
    for name, (_, key, _) in made["stages"].items():
        s3.put_object(Bucket=s3.bucket, Key=f"team/a/{name}/{key}/prefect.json", Body=record)
    assert set(states(player(tmp_path / "two", s3.env)).values()) == {"cached"} and built(tmp_path / "two") == []
    copied = tmp_path / "three"
    shutil.copytree(tmp_path / "one", copied)
    for path in copied.glob("store/*/*/lineage.json"):
        path.with_name("prefect.json").write_text(record)
    assert set(states(player(copied)).values()) == {"cached"} and not trap.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../../../escaped",
        "{}/escaped",
        "sub/../../../../escaped",
        "_run/../../../escaped",
        ".hidden",
        "lineage.json",
        "a\\..\\b",
        "_run/x",
    ],
)
def test_a_manifest_that_names_what_is_not_in_the_artifact_is_damage(tmp_path, s3, name):  # noqa: F811
    name = name.format(tmp_path)
    publish(open_store(tmp_path / "one"))
    data = b"evil"
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    record = {"stage": "clean", "key": KEY, "digest": digest_of(listed), "inputs": []}
    base = f"team/a/clean/{KEY}/"
    for rel, body in ((name, data), ("manifest.json", json.dumps(listed)), ("lineage.json", json.dumps(record))):
        s3.put_object(Bucket=s3.bucket, Key=base + rel, Body=body)
    lines = []
    two = open_store(tmp_path / "deep" / "er" / "two", lines.append)
    assert two.ready("clean", KEY) is None and "which is no file of an artifact" in lines[0]
    place = tmp_path / "three" / "clean" / KEY
    place.mkdir(parents=True)
    (place / "manifest.json").write_text(json.dumps(listed))
    (place / "lineage.json").write_text(json.dumps(record))
    assert Store(tmp_path / "three").examine("clean", KEY).state == "damaged"
    assert not [p for p in tmp_path.rglob("*escaped*")]


def test_only_listed_files_and_plain_files_of_run_are_downloaded(tmp_path, s3):  # noqa: F811
    publish(open_store(tmp_path / "one"))
    more = [
        "part-99999.parquet",
        "_run/../../../up.txt",
        "_run/checkpoints/x",
        "_run/logs/a.log",
        "_run/.x",
        "_run//abs",
    ]
    for rel in more:
        s3.put_object(Bucket=s3.bucket, Key=f"team/a/clean/{KEY}/{rel}", Body=b"x")
    made = open_store(tmp_path / "deep" / "two").ready("clean", KEY)
    found = {p.relative_to(made.path).as_posix() for p in made.path.rglob("[!.]*") if p.is_file()}
    assert found == {"sub/a.txt", "manifest.json", "lineage.json", "_run/logs/a.log"}
    assert not list(tmp_path.rglob("up.txt"))


def test_a_download_does_not_follow_links_that_lie_in_its_way(tmp_path, s3):  # noqa: F811
    publish(open_store(tmp_path / "one"))
    (tmp_path / "mine").mkdir()
    half = tmp_path / "two" / "clean" / f"{KEY}.download"
    half.mkdir(parents=True)
    (half / "sub").symlink_to(tmp_path / "mine")
    made = open_store(tmp_path / "two").ready("clean", KEY)
    assert (made.path / "sub" / "a.txt").read_text() == "hello" and not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("text", ["[]", "{", '{"stage": "other", "key": "x", "digest": "d"}', '"x"', "\xff"])
def test_records_of_another_form_are_no_records(tmp_path, s3, text):  # noqa: F811
    publish(open_store(tmp_path / "one"))
    for name in (f"clean/{KEY}/lineage.json", f"odd/{KEY}/lineage.json", "withdrawn/0123456789abcdef.json"):
        s3.put_object(Bucket=s3.bucket, Key=f"team/a/{name}", Body=text.encode("latin-1"))
    s3.put_object(Bucket=s3.bucket, Key="team/a/withdrawn/../../up.json", Body=b"{}")
    two = open_store(tmp_path / "two")
    assert two.ready("clean", KEY) is None and two.everywhere() == {}
    publish(two)
    assert open_store(tmp_path / "three").ready("clean", KEY) is not None


def test_a_copied_store_leads_nowhere_else(tmp_path):
    home, mine = Store(tmp_path / "one"), tmp_path / "mine"
    path = publish(home).path
    mine.mkdir()
    (mine / "note.v2").mkdir()
    (mine / "a.txt").write_text("hello")
    (path / "sub" / "a.txt").unlink()
    (path / "sub" / "a.txt").symlink_to(mine / "a.txt")
    assert "not a plain file" in home.examine("clean", KEY).why
    shutil.rmtree(path / "_run")
    (path / "_run").symlink_to(mine)
    assert "is a link" in home.examine("clean", KEY).why
    partial = home.root / "clean" / f"{KEY}.partial"
    partial.mkdir()
    (partial / "_run").symlink_to(mine)
    assert not (home.partial("clean", KEY) / "_run").is_symlink() and (mine / "a.txt").exists()
    (home.root / "shard").symlink_to(mine)
    with pytest.raises(StoreError, match="is a link"):
        home.partial("shard", KEY)
    assert home.leftovers() == [partial] and list(home.records("shard")) == []
    for stage, key in (("../x", KEY), ("clean", ".."), ("clean", "a/b"), ("", KEY)):
        with pytest.raises(StoreError, match="cannot be the name"):
            home.directory(stage, key)


def test_a_record_that_names_another_place_moves_and_deletes_nothing(tmp_path):
    store = Store(tmp_path)
    path = publish(store).path / "lineage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage": "..", "key": "../.."}))
    assert list(store.records()) == [] and "another artifact" in store.examine("clean", KEY).why


def test_files_that_an_artifact_does_not_list_are_moved_out_of_a_stages_sight(tmp_path):
    lines = []
    store = Store(tmp_path, lines.append)
    path = publish(store).path
    (path / "part-99999.parquet").write_text("slipped in")
    (path / ".DS_Store").write_text("the file browser was here")
    assert store.ready("clean", KEY) is not None and "no part of it" in lines[0]
    assert not (path / "part-99999.parquet").exists() and (path / "_run" / "unlisted" / "part-99999.parquet").exists()


def test_a_file_is_traced_and_withdrawn_by_path_name_or_content(tmp_path):
    store, sha = Store(tmp_path), "a" * 64
    listing = {"name": "books", "digest": "d" * 64, "files": [{"path": "deep/one.txt", "bytes": 3, "sha256": sha}]}
    source = {"name": "books", "digest": "d" * 64}
    given = {"name": "sources", "stage": "source", "key": "", "digest": "e" * 64, "sources": [source]}
    (store.partial("ingest", KEY) / "a").write_text("1")
    store.publish("ingest", KEY, {"inputs": [given], "sources": [source], "run": "r"}, [listing])
    (store.partial("clean", KEY) / "a").write_text("2")
    after = {"name": "docs", "stage": "ingest", "key": KEY, "digest": "x"}
    store.publish("clean", KEY, {"inputs": [after], "sources": store.sources_of([after]), "run": "r"})

    def find(what, content=None):
        return file_users(store.everywhere(), lambda place: store.directory(*place), what, content)

    for what in (
        "one.txt",
        "deep/one.txt",
        "books/deep/one.txt",
        "./books/deep/one.txt",
        "/data/books/deep/one.txt",
        sha[:8],
    ):
        assert [use["record"]["stage"] for use in find(what)] == ["ingest"], what
    assert find("elsewhere.txt", sha) and not find("ne.txt") and not find("one.txt", "b" * 64)
    rule = rule_for(store.everywhere(), "books/deep/one.txt", "not ours", find("books/deep/one.txt"))
    assert rule["files"] == [sha] and [a[0] for a in rule["artifacts"]] == ["clean", "ingest"]
    store.withdrawals.add(rule)
    assert "not ours" in store.examine("clean", KEY).why and "not ours" in store.withdrawals.source("f" * 64, [sha])
    (store.partial("clean", "j" * 32) / "a").write_text("3")
    store.publish("clean", "j" * 32, {"inputs": [after], "sources": [source], "run": "later"})
    assert "not ours" in store.examine("clean", "j" * 32).why
    store.withdrawals.remove(rule["what"])
    assert store.ready("clean", KEY) is not None and rule_for(store.everywhere(), "books/", "x")["what"] == "books"
