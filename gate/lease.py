"""Changes of one model take turns: a lease that every store of MLflow can hold.

MLflow has neither a lock nor a compare-and-swap. What each of its stores does give is a number of its own to every new
version of a registered model, also when processes race for it: one more than the highest that ever was, deleted ones
counted. So the versions of a registered model ``<model name>.lease`` are tickets, as the sequential nodes are in
ZooKeeper's recipe for locks (https://zookeeper.apache.org/doc/current/recipes.html#sc_recipes_Locks):

- whoever wants the lease takes a ticket; the lowest open ticket holds it;
- a ticket ends when its process gives it back, or when somebody who waits finds that its holder is gone: at once by the
  process table of the same machine, else when its heartbeat has not changed for ``LIMIT_SECONDS`` of the waiter's own
  clock, so that no two machines' clocks are compared. A process that is stopped loses its lease in this way too;
- a ticket that has ended stays so, and its number never comes again: it may be ended twice.

Nobody can take back a write that is under way, so a holder that was stopped may still write once after its lease is
gone. ``check`` before a write keeps it from beginning one, and ``check`` after it tells that it came too late.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from configs.exit_codes import CommandFailed
from gate import registry
from serve_app import mlflow_client as names
from serve_app.mlflow_client import HEARTBEAT, Heartbeat, TrackingUnavailable, is_owner_gone, owner_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

SUFFIX: Final = ".lease"  # our model names have no dot
STATE: Final = "trialgate.ticket"  # open | released | expired
OPEN: Final = "open"
HOLDER: Final = "trialgate.ticket_holder"  # for people: what, and who
_NONCE: Final = "trialgate.ticket_nonce"
_SOURCE: Final = "trialgate:/lease"  # a version needs one; a scheme of its own passes every server's checks
_DESCRIPTION: Final = (
    "Not a model. Its versions are the tickets of Trialgate's gate, which lets promotions of '{name}' take turns. "
    "Leave it alone; without any gate command running it may be deleted, and is made again."
)

WAIT_SECONDS: Final = 600.0
LIMIT_SECONDS: Final = 30.0
_BEAT_SECONDS: Final = 5.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between two looks at the queue
_LONGEST_STEP: Final = 2.0  # seconds that one look may add to a heartbeat's age: an outage for all is nobody's death
_ATTEMPTS: Final = 20


class LeaseLost(CommandFailed):
    """This process was stopped or cut off from MLflow for so long that another one took its lease."""


class LeaseBusy(CommandFailed):
    """The lease was not free within the time that one waits for it."""


class LeaseRefused(TrackingUnavailable):
    """MLflow does not let this user take a ticket."""


class Lease:
    """The right to change ``model_name``: a context manager, held from entering to leaving.

    ``purpose`` tells those who wait what it is for. ``ticket`` is the number that is held. Entering raises
    LeaseBusy after ``wait_s`` seconds, and LeaseRefused without the right to write.
    """

    def __init__(
        self,
        client: MlflowClient,
        model_name: str,
        purpose: str,
        *,
        wait_s: float = WAIT_SECONDS,
        limit_s: float = LIMIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model_name, self.name = model_name, f"{model_name}{SUFFIX}"
        self.ticket = 0
        self._made_ms = 0  # when the store made the model of the tickets
        self._client, self._purpose, self._wait_s, self._limit_s = client, purpose, wait_s, limit_s
        self._clock, self._sleep = clock, sleep
        self._nonce = ""
        self._watched: tuple[int, str | None] | None = None  # the ticket before ours, and its heartbeat
        self._unchanged_s, self._looked_at = 0.0, 0.0

    def __enter__(self) -> Lease:
        with contextlib.ExitStack() as stack:
            stack.callback(self._give_back)
            self.queue()
            stack.enter_context(Heartbeat(self.renew, f"the lease of {self.model_name}", _BEAT_SECONDS))
            self._wait()
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def turn(self) -> tuple[int, int]:
        """The ticket, after the time (ms) when its model was made: higher than those of every earlier holder, also when
        somebody deleted the model, so that the tickets began again at 1."""
        return self._made_ms, self.ticket

    def check(self) -> None:
        """Raises LeaseLost if somebody ended this ticket. Call it before every write that others notice."""
        ticket = registry.get_version(self._client, self.name, str(self.ticket))
        if ticket is None or ticket.tags.get(STATE) != OPEN or ticket.tags.get(_NONCE) != self._nonce:
            raise LeaseLost(
                f"this process was stopped, or cut off from MLflow, for more than {self._limit_s:.0f} s, and another "
                f"one took the right to change model '{self.model_name}' (ticket {self.ticket} ended): run it again"
            )

    def regain(self) -> None:
        """Takes a new ticket and waits for its turn, unless this one still holds."""
        try:
            self.check()
        except LeaseLost:
            self.queue()
            self._wait()

    def renew(self, value: str) -> None:
        """Writes the heartbeat ``value`` to the ticket."""
        self._client.set_model_version_tag(self.name, str(self.ticket), HEARTBEAT, value)

    def queue(self) -> None:
        """Takes a ticket, open from its first moment. Entering does it."""
        from mlflow.exceptions import MlflowException

        self._nonce = secrets.token_hex(8)
        tags = {STATE: OPEN, _NONCE: self._nonce, HOLDER: self._purpose, **owner_tags()}
        for attempt in range(_ATTEMPTS):
            try:
                self._make_model()
                version = self._client.create_model_version(self.name, _SOURCE, tags=tags, await_creation_for=0)
                self.ticket = int(version.version)
                return
            except MlflowException as error:
                if error.error_code == "PERMISSION_DENIED":
                    raise LeaseRefused(
                        f"no permission to change model '{self.model_name}': a gate command that changes it needs the "
                        f"right to edit the registered models '{self.model_name}' and '{self.name}', and to create them"
                    ) from error
                # The store gives up when others took the number three times; a server calls that its own bug, a 500.
                if attempt == _ATTEMPTS - 1 or not any(text in str(error) for text in ("creation error", "500 error")):
                    raise
                self._sleep(_SHORTEST_PAUSE * (1 + secrets.randbelow(10)))

    def poll(self) -> bool:
        """One look at the queue: whether it is our turn. Ends the tickets before ours whose holders are gone."""
        while True:
            first = self._open(1)
            if not first or int(first[0].version) > self.ticket:  # ours was ended while this process was stopped
                self.queue()
            elif first[0].tags.get(_NONCE) == self._nonce:
                self.ticket = int(first[0].version)  # a request that was sent twice took two tickets
                return True
            elif self._is_over(first[0]):
                logger.warning("the lease of %s was not given back by %s: it goes on to the next", self.model_name,
                               first[0].tags.get(HOLDER))  # fmt: skip
                self._end(first[0], "expired")
            else:
                return False

    def _wait(self) -> None:
        start, pause = self._clock(), _SHORTEST_PAUSE
        while not self.poll():
            if self._clock() - start >= self._wait_s:
                before = self._open(1)
                holder = before[0].tags.get(HOLDER) if before else "nobody any more"
                raise LeaseBusy(
                    f"model '{self.model_name}' was being changed by {holder} for more than {self._wait_s:.0f} s: run "
                    "this again when that has ended"
                )
            self._sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _is_over(self, ticket: ModelVersion) -> bool:
        if is_owner_gone(ticket.tags):
            return True
        watched, now = (int(ticket.version), ticket.tags.get(HEARTBEAT)), self._clock()
        if self._watched != watched:
            if self._watched is None or self._watched[0] != watched[0]:
                logger.info("waiting for %s (ticket %d of %s)", ticket.tags.get(HOLDER), watched[0], self.name)
            self._watched, self._unchanged_s = watched, 0.0
        else:
            self._unchanged_s += min(now - self._looked_at, _LONGEST_STEP)
        self._looked_at = now
        return self._unchanged_s > self._limit_s

    def _open(self, most: int) -> list[ModelVersion]:
        """The lowest open tickets, lowest first."""
        return list(self._client.search_model_versions(
            f"name='{self.name}' and tags.`{STATE}` = '{OPEN}'", max_results=most, order_by=["version_number ASC"]
        ))  # fmt: skip

    def _give_back(self) -> None:
        try:
            for ticket in self._open(1000):
                if ticket.tags.get(_NONCE) == self._nonce:
                    self._end(ticket, "released")
        except Exception as error:  # noqa: BLE001 - what was done is done, and the ticket ends by itself
            logger.warning("the lease of %s could not be given back (%s): the next one takes it over", self.model_name,
                           error)  # fmt: skip

    def _end(self, ticket: ModelVersion, state: str) -> None:
        """The tag is what counts: a server may keep users from deleting what another one made."""
        from mlflow.exceptions import MlflowException

        number = str(ticket.version)
        try:
            self._client.set_model_version_tag(self.name, number, STATE, state)
            try:
                self._client.delete_model_version(self.name, number)
            except MlflowException as error:
                if error.error_code != "PERMISSION_DENIED":
                    raise
        except MlflowException as error:  # somebody else ended it
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _make_model(self) -> None:
        from mlflow.exceptions import MlflowException

        model = registry.find_model(self._client, self.name)
        if model is None:
            try:
                tags = {names.KIND: names.KIND_LEASE, names.MODEL_NAME: self.model_name}
                description = _DESCRIPTION.format(name=self.model_name)
                self._client.create_registered_model(self.name, tags=tags, description=description)
            except MlflowException as error:  # somebody else was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            model = self._client.get_registered_model(self.name)
        if model.tags.get(names.KIND) != names.KIND_LEASE:
            raise CommandFailed(
                f"the registered model '{self.name}' is another tool's (tag {names.KIND} is not '{names.KIND_LEASE}'), "
                f"but the gate needs that name to change '{self.model_name}': rename it in MLflow"
            )
        self._made_ms = int(model.creation_timestamp)
