"""vnicd from start to end, on ports of paper and a real socket."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from daemon_fakes import FakeEngine, FakeHost, run

from vnic.control import interface as api
from vnic.control.client import Client
from vnic.daemon.config import load
from vnic.daemon.main import Daemon, main
from vnic.errors import PortError

ONE = '[[adapter]]\nname = "left"\ntap = "tap0"\n'
TWO = ONE + '[[adapter]]\nname = "right"\ntap = "tap1"\nwire = { link = "left" }\n'


class Run:
    """A daemon under test, in this very process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "v.toml"
        self.socket = directory / "run" / "v.sock"
        self.host = FakeHost()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(directory / "notify"))
        self.manager.setblocking(False)
        self.said: list[str] = []

    def write(self, adapters: str, *, log_level: str = "info") -> None:
        control = f'[control]\nsocket = "{self.socket}"\nreader_group = ""\n'
        self.config.write_text(f'log_level = "{log_level}"\n{control}{adapters}')

    async def said_(self, word: str, timeout_s: float = 5.0) -> str:
        """Wait until the daemon said something to the service manager."""
        async with asyncio.timeout(timeout_s):
            while True:
                for text in self.said:
                    if word in text:
                        self.said.remove(text)
                        return text
                try:
                    self.said.append(self.manager.recv(10_000).decode())
                except BlockingIOError:
                    await asyncio.sleep(0.005)

    async def client(self) -> Client:
        return await Client.connect(str(self.socket))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[int]]:
        config = load(str(self.config))
        daemon = Daemon(str(self.config), config, host=self.host, make_engine=FakeEngine)
        task = asyncio.create_task(daemon.run())
        try:
            await self.said_("READY=1")
            yield task
            os.kill(os.getpid(), signal.SIGTERM)
            assert await asyncio.wait_for(task, 2) == 0
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    for name in ("WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.manager.close()


def test_daemon_serves_and_ends_without_leaving_anything(daemon: Run) -> None:
    async def work() -> None:
        daemon.write(TWO)
        async with daemon.running(), await daemon.client() as client:
            adapters = (await client.call(api.ListAdapters())).adapters
            assert [(one.name, one.wire.name) for one in adapters] == [("left", "right"), ("right", "left")]
            reply = await client.call(api.GetDaemon())
            assert (reply.pid, reply.config, reply.adapter_count) == (os.getpid(), str(daemon.config), 2)
            monitor = client.stream(api.Monitor())
            assert (await anext(monitor)).event.kind == "subscribed"
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await anext(monitor)).event.kind == "daemon_stopping"
            await monitor.aclose()
        assert "STATUS=ending" in await daemon.said_("STOPPING=1")
        assert daemon.host.open_ports == []
        assert not daemon.socket.exists()

    run(work())


def test_status_tells_the_adapters_and_what_failed(daemon: Run) -> None:
    async def work() -> None:
        daemon.write(TWO)
        daemon.host.refusals["open_tap", "tap1"] = PortError("tap1 is busy")
        async with daemon.running():
            daemon.write(ONE)
            os.kill(os.getpid(), signal.SIGHUP)
            await daemon.said_("RELOADING=1")
            assert "STATUS=1 adapters" in await daemon.said_("READY=1")

    run(work())


def test_failure_of_one_adapter_is_in_the_status(daemon: Run) -> None:
    async def work() -> None:
        daemon.write(TWO)
        daemon.host.refusals["open_tap", "tap1"] = PortError("tap1 is busy")
        config = load(str(daemon.config))
        task = asyncio.create_task(
            Daemon(str(daemon.config), config, host=daemon.host, make_engine=FakeEngine).run()
        )
        status = await daemon.said_("READY=1")
        assert "1 adapters, 1 could not be set up: adapter right: tap1 is busy" in status
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(task, 2) == 0

    run(work())


def test_hangup_applies_the_difference(daemon: Run) -> None:
    async def work() -> None:
        daemon.write(ONE)
        async with daemon.running(), await daemon.client() as client, await daemon.client() as listener:
            monitor = listener.stream(api.Monitor())
            await anext(monitor)
            await client.call(api.AddAdapter(name="guest", tap="tap9"))
            daemon.write(TWO, log_level="debug")
            os.kill(os.getpid(), signal.SIGHUP)
            assert "MONOTONIC_USEC=" in await daemon.said_("RELOADING=1")
            assert "STATUS=3 adapters" in await daemon.said_("READY=1")
            kinds = [(await anext(monitor)).event.kind for _ in range(5)]
            assert kinds == [
                "adapter_added",
                "adapter_added",
                "adapter_changed",
                "adapter_changed",
                "daemon_reloaded",
            ]
            await monitor.aclose()

    run(work())


def test_bad_configuration_changes_nothing_on_hangup(daemon: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        daemon.write(ONE)
        async with daemon.running(), await daemon.client() as client:
            daemon.write(ONE + "colour = 1")
            os.kill(os.getpid(), signal.SIGHUP)
            assert "not reloaded" in await daemon.said_("READY=1")
            assert "adapter.left.colour" in caplog.text
            assert len((await client.call(api.ListAdapters())).adapters) == 1
            daemon.config.write_text(
                "[control]\nsocket = '/tmp/elsewhere'\n[host]\ndisable_task_offload = true\n"
            )
            os.kill(os.getpid(), signal.SIGHUP)
            await daemon.said_("STATUS=0 adapters")
            assert "[control] changed: that takes a restart" in caplog.text
            assert "[host] changed: that takes a restart" in caplog.text

    run(work())


def test_watchdog_is_fed(daemon: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        daemon.write("")
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        async with daemon.running():
            for _ in range(3):
                await daemon.said_("WATCHDOG=1")

    run(work())


def test_second_daemon_on_the_same_socket_is_refused(daemon: Run) -> None:
    async def work() -> None:
        daemon.write("")
        async with daemon.running(), await daemon.client() as client:
            words = [sys.executable, "-m", "vnic.daemon.main", "--config", str(daemon.config)]
            second = await asyncio.to_thread(
                subprocess.run, words, capture_output=True, text=True, timeout=60
            )
            assert second.returncode == 1
            assert "another daemon listens" in second.stderr
            await client.call(api.GetDaemon())

    run(work())


def test_socket_that_a_killed_daemon_left_is_replaced(daemon: Run) -> None:
    async def work() -> None:
        daemon.write("")
        daemon.socket.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(daemon.socket))
        async with daemon.running(), await daemon.client() as client:
            await client.call(api.GetDaemon())

    run(work())


def test_group_that_does_not_exist_is_logged(daemon: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        daemon.config.write_text(f'[control]\nsocket = "{daemon.socket}"\nreader_group = "no-such-group"\n')
        async with daemon.running():
            assert "there is no group no-such-group" in caplog.text
            assert daemon.socket.stat().st_mode & 0o777 == 0o600

    run(work())


# ------------------------------------------------------------------------------------ command line


def test_good_configuration_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.toml"
    path.write_text(TWO)
    assert main(["--check-config", "--config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: good, 2 adapters\n"


def test_bad_configuration_is_named_with_file_key_value_and_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.toml"
    path.write_text(ONE + "mtu = 5\n")
    for argv in (["--check-config", "--config", str(path)], ["--config", str(path)]):
        assert main(argv) == 1
        assert capsys.readouterr().err == (
            f"vnicd: {path}: MTU out of range [adapter.left.mtu = 5]; allowed: 68 to 65521, or the default\n"
        )


def test_check_needs_no_file_when_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vnic.daemon.config.DEFAULT_PATH", str(tmp_path / "none"))
    assert main(["--check-config"]) == 0
    assert "good, 0 adapters" in capsys.readouterr().out


def test_check_needs_no_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    path = tmp_path / "v.toml"
    path.write_text(TWO)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    path.chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-m", "vnic.daemon.main", "--check-config", "--config", str(path)],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_process_keeps_its_memory_to_itself() -> None:
    code = (
        "import ctypes, resource\n"
        "from vnic.daemon.main import _hide_memory\n"
        "_hide_memory()\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0 (0, 0)\n"


def test_asyncio_alone_will_do_when_uvloop_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from vnic.daemon.main import _event_loop

    assert _event_loop()[0] == "uvloop"
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert _event_loop() == ("asyncio", asyncio.new_event_loop)
