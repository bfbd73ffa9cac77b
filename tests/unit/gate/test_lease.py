"""The lease: one holder at a time, whatever happens to those who hold it or wait for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED

from configs.exit_codes import CommandFailed, ExitCode
from gate.lease import LIMIT_SECONDS, OPEN, STATE, Lease, LeaseBusy, LeaseLost, LeaseRefused
from serve_app import mlflow_client as names
from serve_app.console import exit_code_of
from tests.unit.gate.registry_double import Registry

NAME = "classifier"


class Clock:
    """A clock that only goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.on_sleep = 100.0, lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


def _lease(registry: Registry, clock: Clock | None = None, **options: Any) -> Lease:
    clock = clock or Clock()
    client: Any = registry
    return Lease(client, NAME, "a test", clock=clock, sleep=clock.sleep, **options)


def _abroad(registry: Registry, lease: Lease) -> None:
    """The ticket's process runs on another machine, where no process table tells of it."""
    registry.versions[str(lease.ticket)].tags[names.OWNER] = "another-machine/1/2/3"


def test_one_after_the_other() -> None:
    registry = Registry()
    with _lease(registry) as first:
        first.check()
    assert registry.versions == {}
    with _lease(registry) as second:
        assert second.ticket > first.ticket
        with pytest.raises(LeaseLost, match=f"ticket {first.ticket} ended"):
            first.check()
    model = registry.models[f"{NAME}.lease"]
    assert model.tags[names.KIND] == names.KIND_LEASE


def test_who_waits_comes_after_who_holds() -> None:
    registry, clock = Registry(), Clock()
    first = _lease(registry)
    first.queue()
    assert first.poll()
    second = _lease(registry, clock)
    second.queue()
    assert not second.poll()
    registry.versions[str(first.ticket)].tags[STATE] = "released"
    assert second.poll()
    second.check()


def test_holder_whose_process_is_gone_is_followed_at_once() -> None:
    program = "import json; from serve_app.mlflow_client import owner_tags; print(json.dumps(owner_tags()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    registry, clock = Registry(), Clock()
    dead = _lease(registry)
    dead.queue()
    registry.versions[str(dead.ticket)].tags.update(json.loads(done.stdout))
    with _lease(registry, clock):
        assert clock.now == 100.0
        with pytest.raises(LeaseLost):
            dead.check()


@pytest.mark.parametrize("here", [True, False])
def test_holder_whose_heartbeat_stands_still_is_followed_in_time(here: bool) -> None:
    """Also one on this machine whose process is there: it is stopped."""
    registry, clock = Registry(), Clock()
    stopped = _lease(registry)
    stopped.queue()
    if not here:
        _abroad(registry, stopped)
    with _lease(registry, clock):
        assert LIMIT_SECONDS < clock.now - 100.0 < LIMIT_SECONDS + 2.0
    with pytest.raises(LeaseLost):
        stopped.check()


def test_holder_that_lives_is_waited_for_until_the_bound() -> None:
    registry, clock = Registry(), Clock()
    with _lease(registry) as holder:
        _abroad(registry, holder)
        clock.on_sleep = lambda: holder.renew(str(clock.now))
        with pytest.raises(LeaseBusy, match="being changed by a test for more than 120 s") as busy:
            _lease(registry, clock, wait_s=120.0).__enter__()
        assert exit_code_of(busy.value) == ExitCode.FAILED
        holder.check()
        assert list(registry.versions) == [str(holder.ticket)]  # nobody waits any more


def test_whoever_will_not_wait_takes_a_free_turn_or_none() -> None:
    registry, clock = Registry(), Clock()
    with _lease(registry, clock, wait_s=0.0), pytest.raises(LeaseBusy):
        _lease(registry, clock, wait_s=0.0).__enter__()
    assert clock.now == 100.0  # nobody slept


def test_waiter_that_was_suspended_itself_does_not_count_that_time() -> None:
    registry, clock = Registry(), Clock()
    holder = _lease(registry)
    holder.queue()
    _abroad(registry, holder)
    waiter = _lease(registry, clock)
    waiter.queue()
    assert not waiter.poll()
    clock.now += 10 * LIMIT_SECONDS  # nobody could reach MLflow, the holder neither
    assert not waiter.poll()
    holder.check()


def test_whoever_lost_its_place_in_the_queue_takes_a_new_one() -> None:
    registry = Registry()
    holder, waiter = _lease(registry), _lease(registry)
    holder.queue()
    waiter.queue()
    lost = waiter.ticket
    registry.versions[str(lost)].tags[STATE] = "expired"
    assert not waiter.poll()
    registry.versions[str(holder.ticket)].tags[STATE] = "expired"
    assert waiter.poll()
    assert waiter.ticket > lost
    holder.regain()
    with pytest.raises(LeaseLost):
        waiter.check()  # its heartbeat stood still in the clock of ``holder``


def test_lease_is_given_back_by_tag_where_nothing_may_be_deleted() -> None:
    registry = Registry()
    registry.may_delete = False
    with _lease(registry):
        pass
    assert [version.tags[STATE] for version in registry.versions.values()] == ["released"]
    with _lease(registry) as second:
        assert second.ticket == 2


def test_ticket_taken_twice_by_one_request_is_given_back_twice() -> None:
    registry = Registry()
    create = registry.create_model_version

    def sent_twice(*arguments: Any, **named: Any) -> Any:
        create(*arguments, **named)
        return create(*arguments, **named)

    registry.create_model_version = sent_twice  # type: ignore[method-assign]
    with _lease(registry) as lease:
        lease.check()
        assert len(registry.versions) == 2
    assert registry.versions == {}


def test_error_and_interruption_give_the_lease_back() -> None:
    registry, clock = Registry(), Clock()
    with pytest.raises(KeyboardInterrupt), _lease(registry):
        raise KeyboardInterrupt
    assert registry.versions == {}

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.on_sleep = interrupt
    with _lease(registry) as holder:
        with pytest.raises(KeyboardInterrupt):
            _lease(registry, clock).__enter__()
        assert list(registry.versions) == [str(holder.ticket)]


@pytest.mark.parametrize("message", ["Model Version creation error (name=x). Giving up after 3 attempts.",
                                     "too many 500 error responses"])  # fmt: skip
def test_number_that_others_were_faster_with_is_tried_again(message: str) -> None:
    registry, failures = Registry(), iter(range(5))

    def conflict(method: str) -> None:
        if method == "create_model_version" and next(failures, None) is not None:
            raise MlflowException(message, INTERNAL_ERROR)

    registry.before = conflict
    with _lease(registry) as lease:
        lease.check()


def test_user_who_may_not_write_is_told_which_right_is_missing() -> None:
    registry = Registry()

    def refuse(method: str) -> None:
        if method.startswith("create_"):
            raise MlflowException("Permission denied", PERMISSION_DENIED)

    registry.before = refuse
    with pytest.raises(LeaseRefused, match=r"right to edit .*'classifier' and 'classifier\.lease'") as refused:
        _lease(registry).__enter__()
    assert exit_code_of(refused.value) == ExitCode.UNREACHABLE


def test_model_of_another_tool_under_the_leases_name_is_refused() -> None:
    registry = Registry()
    registry.create_registered_model(f"{NAME}.lease", {}, "")
    with pytest.raises(CommandFailed, match="another tool's"):
        _lease(registry).__enter__()
    assert registry.taken == 0


class ManyProcesses(RuleBasedStateMachine):
    """Processes that take, hold, lose and give back the lease in any order, and die or are stopped at any point.

    ``expire`` ends any open ticket at any time, rightly or not: clocks and process tables can do no worse.
    """

    leases: dict[int, Lease]

    @initialize()
    def begin(self) -> None:
        self.registry, self.leases, self.holding = Registry(), {}, set[int]()
        self.ended: set[str] = set()
        self.tickets: list[int] = []

    def _open(self) -> list[str]:
        return [number for number, version in self.registry.versions.items() if version.tags[STATE] == OPEN]

    def _passes(self, lease: Lease) -> bool:
        try:
            lease.check()
        except LeaseLost:
            return False
        return True

    @rule(process=st.integers(0, 4))
    def take(self, process: int) -> None:
        if process not in self.leases:
            self.leases[process] = _lease(self.registry)
            self.leases[process].queue()
            _abroad(self.registry, self.leases[process])
            self.tickets.append(self.leases[process].ticket)

    @rule(process=st.integers(0, 4))
    def look(self, process: int) -> None:
        if process in self.leases and process not in self.holding and self.leases[process].poll():
            self.holding.add(process)
            self.tickets.append(self.leases[process].ticket)

    @precondition(lambda self: self._open())
    @rule(data=st.data(), deletes=st.booleans())
    def expire(self, data: st.DataObject, deletes: bool) -> None:
        number = data.draw(st.sampled_from(self._open()))
        self.registry.versions[number].tags[STATE] = "expired"
        if deletes:
            del self.registry.versions[number]

    @rule(process=st.integers(0, 4))
    def give_back(self, process: int) -> None:
        lease = self.leases.pop(process, None)
        self.holding.discard(process)
        if lease is not None and str(lease.ticket) in self.registry.versions:
            del self.registry.versions[str(lease.ticket)]

    @rule(process=st.integers(0, 4))
    def die(self, process: int) -> None:
        self.leases.pop(process, None)
        self.holding.discard(process)

    @invariant()
    def never_two_holders(self) -> None:
        passing = [process for process in self.holding if self._passes(self.leases[process])]
        assert len(passing) <= 1
        if passing:
            assert str(self.leases[passing[0]].ticket) == min(self._open(), key=int)

    @invariant()
    def what_has_ended_stays_so_and_no_number_comes_twice(self) -> None:
        self.ended |= {str(number) for number in range(1, self.registry.taken + 1)} - set(self._open())
        assert not self.ended & set(self._open())

    def teardown(self) -> None:
        """However it went, the next one gets the lease."""
        if hasattr(self, "registry"):
            for version in self.registry.versions.values():
                version.tags[names.OWNER] = "another-machine/1/2/3"
            clock = Clock()
            with _lease(self.registry, clock) as last:
                last.check()
                assert last.ticket == self.registry.taken


TestManyProcesses = ManyProcesses.TestCase
TestManyProcesses.settings = settings(max_examples=50, stateful_step_count=30)


def test_turns_go_on_when_the_tickets_begin_again() -> None:
    """The model of the tickets may be deleted while nobody works."""
    registry = Registry()
    with _lease(registry) as first:
        pass
    with _lease(registry) as second:
        assert second.turn > first.turn
    del registry.models[second.name]
    registry.taken = 0
    with _lease(registry) as third:
        assert third.ticket < second.ticket
        assert third.turn > second.turn
