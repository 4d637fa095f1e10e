"""A service that is asked over HTTP: its address and key, how many requests at a time, and what is asked again."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from reward_models.base import did_you_mean, excerpt, is_number


SCHEMES = ("http://", "https://")
JUDGE = "judge:"  # before the address of a chat model
SETTINGS = ("timeout", "concurrency", "retries", "key_env")  # how a service is asked, which changes no answer
CONNECT = 10.0  # seconds that a connection may take
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between two tries
# Conflict, too early, too many requests, a timeout, and the faults of the server itself: what may pass.
TRANSIENT = frozenset([408, 409, 425, 429, *range(500, 600)])
LONGEST_REASON = 300


def is_address(text: str) -> bool:
    """Whether the text is the address of a service."""
    return text.startswith(SCHEMES)


def asks_a_service(model: str) -> bool:
    """Whether a reward model of this name is behind an address, also as a judge."""
    return is_address(model.removeprefix(JUDGE))


def check_options(text: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse an option that the reward model `text` has not.

    Raises:
        ValueError: there is one; names the closest.
    """
    for option in options:
        if option not in known:
            meant = did_you_mean(str(option), known)
            raise ValueError(f"{text} has no option {option!r}; {meant}known: {', '.join(known)}")


class Service:
    """Send JSON to an address and take JSON back.

    What may pass is tried again: a connection that fails, a timeout, the statuses of `TRANSIENT`. The waits grow from
    half a second to half a minute, each shortened at random by up to a half, or are what the service asks for
    (`Retry-After`). Anything else ends the run, as does a connection that is refused before the first answer: then
    the address is wrong or nothing runs there.

    Attributes:
        url: where requests go.
        name: of the reward model, for error messages.
        timeout: seconds that an answer may take.
        concurrency: most requests at a time.
        retries: how often a request is tried again.
        key_env: the environment variable that holds the key, or None for none.
        retried: how many requests were tried again so far.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout: float = 60.0,
        concurrency: int = 8,
        retries: int = 8,
        key_env: str | None = None,
    ) -> None:
        """Take the settings; nothing is sent, and the key is not read.

        Raises:
            ValueError: one is wrong, or the address holds a name or password.
        """
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                f"the address of reward model {name!r} holds a name or password; leave it out, and name the "
                "environment variable with the key in key_env"
            )
        if not parts.hostname:
            raise ValueError(f"the address of reward model {name!r} is {url!r}, which names no host")
        for option, value, holds, expected in (
            ("timeout", timeout, is_number(timeout) and timeout > 0, "a positive number of seconds"),
            ("concurrency", concurrency, _is_whole(concurrency) and concurrency >= 1, "requests at a time, from 1"),
            ("retries", retries, _is_whole(retries) and retries >= 0, "tries after the first, from 0"),
            ("key_env", key_env, key_env is None or _is_variable(key_env), "the name of an environment variable"),
        ):
            if not holds:
                # What stands where a variable's name should may be the key itself.
                given = "something else" if option == "key_env" else repr(value)
                raise ValueError(f"the option {option} of {name} is {given}; expected {expected}")
        self.url, self.name, self.timeout, self.concurrency = url, name, float(timeout), concurrency
        self.retries, self.key_env, self.retried = retries, key_env, 0
        self._has_answered, self._random = False, random.Random()  # the run's own random state stays as it is

    def ask(self, bodies: Sequence[Any]) -> list[Any]:
        """What the service answers to each of the bodies, in their order.

        Raises:
            ValueError: the key is missing, the service cannot be reached, refuses a request, or did not answer it in
                all tries.
        """
        client, failed = self._client, threading.Event()

        def ask(body: Any) -> Any:
            try:
                return self._ask(client, body, failed)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(max(1, min(self.concurrency, len(bodies)))) as pool:
            asked = [pool.submit(ask, body) for body in bodies]
            try:
                for answer in as_completed(asked):
                    answer.result()
            except BaseException:
                failed.set()  # an interrupt, too, ends the waits
                raise
        return [answer.result() for answer in asked]

    @cached_property
    def _client(self) -> Any:
        from huggingface_hub.utils import httpx

        return httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
            limits=httpx.Limits(max_connections=self.concurrency),
        )

    @cached_property
    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise ValueError(
                f"reward model {self.name!r} takes its key from the environment variable {self.key_env}, which is not "
                f"set; set it, as in: export {self.key_env}=..."
            )
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the key in the environment variable {self.key_env} is no line of plain characters")
        return key

    def _ask(self, client: Any, body: Any, failed: threading.Event) -> Any:
        """The answer to one body; None where another request has failed, which is told."""
        from huggingface_hub.utils import httpx

        for tried in range(self.retries + 1):
            if failed.is_set():
                return None
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**tried) * (1 - self._random.random() / 2)
            try:
                response = client.post(self.url, json=body)
            except httpx.RequestError as error:  # also an answer that was damaged on its way
                reason = f"{type(error).__name__}: {error}".removesuffix(": ")
                if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not self._has_answered:
                    raise ValueError(
                        f"{self._who} cannot be reached ({self._plain(reason)}); start the service, or mend the address"
                    ) from None
            except httpx.InvalidURL as error:
                raise ValueError(f"{self._who} has an address that cannot be read ({self._plain(error)})") from None
            else:
                self._has_answered = True
                if response.is_success:
                    return self._content(response)
                reason = f"{response.status_code} {response.reason_phrase}: {_message(response)}"
                if response.status_code not in TRANSIENT:
                    raise ValueError(f"{self._who} refused a request: {self._plain(reason)}")
                wait = _asked_for(response) or wait
            if tried < self.retries:
                failed.wait(wait)
                self.retried += 1
        tries = "one try" if self.retries == 0 else f"{self.retries + 1} tries"
        raise ValueError(
            f"{self._who} gave no answer in {tries}, the last time {self._plain(reason)}; see to the service, then go "
            "on: with --resume, or score again"
        )

    def _content(self, response: Any) -> Any:
        try:
            return json.loads(response.content)
        except ValueError:
            raise ValueError(
                f"{self._who} answered {self._plain(excerpt(response.text))}; expected JSON, so check the address"
            ) from None

    @property
    def _who(self) -> str:
        return f"the service of reward model {self.name!r} ({self.url})"

    def _plain(self, reason: object) -> str:
        """A reason on one line, without the key, which services repeat."""
        text = " ".join(str(reason).split())
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def _message(response: Any) -> str:
    """What a service says of an error: OpenAI's and vLLM's `error.message`, FastAPI's `detail`, or all its text."""
    try:
        said = json.loads(response.content)
    except ValueError:
        return response.text
    for key in ("error", "message", "detail"):
        if isinstance(said, Mapping) and said.get(key):
            said = said[key]
    return said if isinstance(said, str) else json.dumps(said)


def _asked_for(response: Any) -> float | None:
    """The seconds that the service asks to wait, if it says them as a number."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(seconds, LONGEST_WAIT) if seconds > 0 else None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_variable(value: object) -> bool:
    return isinstance(value, str) and value.isidentifier() and value.isascii()
