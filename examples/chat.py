"""A conversation in the terminal: python examples/chat.py [ADDRESS] [FIRST_QUESTION]

With a question it answers that one and ends; without, it reads questions until an empty line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from slos_serve import Admission, Client, Contract, Finished, Message, Profile, Sampling, SlosServeError, Tokens


def answer(client: Client, conversation: list[Message]) -> str:
    text = ""
    stream = client.generate(
        conversation, contract=Contract(profile=Profile.CHATBOT), sampling=Sampling(max_tokens=96, temperature=0.7)
    )
    # Leaving this block early, by Ctrl-C too, ends the request at the router.
    with stream:
        for event in stream:
            match event:
                case Admission():
                    print(f"[{event.verdict.name.lower()}: first token in {event.predicted.ttft_s * 1e3:.0f} ms]")
                case Tokens():
                    print(event.text, end="", flush=True)
                    text += event.text
                case Finished():
                    achieved = event.achieved
                    print(f"\n[{'kept' if achieved.kept else achieved.missed}: {achieved.ttft_s * 1e3:.0f} ms]")
    return text


def questions() -> Iterator[str]:
    if len(sys.argv) > 2:
        yield sys.argv[2]
        return
    while question := input("> "):
        yield question


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    conversation = [Message("system", "You are a helpful assistant. Answer in two sentences.")]
    with Client(address, application="chat") as client:
        for question in questions():
            conversation.append(Message("user", question))
            try:
                conversation.append(Message("assistant", answer(client, conversation)))
            except KeyboardInterrupt:
                print("\n[stopped]")
            except SlosServeError as error:
                sys.exit(f"{address}: {error}")


if __name__ == "__main__":
    main()
