"""FileStore: where it keeps the file, what it refuses to open, and how it recovers from damage."""

import fcntl
import os
import resource
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stkai import ConfigurationError
from stkai.stores import Ask, FileStore, Law, Lease, Refusal, Store, _file, _open_share, _place
from stkai.stores._choose import store_from


def ask(member: str = "a", want: int = 1, **others: Any) -> Ask:
    fields: dict[str, Any] = {"share": "team", "rate": 10.0, "burst": 1.0, "started": 1.0, **others}
    return Ask(member=member, want=want, **fields)


def state_file(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


def test_two_stores_on_one_directory_share_one_clock(tmp_path: Path) -> None:
    first, second = FileStore(tmp_path), store_from(f"file://{tmp_path}")
    assert isinstance(second, Store)
    leases = [first.lease(ask()), second.lease(ask("b")), first.lease(ask())]
    assert [lease.count for lease in leases] == [1, 1, 1]
    assert [lease.members for lease in leases] == [1, 2, 2]
    assert leases[1].wait == pytest.approx(0.1, abs=0.05)
    assert leases[2].wait == pytest.approx(0.2, abs=0.05)


def test_the_directory_and_the_file_are_private(tmp_path: Path) -> None:
    FileStore(tmp_path / "new").lease(ask())
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE(state_file(tmp_path / "new").stat().st_mode) == 0o600


@pytest.mark.parametrize("share", ["a/b", "../x", "..", ".", "Team", "team", "a b", "ü" * 500, "{x}"])
def test_every_name_stays_in_the_directory_in_a_file_of_its_own(tmp_path: Path, share: str) -> None:
    store = FileStore(tmp_path / "store")
    for name in (share, "other"):
        assert store.lease(ask(share=name)).wait == 0
    assert len(list((tmp_path / "store").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("share", ["", "  ", 7, b"x", None, "a\x00b", "\ud800", "x" * 1001])
def test_an_invalid_name_is_a_configuration_error(tmp_path: Path, share: Any) -> None:
    with pytest.raises(ConfigurationError, match="share"):
        FileStore(tmp_path).lease(ask(share=share))


def test_a_symbolic_link_in_the_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigurationError, match="symbolic link"):
        FileStore(tmp_path / "link")


def test_a_symbolic_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = tmp_path / "store"
    FileStore(directory).lease(ask())
    path = state_file(directory)
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        FileStore(directory).lease(ask())
    assert victim.read_text() == "precious"


def make_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [make_directory, os.mkfifo])
def test_only_a_plain_file_is_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / _place.file_name("team"))
    with pytest.raises(ConfigurationError, match="not a regular file"):
        FileStore(tmp_path).lease(ask())


def test_a_directory_above_that_is_missing_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a directory"):
        FileStore(tmp_path / "missing" / "store")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is not a directory"):
        FileStore(tmp_path / "file")


def test_the_default_directory_is_the_users_own_and_no_other_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = FileStore()
    assert store.path == tmp_path / f"stkai-{os.getuid()}"
    assert store.lease(ask()).count == 1
    store.path.chmod(0o755)
    with pytest.raises(ConfigurationError, match="not private"):
        FileStore()


def test_places_that_are_given_back_are_given_to_the_next_that_asks(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.lease(ask())
    place = store.lease(ask()).wait
    store.lease(ask("b"))
    store.lease(ask(want=0, back=(place,)))
    assert store.lease(ask("c")).wait == pytest.approx(place, abs=0.05)
    assert store.lease(ask("c")).wait == pytest.approx(0.3, abs=0.05)


def test_a_refusal_pauses_all_members_once_and_voids_all_leases(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    epoch = store.lease(ask()).epoch
    first = store.lease(ask(want=0, refused=Refusal(epoch, 5.0)))
    assert first.epoch == epoch + 1
    assert first.pause == pytest.approx(5, abs=0.05)
    again = store.lease(ask("b", refused=Refusal(epoch, 3.0)))
    assert again.epoch == epoch + 1
    assert again.wait >= again.pause == pytest.approx(5, abs=0.1)


def test_the_member_that_started_last_sets_the_quota(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.lease(ask("old", started=1.0, rate=10.0))
    store.lease(ask("new", started=2.0, rate=20.0))
    lease = store.lease(ask("old", started=1.0, rate=10.0))
    assert lease.rate == lease.quota == 20


def test_an_adaptive_state_is_replaced_only_by_one_that_knew_it(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    epoch, snapshot = store.lease(ask()).epoch, store.look("team")
    assert snapshot is not None
    law = store.lease(ask()).law
    assert law.memory == ""
    version = law.version
    new = Law("team", 5.0, 2.0, "remember", version)
    assert not store.amend(epoch - 1, new)
    assert not store.amend(epoch, new._replace(version=version - 1))
    assert store.amend(epoch, new)
    assert not store.amend(epoch, new)
    found = store.lease(ask()).law
    assert found._replace(age=0.0) == new._replace(version=version + 1)


def test_looking_adds_no_member_and_a_reset_deletes_the_state(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert store.look("team") is None
    store.lease(ask(want=3, waiting=7))
    seen = store.look("team")
    assert seen is not None
    assert (seen.members, seen.waiting, seen.rate, seen.refused) == (1, 7, 10.0, None)
    store.reset("team")
    assert store.look("team") is None


def half(content: bytes) -> bytes:
    return content[:100]


def rubbish(content: bytes) -> bytes:
    return bytes(range(256)) * 80


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


@pytest.mark.parametrize("damage", [half, rubbish, zeros])
def test_a_damaged_file_restarts_without_a_burst(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = FileStore(tmp_path)
    before = store.lease(ask(burst=10.0))
    path = state_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    after = store.lease(ask(burst=10.0, want=2))
    assert after.epoch > before.epoch
    assert store.lease(ask(burst=10.0)).wait > 0


@pytest.mark.parametrize("slot", [0, 1])
def test_one_damaged_slot_leaves_the_state_of_the_other(tmp_path: Path, slot: int) -> None:
    store = FileStore(tmp_path)
    epochs = {store.lease(ask()).epoch for _ in range(4)}
    path = state_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[slot * 8192 + 40 : slot * 8192 + 60] = bytes(20)
    path.write_bytes(content)
    assert {FileStore(tmp_path).lease(ask()).epoch} == epochs


def test_a_deleted_file_or_directory_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_file, "_LOOK_AGAIN", 0.0)
    monkeypatch.setattr(_file, "_STILL_LINKED", 0.0)
    directory = tmp_path / "store"
    store = FileStore(directory)
    store.lease(ask())
    state_file(directory).unlink()
    assert store.lease(ask()).members == 1
    assert FileStore(directory).lease(ask("newcomer")).members == 2
    state_file(directory).unlink()
    directory.rmdir()
    assert store.lease(ask()).members == 1
    assert FileStore(directory).lease(ask("newcomer")).members == 2


@pytest.mark.real_time
def test_a_lock_that_others_hold_is_given_up_after_a_quarter_of_a_second(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.lease(ask())
    with state_file(tmp_path).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert store.try_lease(ask()) is None
        with pytest.raises(TimeoutError, match="another process held the lock"):
            store.lease(ask())
    assert store.lease(ask()).count == 1


def test_a_write_that_fails_leaves_the_last_state_and_is_an_os_error(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    epoch = store.lease(ask()).epoch
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        for _ in range(2):
            with pytest.raises(OSError, match=r"File too large|were written"):
                store.lease(ask())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.lease(ask()).epoch == epoch


def test_after_a_reboot_the_state_restarts_and_another_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FileStore(tmp_path).lease(ask(rate=1.0, want=1))
    monkeypatch.setattr(_open_share, "_boot", [bytes(16)])
    with pytest.raises(ConfigurationError, match="redis://"):
        FileStore(tmp_path).lease(ask())
    monkeypatch.setattr(_open_share, "_TWO_MACHINES", -1.0)
    second = FileStore(tmp_path).lease(ask(rate=1.0))
    assert second.wait == 0
    assert second.epoch > first.epoch


def test_a_forked_child_reopens_the_file(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.lease(ask())
    mine = store._shares["team"].fd
    assert store._shares["team"].lock.acquire(blocking=False)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            lease = store.lease(ask("child"))
            os.write(writing, f"{lease.members} {store._pid == os.getpid()}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    store._shares["team"].lock.release()
    assert os.read(reading, 100) == b"2 True"
    assert store._shares["team"].fd == mine
    assert store.lease(ask()).members == 2
    os.close(reading)
    os.close(writing)


@pytest.mark.real_time
def test_threads_get_each_permit_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    leases: list[Lease] = []

    def take(name: str) -> None:
        leases.extend(store.lease(ask(name, rate=0.001)) for _ in range(50))

    threads = [threading.Thread(target=take, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    places = sorted(lease.wait for lease in leases)
    assert [round(place / 1000) for place in places] == list(range(200))


def test_a_closed_store_opens_again(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.lease(ask())
    store.close()
    assert store.lease(ask()).wait > 0


@pytest.mark.parametrize(
    "given", ["redis", "ftp://host", "file://", "file:///", "file://host/x", 7, FileStore]
)
def test_an_invalid_store_is_a_configuration_error_that_lists_the_allowed_values(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="store") as caught:
        store_from(given)
    if given == "ftp://host":
        assert "'ftp'" in str(caught.value)
    if not str(given).startswith("file"):
        assert "redis://" in str(caught.value)
