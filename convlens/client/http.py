"""The client over REST."""

from __future__ import annotations

import time
from os import PathLike
from urllib.parse import quote

import httpx

from convlens.client.auth import TokenAuth, is_loopback
from convlens.client.base import BaseClient, ClientRequest, Form, params_json
from convlens.client.errors import error_from_body, timed_out, unreachable
from convlens.client.retry import RetryPolicy
from convlens.errors import RequestError


class Client(BaseClient):
    """A client of a server's inference address, such as http://127.0.0.1:8080; connections are kept open.

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
        super().__init__(retry=RetryPolicy(timeout_s, retries), form=form)
        self._url = _base_url(url)
        self._auth = TokenAuth(token, key_file)
        self._model_path = "/".join(quote(part, safe="") for part in (model, version) if part)
        self._http = httpx.Client(trust_env=not is_loopback(self._url.host))

    def __repr__(self) -> str:
        return f"Client({str(self._url)!r}, {self._model_path!r})"

    def close(self) -> None:
        self._http.close()

    def _send(self, request: ClientRequest, *, timeout_s: float) -> bytes:
        route = "explanations" if request.explain else "predictions"
        url = f"{str(self._url).rstrip('/')}/{route}/{self._model_path}"
        # TorchServe parses a part that is typed JSON, and keeps the bytes of one with a file name.
        files = {
            "data": ("picture", request.image, "application/octet-stream"),
            "params": ("params", params_json(request.params), "application/json"),
        }
        # The time of sending as proxies set it: from there the server counts deadline_ms.
        headers = {"Accept": request.accept, "X-Request-Start": f"t={time.time():.3f}"}
        if (token := self._auth.header()) is not None:
            headers["Authorization"] = token
        try:
            response = self._http.post(url, files=files, headers=headers, timeout=timeout_s)
        except httpx.TimeoutException as error:
            raise timed_out(str(self._url), timeout_s) from error
        except httpx.HTTPError as error:
            raise unreachable(str(self._url), str(error)) from error
        if response.status_code != 200:
            raise error_from_body(response.status_code, response.content)
        return response.content


def _base_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise RequestError(f"{url!r} is no URL: {error}", field="url") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise RequestError(f"{url!r} should read like http://127.0.0.1:8080", field="url")
    if parsed.userinfo:
        raise RequestError("the url holds a user name or a password; give a token or a key_file", field="url")
    return parsed
