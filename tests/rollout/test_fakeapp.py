# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake app, held against viam-sdk's own clients: what is put in comes back, as documented."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError
from viam.app.viam_client import ViamClient
from viam.proto import app as pb
from viam.robot.client import RobotClient
from viam.rpc.dial import DialOptions
from viam.services.generic import Generic

from tests.rollout.fakeapp import OPERATOR, FakeApp, Key, Machine
from tests.rollout.machines import BACK, GOOD, NAME, STOPPED, FakeMachine, attributes_of

# Keys in an order of their own, integers beyond a float's, letters beyond ASCII, odd spaces.
TEXT = (
    '{ "services": [{"name": "OTA", "api": "rdk:service:generic",'
    ' "attributes": {"version": "1.0.0", "url": "http://a/b.bin", "baud": 921600, "x": 1.50}}],\n'
    ' "big": 9007199254740993, "a": "\\u00fc ü", "network": {"b": 1, "a": 2} }'
)


@asynccontextmanager
async def client(app: FakeApp, key: Key | None = None) -> AsyncIterator[ViamClient]:
    """The SDK's client of it."""
    key = key or app.key()
    options = DialOptions.with_api_key(key.secret, key.id)
    options.insecure = True
    viam = await ViamClient.create_from_dial_options(options, app_url=app.url)
    try:
        yield viam
    finally:
        viam.close()


def updated(part: Any) -> datetime:
    """When a part was last written, which the SDK may not know."""
    at: datetime = part.last_updated
    return at


async def test_a_part_comes_back_byte_for_byte() -> None:
    """What a rollout compares is the text; the Struct has lost integers and the keys' order."""
    async with FakeApp.start() as app, client(app) as viam:
        machine = app.machine(app.location("site"), "m1", TEXT)
        (location,) = await viam.app_client.list_locations(app.organization_id)
        (robot,) = await viam.app_client.list_robots_for_locations([location.id])
        (part,) = await viam.app_client.get_robot_parts(robot.id)
        assert (robot.name, part.name, part.main_part) == ("m1", "m1-main", True)
        assert part.id == machine.part.id
        assert part.robot_config_json == TEXT
        assert part.robot_config is not None
        assert isinstance(part.robot_config["network"]["b"], float)  # type: ignore[index,call-overload]
        assert (await viam.app_client.get_robot_part(part.id)).robot_config_json == TEXT
        await viam.app_client.update_robot_part(part.id, part.name, robot_config=part.robot_config)
        assert '"baud": 921600.0' in machine.part.text
        await viam.app_client.update_robot_part(part.id, part.name, robot_config_json=TEXT)
        assert machine.part.text == TEXT


@pytest.mark.parametrize("status", [Status.FAILED_PRECONDITION, Status.ABORTED])
async def test_a_write_is_refused_after_somebody_elses(status: Status) -> None:
    """With last_known_update; without it what somebody else wrote is gone."""
    async with FakeApp.start() as app, client(app) as viam:
        app.conflict = status
        machine = app.machine(app.location("site"), "m1", TEXT)
        part = await viam.app_client.get_robot_part(machine.part.id)
        app.edit(machine.part, lambda config: config.update(theirs=1))
        with pytest.raises(GRPCError) as refused:
            await viam.app_client.update_robot_part(
                part.id, part.name, last_known_update=updated(part), robot_config_json="{}"
            )
        assert refused.value.status is status
        assert machine.part.config["theirs"] == 1
        again = await viam.app_client.get_robot_part(machine.part.id)
        written = await viam.app_client.update_robot_part(
            part.id, part.name, last_known_update=updated(again), robot_config_json='{"o": 1}'
        )
        await viam.app_client.update_robot_part(
            part.id, part.name, last_known_update=updated(written), robot_config_json='{"o": 2}'
        )
        assert machine.part.text == '{"o": 2}'
        await viam.app_client.update_robot_part(part.id, part.name, robot_config_json="{}")
        assert machine.part.text == "{}"
        history = await viam.app_client.get_robot_part_history(part.id)
        olds = [entry.old.robot_config_json for entry in history if entry.old is not None]
        assert olds[:2] == ['{"o": 2}', '{"o": 1}']
        assert olds[-1] == TEXT
        assert len(await viam.app_client.get_robot_part_history(part.id, page_limit=2)) == 2


# The SDK leaves a channel open where it is not let in.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
async def test_who_is_let_in_and_what_a_key_may() -> None:
    """Owners read and write configurations, operators neither; a key ends at its scope."""
    async with FakeApp.start() as app:
        one, two = app.location("one"), app.location("two")
        mine, other = app.machine(one, "m1", TEXT), app.machine(two, "m2", TEXT)
        key = app.key()
        key_of_nobody = Key(key.id, "wrong", key.permissions)
        with pytest.raises(GRPCError) as refused:
            async with client(app, key_of_nobody):
                pass
        assert refused.value.status is Status.UNAUTHENTICATED
        async with client(app, app.key(scope=("location", one.id))) as viam:
            assert [each.id for each in await viam.app_client.list_locations(app.organization_id)]
            await viam.app_client.get_robot_part(mine.part.id)
            with pytest.raises(GRPCError) as refused:
                await viam.app_client.get_robot_part(other.part.id)
            assert refused.value.status is Status.PERMISSION_DENIED
            wanted = ["write_robot", "control_robot", "no_such_thing"]
            (checked,) = await viam.app_client.check_permissions(
                [
                    pb.AuthorizedPermissions(
                        resource_type="robot", resource_id=mine.id, permissions=wanted
                    )
                ]
            )
            assert list(checked.permissions) == wanted[:2]
            app.expire_tokens()
            with pytest.raises(GRPCError) as refused:
                await viam.app_client.get_robot_part(mine.part.id)
            assert refused.value.status is Status.UNAUTHENTICATED
        async with client(app, app.key(OPERATOR)) as viam:
            part = await viam.app_client.get_robot_part(mine.part.id)
            assert part.robot_config_json is None
            with pytest.raises(GRPCError) as refused:
                await viam.app_client.update_robot_part(part.id, part.name, robot_config_json="{}")
            assert refused.value.status is Status.PERMISSION_DENIED


async def test_a_list_of_machines_ends_at_its_limit_without_a_word() -> None:
    """A hundred by default, and no paging: whoever needs more has to ask for more."""
    async with FakeApp.start() as app, client(app) as viam:
        site = app.location("site")
        fragment = app.fragment("boards", {"services": []})
        for index in range(120):
            app.machine(site, f"m{index}", {"fragments": [{"id": fragment.id}]})
        app.machine(site, "without", {})
        stub, metadata = viam.app_client._app_client, viam.app_client._metadata
        request = pb.ListMachineSummariesRequest(
            organization_id=app.organization_id, fragment_ids=[fragment.id]
        )
        reply = await stub.ListMachineSummaries(request, metadata=metadata)
        assert len(reply.location_summaries[0].machine_summaries) == 100
        request.limit = 1000
        reply = await stub.ListMachineSummaries(request, metadata=metadata)
        assert len(reply.location_summaries[0].machine_summaries) == 120


def service(version: Any) -> dict[str, Any]:
    """A configuration with the OTA service."""
    return {
        "services": [
            {
                "name": NAME,
                "api": "rdk:service:generic",
                "model": "rdk:generic:ota_service",
                "attributes": {"url": "http://a/b.bin", "version": version, "boards": []},
            }
        ]
    }


async def test_fragments_come_to_a_machine_with_versions_variables_and_mods() -> None:
    """A part names a revision or a tag, sets variables, and modifies what is its own."""
    async with FakeApp.start() as app, client(app) as viam:
        fragment = app.fragment("ota", service({"$variable": {"name": "version"}}))
        first = fragment.at().id
        used = {"id": fragment.id, "version": "stable", "variables": {"version": "1.0.0"}}
        boards = [{"name": "a", "port": "/dev/ttyUSB0"}]
        mods = [{"$set": {"services.OTA.attributes.boards": boards}}]
        config = {
            "fragments": [used],
            "fragment_mods": [{"fragment_id": fragment.id, "mods": mods}],
            "components": [],
        }
        machine = app.machine(app.location("site"), "m1", config)
        assert "errors" in app.resolved(machine.part)  # there is no such tag yet
        stub, metadata = viam.app_client._app_client, viam.app_client._metadata
        await stub.SetFragmentTag(
            pb.SetFragmentTagRequest(fragment_id=fragment.id, tag="stable", revision=first),
            metadata=metadata,
        )
        attributes = attributes_of(app, machine)
        assert attributes is not None
        assert (attributes["version"], attributes["boards"]) == ("1.0.0", boards)
        got = await viam.app_client.get_fragment(fragment.id)
        await viam.app_client.update_fragment(
            fragment.id, "ota", config=service("9.9.9"), last_known_update=got.last_updated
        )
        assert attributes_of(app, machine) == attributes  # it is at the tag
        raw = await stub.GetFragment(pb.GetFragmentRequest(id=fragment.id), metadata=metadata)
        assert [(tag.tag, tag.revision) for tag in raw.tags] == [("stable", first)]
        assert [each.revision for each in raw.revisions] == [fragment.at().id, first]
        app.edit(machine.part, lambda config: config["fragments"][0].pop("version"))
        attributes = attributes_of(app, machine)
        assert attributes is not None
        assert attributes["version"] == "9.9.9"


async def test_faults_come_where_they_are_asked_for() -> None:
    """Refused before any effect; lost after it; held; somebody else just before."""
    async with FakeApp.start() as app, client(app) as viam:
        machine = app.machine(app.location("site"), "m1", {"a": 1})
        part = machine.part

        async def write(value: int) -> Any:
            known = await viam.app_client.get_robot_part(part.id)
            return await viam.app_client.update_robot_part(
                part.id,
                part.name,
                last_known_update=updated(known),
                robot_config_json=json.dumps({"a": value}),
            )

        app.fail("UpdateRobotPart", Status.UNAVAILABLE, times=1)
        with pytest.raises(GRPCError, match="not served just now"):
            await write(2)
        assert part.config == {"a": 1}
        app.lose_reply("UpdateRobotPart")
        with pytest.raises((StreamTerminatedError, ConnectionError, OSError)):
            await write(2)
        assert part.config == {"a": 2}
        gate = app.hold("UpdateRobotPart")
        writing = asyncio.create_task(write(3))
        await gate.arrived.wait()
        assert part.config == {"a": 2}
        gate.release()
        await writing
        assert part.config == {"a": 3}
        app.edit_before_write(lambda config: config.update(theirs=1))
        with pytest.raises(GRPCError):
            await write(4)
        assert part.config == {"a": 3, "theirs": 1}
        assert app.written == [part.id, part.id]
        assert [call.number for call in app.calls] == list(range(1, len(app.calls) + 1))


async def test_captured_readings() -> None:
    """Where a machine can't be reached, what its sensor said last."""
    async with FakeApp.start() as app, client(app) as viam:
        part = app.machine(app.location("site"), "m1", {}).part
        place = (part.id, "ota", "rdk:component:sensor", "Readings")
        assert await viam.data_client.get_latest_tabular_data(*place) is None
        app.data[place] = (datetime(2026, 1, 2, tzinfo=UTC), {"good": True})
        latest = await viam.data_client.get_latest_tabular_data(*place)
        assert latest is not None
        assert latest[2] == {"readings": {"good": True}}


@asynccontextmanager
async def robot(machine: Machine) -> AsyncIterator[RobotClient]:
    """The SDK's client of a machine."""
    dial = DialOptions(insecure=True, disable_webrtc=True)
    options = RobotClient.Options(
        dial_options=dial, check_connection_interval=0, disable_sessions=True
    )
    connected = await RobotClient.at_address(machine.part.fqdn, options)
    try:
        yield connected
    finally:
        await connected.close()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("became", "state"), [(GOOD, "up_to_date"), (BACK, BACK)])
async def test_a_fake_machine_follows_its_configuration(became: str, state: str) -> None:
    """It is reached at its part's address, shows what its boards came to, and may go away."""
    async with FakeApp.start() as app:
        machine = app.machine(app.location("site"), "m1", service("1.0.0"))
        fake = FakeMachine(
            app, machine, judge=lambda name, version: GOOD if version == "1.0.0" else became
        )
        async with fake.serving():
            async with robot(machine) as connected:
                ota = Generic.from_robot(connected, NAME)
                assert (await ota.get_status())["boards"]["a"]["version"] == "1.0.0"  # type: ignore[index,call-overload]
                assert (await connected.get_machine_status()).config.revision
                fake.changed.clear()
                app.edit(machine.part, lambda config: config.update(service("1.1.0")))
                assert fake.status()["state"] == "updating"
                while fake.boards["a"]["state"] == "updating":
                    fake.changed.clear()
                    await fake.changed.wait()
                status: Any = await ota.do_command({"command": "status"})
                assert status["boards"]["a"]["state"] == state
                assert status["boards"]["a"].get("good") is (became == GOOD)
                fake.online = False
                app.edit(machine.part, lambda config: config.update(service("1.2.0")))
                with pytest.raises((StreamTerminatedError, ConnectionError, OSError)):
                    await ota.get_status()
            assert fake.got == ["1.0.0", "1.1.0"]
            fake.online = True
            assert fake.got[-1] == "1.2.0"
            async with robot(machine):
                pass


async def test_a_stopped_firmware_is_told_at_the_top() -> None:
    """Boards that a stopped run left out stay outdated."""
    async with FakeApp.start() as app:
        machine = app.machine(app.location("site"), "m1", service("1.0.0"))
        fake = FakeMachine(app, machine, judge=lambda *_: STOPPED)
        assert fake.status()["error"]["code"] == "stopped"
        assert fake.status()["boards"]["a"]["state"] == "outdated"
