import asyncio

from router.requests.output_buffer import OutputBuffer
from services.rpc.errors import WorkerLostError
from slos_serve.v1 import inference_pb2, sampling_pb2


def finished() -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(finished=inference_pb2.Finished(completion_tokens=3))


async def test_what_a_slow_client_did_not_read_is_one_message() -> None:
    output_buffer = OutputBuffer()
    for index in range(1000):
        output_buffer.put(index, [index], f"{index} ", [sampling_pb2.TokenLogprobs()])
    output_buffer.put(1000, [], "rest")
    output_buffer.end(finished())
    chunk = await output_buffer.next()
    assert isinstance(chunk, inference_pb2.GenerateResponse)
    assert chunk.tokens.index == 0
    assert list(chunk.tokens.token_ids) == list(range(1000))
    assert chunk.tokens.text.endswith("999 rest")
    assert len(chunk.tokens.logprobs) == 1000
    assert await output_buffer.next() == finished()


async def test_a_reader_that_waits_gets_each_token_when_it_comes() -> None:
    output_buffer = OutputBuffer()
    for index in range(3):
        reading = asyncio.create_task(output_buffer.next())
        await asyncio.sleep(0)
        output_buffer.put(index, [7], "x")
        chunk = await reading
        assert isinstance(chunk, inference_pb2.GenerateResponse)
        assert (chunk.tokens.index, list(chunk.tokens.token_ids), chunk.tokens.text) == (index, [7], "x")


async def test_gathering_ends_with_the_stream() -> None:
    output_buffer = OutputBuffer()
    gathering = asyncio.create_task(output_buffer.gather(3600.0))
    await asyncio.sleep(0)
    output_buffer.put(0, [1], "a")
    await asyncio.sleep(0)
    assert not gathering.done()
    output_buffer.end(finished())
    async with asyncio.timeout(5):
        await gathering
        await output_buffer.gather(3600.0)


async def test_an_error_comes_after_the_tokens() -> None:
    output_buffer = OutputBuffer()
    output_buffer.put(0, [1], "a")
    output_buffer.end(WorkerLostError("gone"))
    assert isinstance(await output_buffer.next(), inference_pb2.GenerateResponse)
    assert isinstance(await output_buffer.next(), WorkerLostError)


async def test_a_reader_that_gave_up_does_not_keep_the_next_from_reading() -> None:
    output_buffer = OutputBuffer()
    reading = asyncio.create_task(output_buffer.next())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    output_buffer.end(finished())
    assert await output_buffer.next() == finished()


async def test_what_was_read_is_not_delivered_again() -> None:
    output_buffer = OutputBuffer()
    for index in (0, 1):
        output_buffer.put(index, [index], "x", [sampling_pb2.TokenLogprobs()])
        chunk = await output_buffer.next()
        assert isinstance(chunk, inference_pb2.GenerateResponse)
        assert (list(chunk.tokens.token_ids), chunk.tokens.text, len(chunk.tokens.logprobs)) == ([index], "x", 1)
