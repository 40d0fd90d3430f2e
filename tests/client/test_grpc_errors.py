"""What gRPC says of a call without an answer, in the words of REST."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from convlens.client.grpc_errors import error_from_rpc


@pytest.mark.parametrize(("after_s", "message"), [(0.2, "broke off the request"), (9.99, "within 10 s; allow more")])
def test_a_grpc_call_broken_off_at_its_deadline_came_too_late_and_before_was_too_large(
    after_s: float, message: str
) -> None:
    """Netty says the same of both; the server may notice a deadline before the client does."""

    def break_off(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.CANCELLED, "Received RST_STREAM with error code 8")

    handler = grpc.method_handlers_generic_handler("s", {"m": grpc.unary_unary_rpc_method_handler(break_off)})
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/s/m")(b"", timeout=10)
    finally:
        server.stop(None).wait()
    assert message in error_from_rpc(caught.value, address, after_s=after_s, timeout_s=10).message
