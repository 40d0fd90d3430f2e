"""BaseClient over REST."""

from __future__ import annotations

import time
from os import PathLike
from urllib.parse import quote

import httpx

from convlens.client.auth import TokenAuth
from convlens.client.base import BaseClient, ClientRequest, Form, is_loopback, params_json
from convlens.client.errors import error_from_body, timed_out, unreachable
from convlens.client.retry import RetryPolicy
from convlens.errors import RequestError


class Client(BaseClient):
    """A server's inference address, such as http://127.0.0.1:8080, asked over connections that are kept open.

    ``token``, or that of a ``key_file``, or of $CONVLENS_TOKEN. ``timeout_s`` bounds the wait for a reply, together
    with up to ``retries`` further tries where the queue is full or the connection breaks. ``form``: how maps travel;
    the replies are the same, safetensors is faster. ``version`` of the model: the server's default one unless given.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "convlens",
        token: str | None = None,
        key_file: str | PathLike[str] | None = None,
        timeout_s: float = 120.0,
        version: str | None = None,
        retries: int = 0,
        form: Form = "safetensors",
    ) -> None:
        super().__init__(patience=RetryPolicy(timeout_s, retries), form=form)
        self._url = _base(url)
        self._tokens = TokenAuth(token, key_file)
        self._place = "/".join(quote(part, safe="") for part in (model, version) if part)
        self._http = httpx.Client(trust_env=not is_loopback(self._url.host))

    def __repr__(self) -> str:
        return f"Client({str(self._url)!r}, {self._place!r})"

    def close(self) -> None:
        self._http.close()

    def _send(self, message: ClientRequest, *, timeout_s: float) -> bytes:
        url = f"{str(self._url).rstrip('/')}/{'explanations' if message.explain else 'predictions'}/{self._place}"
        files = {
            "data": ("picture", message.picture, "application/octet-stream"),
            "params": ("params", params_json(message.params), "application/json"),
        }
        headers = self._headers(message)
        try:
            answer = self._http.post(url, files=files, headers=headers, timeout=timeout_s)
        except httpx.TimeoutException as error:
            raise timed_out(str(self._url), timeout_s) from error
        except httpx.HTTPError as error:
            raise unreachable(str(self._url), str(error)) from error
        if answer.status_code != 200:
            raise error_from_body(answer.status_code, answer.content)
        return answer.content

    def _headers(self, message: ClientRequest) -> dict[str, str]:
        """The time of sending as proxies set it: from there the server counts ``deadline_ms``."""
        headers = {"Accept": message.accept, "X-Request-Start": f"t={time.time():.3f}"}
        token = self._tokens.header()
        return headers | ({"Authorization": token} if token else {})


def _base(url: str) -> httpx.URL:
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise RequestError(f"{url!r} is no URL: {error}", field="url") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise RequestError(f"{url!r} should read like http://127.0.0.1:8080", field="url")
    if found.userinfo:
        raise RequestError("the url holds a user name or a password; give a token or a key_file", field="url")
    return found
