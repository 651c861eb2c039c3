import asyncio

from router.requests.output_buffer import OutputBuffer
from services.rpc.errors import WorkerLostError
from slos_serve.v1 import inference_pb2, sampling_pb2


def finished() -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(finished=inference_pb2.Finished(completion_tokens=3))


async def test_what_a_slow_client_did_not_read_is_one_message() -> None:
    delivery = OutputBuffer()
    for index in range(1000):
        delivery.put(index, [index], f"{index} ", [sampling_pb2.TokenLogprobs()])
    delivery.put(1000, [], "rest")
    delivery.end(finished())
    chunk = await delivery.next()
    assert isinstance(chunk, inference_pb2.GenerateResponse)
    assert chunk.tokens.index == 0
    assert list(chunk.tokens.token_ids) == list(range(1000))
    assert chunk.tokens.text.endswith("999 rest")
    assert len(chunk.tokens.logprobs) == 1000
    assert await delivery.next() == finished()


async def test_a_reader_that_waits_gets_each_token_when_it_comes() -> None:
    delivery = OutputBuffer()
    for index in range(3):
        reading = asyncio.create_task(delivery.next())
        await asyncio.sleep(0)
        delivery.put(index, [7], "x")
        chunk = await reading
        assert isinstance(chunk, inference_pb2.GenerateResponse)
        assert (chunk.tokens.index, list(chunk.tokens.token_ids), chunk.tokens.text) == (index, [7], "x")


async def test_gathering_ends_with_the_stream() -> None:
    delivery = OutputBuffer()
    gathering = asyncio.create_task(delivery.gather(3600.0))
    await asyncio.sleep(0)
    delivery.put(0, [1], "a")
    await asyncio.sleep(0)
    assert not gathering.done()
    delivery.end(finished())
    async with asyncio.timeout(5):
        await gathering
        await delivery.gather(3600.0)


async def test_an_error_comes_after_the_tokens() -> None:
    delivery = OutputBuffer()
    delivery.put(0, [1], "a")
    delivery.end(WorkerLostError("gone"))
    assert isinstance(await delivery.next(), inference_pb2.GenerateResponse)
    assert isinstance(await delivery.next(), WorkerLostError)


async def test_a_reader_that_gave_up_does_not_keep_the_next_from_reading() -> None:
    delivery = OutputBuffer()
    reading = asyncio.create_task(delivery.next())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    delivery.end(finished())
    assert await delivery.next() == finished()
