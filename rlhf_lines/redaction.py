"""Secrets stay where the user put them: they are left out of what is written, and hidden in what is said.

A key is known by its words (`hub_token`, `api_key`, `X-Api-Key`), a value by the key, flag or environment variable that
holds it, or by its looks (`hf_` and 34 characters, a password in an address).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any


HIDDEN = "***"
SHORTEST = 8  # characters of a value that is hidden wherever it occurs: shorter ones are words
_ALWAYS = {
    "password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials", "bearer",
    "authorization", "cookie", "apikey", "auth",
}  # fmt: skip
# A `key` is mostly one of a mapping, a `token` one of a text: the word before says which.
_KEYS = {
    "api", "access", "private", "secret", "account", "encryption", "ssh", "license", "openai", "anthropic", "wandb",
    "hf", "hub", "aws", "azure",
}  # fmt: skip
_OF_TEXTS = {
    "eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "special", "image", "video", "audio",
    "per", "new", "last", "first", "next", "prompt", "completion", "think", "tool", "decoder", "forced",
}  # fmt: skip
# Only what has the shape of a real one: a name of a model or data set that begins so is none.
_LOOKS = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}|sk-lf-[0-9a-f-]{36}|sk-[a-z0-9]{32,}"
    r"|gh[opsru]_[A-Za-z0-9]{36,}|github_pat_\w{82,}|glpat-[\w-]{20,}|AKIA[A-Z0-9]{16}\b|AIza[\w-]{35,}|xox[abeprs]-\d[\w-]{20,}"
    r"|eyJ[\w-]{16,}\.[\w-]{8,}\.[\w-]{16,})|(?<=[Bb]earer )(?=\S*\d)[\w.~+/=-]{16,}"
    r"|(?<=uthorization: [Bb]earer )[^\s'\"]+"
)
# One slash is what a library leaves that takes the address for a path.
_USER = re.compile(r"(?P<before>https?:/{1,2})[^/@\s'\"]+(?=@)|(?P<other>:/{1,2}[^/@:\s'\"]+:)[^/@\s'\"]+(?=@)")
_QUERY = re.compile(r"([?&;])([\w.-]+)=([^&;#\s'\"]+)")
_MEANT = re.compile(r"tok(?!enizer)\w*$|secr|passw|api.?k|auth|cred", re.IGNORECASE)  # of flags, also misspelt ones
_told: set[str] = set()  # values that the command line and config files gave


def is_secret(key: object) -> bool:
    """Whether a setting of this name holds a secret.

    >>> [name for name in ("hub_token", "apiKey", "eos_token", "max_new_tokens", "label_key") if is_secret(name)]
    ['hub_token', 'apiKey']
    """
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", str(key))
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]
    if not words:
        return False
    before = words[-2] if len(words) > 1 else None
    if words[-1] == "token":
        return before not in _OF_TEXTS
    return bool(_ALWAYS & set(words)) or (words[-1] == "key" and before in _KEYS)


def without_secrets(value: Any) -> Any:
    """A setting, or a mapping or list of settings, without those that hold a secret; addresses without passwords.

    A switch says no secret, and stays; so does a path that exists, whatever it looks like, but for that of an address.
    """
    if isinstance(value, Mapping):
        kept = {key: held for key, held in value.items() if not _holds(key, held)}
        return {key: without_secrets(held) for key, held in kept.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):  # a mapping in the form of a flag
        try:
            content = json.loads(value)
        except ValueError:
            return redact(value)
        cleared = without_secrets(content)
        return value if cleared == content else json.dumps(cleared)
    is_path = os.path.exists(value)  # noqa: PTH110 - Path.exists raises where a text is too long for a path
    return redact(value, by_looks=not is_path)


def redact(text: str, *, by_looks: bool = True) -> str:
    """A text in which every secret is hidden that is known, or in an address, or that looks like one."""
    of_environment = (value for name, value in os.environ.items() if is_secret(name) and not value.startswith("/"))
    known = {value for value in (*_told, *of_environment) if len(value) >= SHORTEST}
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _LOOKS.sub(HIDDEN, text) if by_looks else text
    text = _USER.sub(lambda found: f"{found['before'] or found['other']}{HIDDEN}", text)
    return _QUERY.sub(lambda found: f"{found[1]}{found[2]}={HIDDEN}" if _of_address(found[2]) else found[0], text)


def tell(settings: Mapping[str, Any]) -> None:
    """Remember the secrets among settings, so that `redact` knows them."""
    for key, held in settings.items():
        if _holds(key, held):
            _told.update(_texts(held))
        elif isinstance(held, Mapping):
            tell(held)
        elif isinstance(held, (list, tuple)):
            tell(dict(enumerate(held)))
        elif isinstance(held, str) and held.lstrip().startswith("{"):
            try:
                tell(json.loads(held))
            except ValueError:
                _told.update(
                    found[2] for found in re.finditer(r'"([^"]+)"\s*:\s*"([^"]+)"', held) if is_secret(found[1])
                )


def guard(arguments: Iterable[str]) -> None:
    """Hide the secrets of a command line, and those that are told later, in logs and tracebacks."""
    flag = ""
    for argument in arguments:
        name, given, value = argument.partition("=")
        if argument.startswith("--"):
            flag, argument = name.lstrip("-"), value if given else ""
        if argument and flag:
            # A misspelt flag holds the same secret.
            tell({"token" if _MEANT.search(flag) and not _of_text(flag) else flag: argument})
    if not isinstance(logging.getLogRecordFactory(), partial):
        logging.setLogRecordFactory(partial(_log_record, logging.getLogRecordFactory()))
        sys.excepthook = _print_error


def _log_record(make, *args, **kwargs) -> logging.LogRecord:
    record = make(*args, **kwargs)
    try:
        message = record.getMessage()
    except (TypeError, ValueError):  # a mistake of who logs, which logging itself tells
        return record
    if (hidden := redact(message)) != message:
        record.msg, record.args = hidden, ()
    return record


def _print_error(kind, error, trace) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _holds(key: object, held: object) -> bool:
    return is_secret(key) and held is not None and not isinstance(held, (bool, int, float))


def _of_text(flag: str) -> bool:
    return flag.rpartition("_")[0].rpartition("_")[2] in _OF_TEXTS


def _of_address(name: str) -> bool:
    return is_secret(name) or name.lower() in ("sig", "signature", "x-amz-signature", "key")


def _texts(held: object) -> Iterable[str]:
    if isinstance(held, str):
        yield held
    elif isinstance(held, Mapping):
        for inner in held.values():
            yield from _texts(inner)
    elif isinstance(held, (list, tuple)):
        for inner in held:
            yield from _texts(inner)
