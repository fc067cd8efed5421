"""vnicd: start, serve, reload, end.

Law: everything the process takes of the system is taken here, and given back in the order in which nothing
leaks: first no new calls, then no frames, then no devices.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path

from vnic import __version__
from vnic.control.access import Access, group_id
from vnic.control.server import Server, identity_of, listen, remove
from vnic.daemon import reload, systemd
from vnic.daemon.adapters import Adapters, Surroundings
from vnic.daemon.cards import CardSettings, EngineChoice, EngineWord, choose_engine
from vnic.daemon.config import DEFAULT_PATH, Config, Control, load
from vnic.daemon.events import Events
from vnic.daemon.handlers import About, Handlers
from vnic.daemon.host import Host, KernelHost
from vnic.daemon.journal import Journal
from vnic.daemon.memory import ease_collector
from vnic.daemon.numbers import Numbers, StateError
from vnic.engine.contract import Engine
from vnic.errors import ConfigError, ControlError

log = logging.getLogger("vnicd")

_PR_SET_DUMPABLE = 4
_NOTE_INTERVAL_S = 1.0
"""Between two notes of the numbers that have come: what came in it could pass twice after a crash."""

_DIRECTORY_MODE = 0o755


def main(argv: list[str] | None = None) -> int:
    """Run the daemon until it is told to end; give the exit code."""
    options = _parse(argv)
    try:
        config = load(options.config)
        choice = choose_engine(options.engine or config.engine)
    except ConfigError as error:
        print(f"vnicd: {error}", file=sys.stderr)
        return 1
    if options.check_config:
        where = config.path or f"no {DEFAULT_PATH}: the defaults"
        print(f"{where}: good, {len(config.adapters)} adapters")
        return 0
    if options.new_state:
        return _begin_state(config)
    systemd.configure_logging(os.environ, sys.stderr.fileno())
    _hide_memory()
    ease_collector()
    name, factory = _event_loop()
    try:
        numbers = Numbers(Path(config.state.directory)) if config.state.directory else None
    except StateError as error:
        log.error("%s", error)
        return 1
    if numbers is not None and not numbers.complete:
        log.warning(
            "[state] the record of sequence numbers in %s is of no use: %s. SAs send only when added with "
            "`fresh`; `vnicd --new-state` begins anew",
            config.state.directory,
            numbers.loss,
        )
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(
            Daemon(options.config, config, loop_name=name, numbers=numbers, engine=choice).run()
        )


class Daemon:
    """One run of vnicd."""

    def __init__(
        self,
        config_path: str | None,
        config: Config,
        *,
        loop_name: str = "asyncio",
        host: Host | None = None,
        numbers: Numbers | None = None,
        engine: EngineChoice | None = None,
        make_engine: Callable[[CardSettings], Engine] | None = None,
    ) -> None:
        """Prepare; nothing is taken of the system before `run`.

        Args:
            config_path: the file to read again on SIGHUP, as `config.load` takes it.
            config: what was read from it.
            engine: the engine of its adapters; None: the reference engine.
            make_engine: makes their cards instead of it.
        """
        choice = choose_engine("reference") if engine is None else engine
        self._config_path = config_path
        self._config = config
        self._notify = systemd.Notifier(os.environ).send
        self._events = Events(time.time)
        self._access = Access(
            administrators=_group(config.control.administrator_group, "administrator_group"),
            readers=_group(config.control.reader_group, "reader_group"),
        )
        to_journal = systemd.logs_to_journal(os.environ, sys.stderr.fileno())
        self._numbers = numbers
        self._journal = Journal(time.monotonic) if to_journal else None
        self._adapters = Adapters(
            Surroundings(
                host=KernelHost() if host is None else host,
                events=self._events,
                clock=time.monotonic,
                clock_ns=time.time_ns,
                make_engine=make_engine or choice.make,
                access=self._access,
                nbl_directory=os.path.dirname(config.control.socket),
                host_switches=config.host,
                journal=self._journal,
                numbers=numbers,
            )
        )
        self._about = About(
            engine=choice.name,
            ciphers=choice.ciphers,
            engine_reason=choice.reason,
            loop=loop_name,
            config=config.path,
            reveal_keys=config.control.reveal_keys,
            clock=time.monotonic,
            wall_clock=time.time,
            started=time.monotonic(),
        )
        self._reload_wanted = asyncio.Event()
        self._end_wanted = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; give the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end_wanted.set)
        loop.add_signal_handler(signal.SIGINT, self._end_wanted.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        logging.getLogger().setLevel(self._config.log_level.upper())
        async with contextlib.AsyncExitStack() as ending:
            try:
                server = await self._serve(ending)
            except ControlError as error:
                log.error("%s", error)
                return 1
            if self._journal is not None:
                ending.callback(self._journal.close)
            ending.push_async_callback(self._adapters.close)
            tasks = [loop.create_task(self._work())]
            if self._numbers is not None:
                ending.callback(self._note_last_numbers, self._numbers)
                tasks.append(loop.create_task(self._note_numbers(self._numbers)))
            ending.push_async_callback(server.close)
            ending.callback(self._announce_end)
            interval_s = systemd.watchdog_interval_s(os.environ, os.getpid())
            if interval_s is not None:
                tasks.append(loop.create_task(self._give_signs_of_life(interval_s)))
            ended = loop.create_task(self._end_wanted.wait())
            await asyncio.wait((ended, *tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in (ended, *tasks):
                task.cancel()
            await asyncio.wait((ended, *tasks))
            for task in tasks:
                if not task.cancelled() and (defect := task.exception()) is not None:
                    raise defect
        log.info("ended")
        return 0

    async def _serve(self, ending: contextlib.AsyncExitStack) -> Server:
        """Open the control socket and begin to serve."""
        control = self._config.control
        server = Server(Handlers(self._adapters, self._events, self._about), self._access)
        listening = systemd.inherited_socket(os.environ, os.getpid())
        if listening is None:
            listening = _listen(control, self._access)
            ending.callback(remove, control.socket, identity_of(control.socket))
        await server.start(listening)
        return server

    async def _work(self) -> None:
        """Bring the adapters up, then follow the configuration."""
        problems = await reload.apply(self._adapters, (), self._config.adapters)
        about = self._about
        log.info(
            "vnicd %s ready: %s engine (%s), %s, %d adapters",
            __version__,
            about.engine,
            about.engine_reason or about.ciphers,
            about.loop,
            len(self._adapters),
        )
        self._notify("READY=1", self._status(problems))
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            await self._reload()

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(load, self._config_path)
        except ConfigError as error:
            log.error("the configuration in force stays: %s", error)
            self._notify("READY=1", f"STATUS=configuration not reloaded: {error}")
            return
        if config.engine != self._config.engine:
            log.warning("engine changed: that takes a restart")
        if config.control != self._config.control:
            log.warning("[control] changed: that takes a restart")
        if config.state != self._config.state:
            log.warning("[state] changed: that takes a restart")
        if config.host != self._config.host:
            log.warning("[host] changed: that takes a restart")
        logging.getLogger().setLevel(config.log_level.upper())
        problems = await reload.apply(self._adapters, self._config.adapters, config.adapters)
        self._config = config
        log.info("configuration reloaded: %d adapters", len(self._adapters))
        self._events.tell("daemon_reloaded", "configuration reloaded")
        self._notify("READY=1", self._status(problems))

    def _status(self, problems: list[str]) -> str:
        text = f"STATUS={len(self._adapters)} adapters"
        return f"{text}, {len(problems)} could not be set up: {problems[0]}" if problems else text

    async def _note_numbers(self, numbers: Numbers) -> None:
        """Note, now and then, which numbers have come."""
        while True:
            await asyncio.sleep(_NOTE_INTERVAL_S)
            try:
                await numbers.note_tops(self._adapters.inbound_numbers())
            except StateError as error:
                log.error("%s", error)

    def _note_last_numbers(self, numbers: Numbers) -> None:
        try:
            numbers.note_last_tops(self._adapters.inbound_numbers())
        except StateError as error:
            log.error("%s", error)
        numbers.close()

    async def _give_signs_of_life(self, interval_s: float) -> None:
        while True:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    def _announce_end(self) -> None:
        self._notify("STOPPING=1", "STATUS=ending")
        self._events.tell("daemon_stopping", "the daemon ends")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vnicd", description="Virtual network cards with IPsec offload behind TAP devices."
    )
    parser.add_argument("--config", metavar="FILE", help=f"configuration file (default: {DEFAULT_PATH})")
    parser.add_argument(
        "--check-config", action="store_true", help="say whether the configuration is good, and end"
    )
    parser.add_argument(
        "--new-state",
        action="store_true",
        help="begin a record of sequence numbers in [state] directory, and end; no key that was used for "
        "sending before may be used again, but those an old record knows",
    )
    parser.add_argument(
        "--engine",
        choices=typing.get_args(EngineWord),
        help="engine of the adapters: native, reference, or auto: native if it works here (default: engine "
        "of the configuration file, or auto)",
    )
    parser.add_argument("--version", action="version", version=f"vnicd {__version__}")
    return parser.parse_args(argv)


def _begin_state(config: Config) -> int:
    """Declare the record of sequence numbers complete; give the exit code."""
    directory = config.state.directory
    if not directory:
        print("vnicd: the configuration names no [state] directory", file=sys.stderr)
        return 1
    try:
        with contextlib.closing(Numbers(Path(directory))) as numbers:
            if numbers.complete:
                print(f"{directory}: there is a record, and it is good")
                return 0
            numbers.begin()
    except StateError as error:
        print(f"vnicd: {error}", file=sys.stderr)
        return 1
    print(f"{directory}: begun; replace every key that was used for sending before")
    return 0


def _hide_memory() -> None:
    """Keep keys out of core files and away from debuggers that are not root."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("the process stays dumpable: %s", os.strerror(ctypes.get_errno()))


def _event_loop() -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Give uvloop if it is there, else asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return "asyncio", asyncio.new_event_loop
    return "uvloop", uvloop.new_event_loop


def _group(name: str, key: str) -> int | None:
    """Give the number of a group that the configuration names."""
    number = group_id(name)
    if name and number is None:
        log.warning("there is no group %s ([control] %s): root alone may use the control socket", name, key)
    return number


def _listen(control: Control, access: Access) -> socket.socket:
    """Make the control socket, and its directory if need be.

    Raises:
        ControlError: the system refused, or a daemon listens there.
    """
    directory = Path(control.socket).parent
    try:
        directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        raise ControlError(
            f"cannot make {directory} for the control socket: {error.strerror}; run vnicd as root, or name "
            "another [control] socket"
        ) from error
    return listen(control.socket, access.socket_group)


if __name__ == "__main__":
    sys.exit(main())
