"""A server that only this machine can reach, whose pages can reach no other server."""

import socket
from typing import Any

from cavmae_sync_jax.utils.errors import UserError

HOST = "127.0.0.1"
# The page's own scripts only; Gradio's need eval and inline code. Nothing comes from elsewhere.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
)


def listening(port: int) -> socket.socket:
    """A bound socket on the loopback address; port 0 takes a free one.

    Raises:
      UserError: if the port is taken or none.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--port={port} can't be used ({reason}): name another, or 0") from error
    return bound


def address(bound: socket.socket) -> str:
    """The address to open in a browser."""
    return f"http://{HOST}:{bound.getsockname()[1]}"


class Policy:
    """Forbids browsers to fetch anything from elsewhere, and other sites to frame the page.

    It wraps an ASGI application.
    """

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, and adds the headers to its answer."""

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, sending)
