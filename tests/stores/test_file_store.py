"""FileStore: where it keeps the file, what it refuses to open, and how it recovers from damage."""

import fcntl
import itertools
import os
import resource
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from stkai import ConfigurationError
from stkai._urls import file_name
from stkai.stores import FileStore, GroupRate, Quota, Refusal, Store, _file, store_from
from stkai.stores._file import SLOT
from stkai.testing import FakeClock

from ..support.interrupts import Interrupt, needs_opcodes
from ..support.threads import together
from .clients import Client, ask


@pytest.fixture
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_file, "clock", FakeClock())


def state_file(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


@pytest.mark.usefixtures("_time_stands_still")
def test_two_stores_on_one_directory_share_one_clock(tmp_path: Path) -> None:
    first, second = FileStore(tmp_path), store_from(f"file://{tmp_path}")
    assert isinstance(second, Store)
    one, other = Client(first), Client(second, "b")
    leases = [one.lease(), other.lease(), one.lease()]
    assert [lease.count for lease in leases] == [1, 1, 1]
    assert [lease.members for lease in leases] == [1, 2, 2]
    waits = [lease.ranges[0][0] for lease in leases]
    assert waits == pytest.approx([0.0, 0.1, 0.2])


def test_the_directory_and_the_file_are_private(tmp_path: Path) -> None:
    FileStore(tmp_path / "new").lease(ask())
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE(state_file(tmp_path / "new").stat().st_mode) == 0o600


@pytest.mark.parametrize("share", ["a/b", "../x", "..", ".", "Team", "team", "a b", "ü" * 500, "{x}"])
def test_every_name_stays_in_the_directory_in_a_file_of_its_own(tmp_path: Path, share: str) -> None:
    store = FileStore(tmp_path / "store")
    for name in (share, "other"):
        assert Client(store, share=name).wait() == 0
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
    make(tmp_path / file_name("team", ".share6"))
    with pytest.raises(ConfigurationError, match="not a regular file"):
        FileStore(tmp_path).lease(ask())


def test_a_directory_above_that_is_missing_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a directory"):
        FileStore(tmp_path / "missing" / "store")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is not a directory"):
        FileStore(tmp_path / "file")


@pytest.mark.parametrize("path", ["", "a\0b", b"name"])
def test_a_path_that_names_no_file_is_a_configuration_error(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="path must be a path"):
        FileStore(path)


def test_the_directory_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = FileStore("~/quotas")
    assert store.path == tmp_path / "quotas"
    assert store.lease(ask()).count == 1


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


def test_a_full_disk_neither_moves_the_default_directory_nor_is_an_error_before_the_first_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        store = FileStore()
        with pytest.raises(OSError, match="File too large"):
            store.lease(ask())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.path == tmp_path / f"stkai-{os.getuid()}"


@pytest.mark.usefixtures("_time_stands_still")
def test_permits_that_are_given_back_are_leased_to_the_next_that_asks(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    one, other, third = Client(store), Client(store, "b"), Client(store, "c")
    one.lease()
    place = one.wait()
    assert other.wait() > place
    one.used -= 1  # It did not use the last one, and keeps nothing.
    one.lease(0)
    assert [third.wait(), third.wait()] == pytest.approx([place, 0.3])


@pytest.mark.usefixtures("_time_stands_still")
def test_a_refusal_pauses_all_members_once_and_voids_all_leases(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    one, other = Client(store), Client(store, "b")
    other.lease()
    epoch = one.lease().epoch
    first = one.lease(0, refused=Refusal(epoch, 5.0))
    assert first.epoch == epoch + 1
    assert first.void
    assert first.pause == pytest.approx(5)
    again = other.lease(refused=Refusal(epoch, 3.0))
    assert again.epoch == epoch + 1
    assert again.void
    assert again.ranges[0][0] >= again.pause == pytest.approx(5)


def test_the_youngest_member_sets_the_quota(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    old, new = Client(store, rate=10.0, age=60.0), Client(store, "b", rate=20.0, age=5.0)
    old.lease()
    new.lease()
    lease = old.lease()
    assert lease.rate == lease.quota.rate == 20
    assert lease.quota.differences(Quota(10.0)) == ("rate",)


def test_a_clock_that_is_ahead_makes_no_member_younger(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    ahead, new = (
        Client(store, rate=10.0, started=1e9, age=60.0),
        Client(store, "b", rate=20.0, started=1.0, age=5.0),
    )
    assert [ahead.lease().rate, new.lease().rate, ahead.lease().rate] == [10, 20, 20]


def test_of_members_that_start_together_the_one_that_started_last_sets_the_quota(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    first, last = Client(store, rate=10.0, started=5.0), Client(store, "b", rate=20.0, started=5.1)
    assert [last.lease().rate, first.lease().rate, last.lease().rate] == [20, 20, 20]


def test_an_adaptive_state_is_replaced_only_by_one_that_knew_it(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    epoch, snapshot = store.lease(ask()).epoch, store.look("team")
    assert snapshot is not None
    law = store.lease(ask()).law
    assert law.memory == ""
    version = law.version
    new = GroupRate("team", 5.0, 2.0, "remember", version)
    assert not store.amend(epoch - 1, new)
    assert not store.amend(epoch, new._replace(version=version - 1))
    assert store.amend(epoch, new)
    assert not store.amend(epoch, new)
    found = store.lease(ask()).law
    assert found._replace(age=0.0) == new._replace(version=version + 1)


def test_looking_adds_no_member_and_a_reset_deletes_the_state(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert store.look("team") is None
    assert not store.reset("team")
    assert not list(tmp_path.iterdir())
    store.lease(ask(want=3, waiting=7))
    seen = store.look("team")
    assert seen is not None
    assert (seen.members, seen.waiting, seen.rate, seen.refused) == (1, 7, 10.0, None)
    assert seen.books == {"leased": 3, "used": 0, "returned": 0, "expired": 0, "held": 3}
    assert store.reset("team")
    assert store.look("team") is None
    assert not store.reset("team")


def half(content: bytes) -> bytes:
    return content[:100]


def rubbish(content: bytes) -> bytes:
    return bytes(range(256)) * 80


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


@pytest.mark.parametrize("damage", [half, rubbish, zeros])
def test_a_damaged_file_restarts_without_a_burst(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = FileStore(tmp_path)
    before = Client(store, burst=10.0).lease()
    path = state_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    client = Client(store, burst=10.0)
    assert client.lease(2).epoch > before.epoch
    assert client.wait() > 0


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("damaged", [0, 10, 40])
def test_one_damaged_slot_leaves_the_state_of_the_other(tmp_path: Path, slot: int, damaged: int) -> None:
    store = FileStore(tmp_path)
    epochs = {store.lease(ask()).epoch for _ in range(4)}
    store.close()
    with state_file(tmp_path).open("r+b") as file:
        file.seek(slot * SLOT + damaged)
        file.write(bytes(20))
    assert {FileStore(tmp_path).lease(ask()).epoch} == epochs


def test_a_deleted_file_or_directory_is_created_again(tmp_path: Path) -> None:
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
        with pytest.raises(TimeoutError, match="another process held the lock"):
            store.lease(ask())
    assert store.lease(ask()).count == 1


@pytest.mark.real_time
def test_the_error_says_whether_others_use_the_file_or_hold_its_lock_without_using_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, writes = FileStore(tmp_path), True

    def used_by_others(_: int) -> bool:
        if writes:
            os.utime(state_file(tmp_path))
        return False

    store.lease(ask())
    monkeypatch.setattr(_file, "_LOCK_TIMEOUT", 0.05)
    monkeypatch.setattr(_file, "try_lock", used_by_others)
    with pytest.raises(_file.InUseError, match="another process held the lock"):
        store.lease(ask())
    writes = False
    with pytest.raises(TimeoutError) as caught:
        store.lease(ask())
    assert type(caught.value) is TimeoutError


def descriptors_of(directory: Path) -> list[Path]:
    """The files of a directory that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # That of the loop itself.
            found.append(descriptor.readlink())
    return [path for path in found if path.is_relative_to(directory)]


@pytest.mark.no_cover
@needs_opcodes
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="nothing tells which files are open")
def test_an_interrupt_at_any_point_leaves_no_file_open_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_file, "_LOCK_TIMEOUT", 0.001)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    store, other = FileStore(tmp_path), FileStore(tmp_path)
    for number in count(1):
        interrupt = Interrupt(number, "stores/_file")
        with interrupt.during():
            store.lease(ask())
        assert not descriptors_of(tmp_path), number
        assert other.lease(ask("b")).count == 1
        if interrupt.left > 0:
            break
    assert number > 50, "there were interrupts"


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
    store = FileStore(tmp_path)
    first = store.lease(ask(rate=1.0, want=1))
    store.close()
    monkeypatch.setattr(_file, "_boot_id", lambda: "another")
    with pytest.raises(ConfigurationError, match="redis://"):
        store.lease(ask())
    monkeypatch.setattr(_file, "_OTHER_MACHINE_WITHIN", -1.0)
    second = store.lease(ask(rate=1.0))
    assert second.ranges[0][0] == 0
    assert second.epoch > first.epoch


def test_a_process_without_a_free_descriptor_is_not_taken_for_another_machine(tmp_path: Path) -> None:
    FileStore(tmp_path).lease(ask())
    _file._boot_id.cache_clear()
    free = os.dup(0)  # All below it are in use.
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            FileStore(tmp_path).lease(ask("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert FileStore(tmp_path).lease(ask("b")).members == 2


@pytest.mark.real_time
def test_a_child_that_is_forked_during_a_step_does_not_share_the_lock(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.lease(ask())
    reading, writing = os.pipe()

    def fork(_: object, now: float) -> int:
        child = os.fork()
        if not child:
            try:
                try:
                    store.lease(ask("child"))
                except TimeoutError as error:
                    os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        return os.waitpid(child, 0)[1]

    store._change("team", fork)
    assert os.read(reading, 100) == b"another process held the lock of the state file for 0.25 s"
    assert store.lease(ask()).members == 1
    os.close(reading)
    os.close(writing)


@pytest.mark.real_time
def test_threads_get_each_permit_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path)

    def take(name: str) -> list[float]:
        client = Client(store, name, rate=0.001)
        return [client.wait() for _ in range(50)]

    places = together(*[partial(take, name) for name in "abcd"])
    assert [round(place / 1000) for place in sorted(itertools.chain(*places))] == list(range(200))


def test_a_closed_store_opens_again(tmp_path: Path) -> None:
    client = Client(FileStore(tmp_path))
    client.lease()
    client.store.close()
    assert client.wait() > 0


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_thousand_shares_do_not_hold_a_thousand_descriptors(tmp_path: Path) -> None:
    before = open_descriptors()
    stores = [FileStore(tmp_path) for _ in range(200)]
    for number, store in enumerate(stores):
        store.lease(ask(share=f"share {number}"))
    assert open_descriptors() <= before + 1
    assert stores[0].lease(ask("b", share="share 0")).members == 2


@pytest.mark.parametrize("name", ["dir#b", "dir?b", "a b"])
def test_a_file_url_names_the_whole_path(tmp_path: Path, name: str) -> None:
    assert repr(store_from(f"file://{tmp_path}/{name}")) == repr(FileStore(tmp_path / name))


@pytest.mark.parametrize(
    "given", ["redis", "ftp://host", "file://", "file:///", "file:///a%00b", "file://host/x", 7, FileStore]
)
def test_an_invalid_store_is_a_configuration_error_that_lists_the_allowed_values(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="store") as caught:
        store_from(given)
    if given == "ftp://host":
        assert "'ftp'" in str(caught.value)
    if not str(given).startswith("file"):
        assert "redis://" in str(caught.value)
