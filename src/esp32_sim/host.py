# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves boards: one listener each, for the port's client and for the control channel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
from pathlib import Path

from esp32_sim import usb, wire
from esp32_sim.board import Board
from esp32_sim.config import BoardConfig
from esp32_sim.controlserver import Control

HOST = "127.0.0.1"


class BoardHost:
    """One board on the air: owns its listener and its address files."""

    def __init__(self, directory: Path, config: BoardConfig | None = None) -> None:
        self.directory = directory
        self.board = Board(directory, config or BoardConfig.load(directory))
        self.board.on_leave_bus = self._leave_bus
        # Where the cable is.
        self.place = directory
        self._pulled = False
        self._back: asyncio.TimerHandle | None = None
        self.port_directory: Path | None = None
        self._token = secrets.token_hex(16)
        self._server: asyncio.Server | None = None
        self._client: asyncio.StreamWriter | None = None
        self._client_pid = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, publish the addresses, apply power."""
        self._server = await asyncio.start_server(self._connected, HOST, 0, limit=1 << 20)
        wire.write_address(self.directory, wire.CONTROL_FILE, HOST, self._port(), self._token)
        self.plug(self.directory)
        if self.board.config.boots_at_start:
            self.board.power_on()

    async def stop(self) -> None:
        """Take everything down; the flash file stays."""
        self.pull()
        with contextlib.suppress(FileNotFoundError):
            (self.directory / wire.CONTROL_FILE).unlink()
        if self._server is not None:
            self._server.close()
        self.board.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    # --- the USB cable

    def plug(self, directory: Path) -> None:
        """Make the port appear under a directory's name."""
        self._cancel_return()
        self._pulled = False
        if self.port_directory is not None:
            self.unplug()
        self.port_directory = directory
        wire.write_address(
            directory,
            wire.PORT_FILE,
            HOST,
            self._port(),
            self._token,
            usb=usb.identity(self.board.config),
        )
        self.board.history.add("plugged", directory=str(directory))

    def pull(self) -> None:
        """Somebody pulls the cable: the port is gone until `plug`."""
        self._cancel_return()
        self._pulled = True
        self.unplug()

    def bridged(self) -> None:
        """The board is behind a bridge, whose port has power of its own."""
        if self.port_directory is None and not self._pulled:
            self.plug(self.place)

    def _leave_bus(self, back_s: float | None) -> None:
        """The chip's own port goes, and is back after so long, perhaps under another name."""
        self._cancel_return()
        self.unplug()
        if back_s is not None and not self._pulled:
            name = self.board.config.usb_name
            where = self.directory.parent / name if name else self.place
            self._back = asyncio.get_running_loop().call_later(back_s, self.plug, where)

    def _cancel_return(self) -> None:
        if self._back is not None:
            self._back.cancel()
            self._back = None

    def unplug(self) -> None:
        """Make the port vanish; an open client gets errors."""
        if self.port_directory is None:
            return
        # Another board may have got the name meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if wire.read_address(self.port_directory, wire.PORT_FILE)["token"] == self._token:
                (self.port_directory / wire.PORT_FILE).unlink()
        self.port_directory = None
        if self._client is not None:
            self._client.write(wire.frame(wire.GONE))
            self._client.close()
            self._client_closed(gone=True)
        self.board.history.add("unplugged")

    # --- connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = writer.get_extra_info("socket")
        if link is not None:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            hello = json.loads(await reader.readline())
            if hello.get("token") != self._token:
                await self._say(writer, {"error": "token"})
            elif hello.get("control"):
                await Control(self).serve(reader, writer)
            else:
                await self._serve_port(hello, reader, writer)
        except (ConnectionError, ValueError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            if writer is self._client:
                self._client_closed()
            writer.close()
            self._tasks.discard(task)

    @staticmethod
    async def _say(writer: asyncio.StreamWriter, answer: dict[str, object]) -> None:
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()

    async def _serve_port(
        self,
        hello: dict[str, object],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        board = self.board
        if self.port_directory is None:
            await self._say(writer, {"error": "missing"})
            return
        if self._client is not None:
            await self._say(writer, {"error": "busy", "pid": self._client_pid})
            return
        self._client = writer
        self._client_pid = int(str(hello.get("pid", 0)))
        board.client_baud = int(str(hello["baud"]))

        def deliver(data: bytes) -> None:
            if not writer.is_closing():
                writer.write(wire.frame(wire.DATA, data))

        board.deliver = deliver
        await self._say(writer, {"timed": board.config.timed and board.config.usb == "bridge"})
        lines = int(str(hello["lines"]))
        board.history.add("opened", pid=self._client_pid, baud=board.client_baud, lines=lines)
        self._set_lines(lines, float(str(hello["time"])))
        if board.config.resets_on_open:
            board.reset_button()
        frames = wire.FrameReader()
        while data := await reader.read(1 << 18):
            for kind, payload in frames.feed(data):
                if writer is not self._client:
                    return  # the port has gone, perhaps by the line's change just before
                if kind == wire.DATA:
                    board.host_sends(payload)
                elif kind == wire.LINES:
                    flags, at_s = wire.LINES_BODY.unpack(payload)
                    self._set_lines(flags, at_s)
                elif kind == wire.BAUD:
                    board.client_baud = wire.BAUD_BODY.unpack(payload)[0]
                elif kind == wire.DRAIN:
                    asyncio.get_running_loop().call_later(
                        board.host_drained_in_s(),
                        writer.write,
                        wire.frame(wire.DRAIN, payload),
                    )

    def _set_lines(self, flags: int, at_s: float) -> None:
        self.board.set_lines(bool(flags & wire.FLAG_DTR), bool(flags & wire.FLAG_RTS), at_s)

    def _client_closed(self, *, gone: bool = False) -> None:
        self._client = None
        self.board.deliver = None
        self.board.history.add("closed", pid=self._client_pid)
        if gone and self.board.config.usb != "bridge":
            self.board.port_gone()
            return
        # A tty drops both lines when it is closed (HUPCL).
        self.board.set_lines(False, False, asyncio.get_running_loop().time())
