"""An agent with tools: python examples/agent_loop.py [ADDRESS] [QUESTION]

All requests of the task belong to one session: the steps that only the program reads share tight targets, the answer
that a person reads has a looser one, and the whole task has one deadline that keeps counting while tools run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping

from slos_serve import Client, Contract, Message, Profile, Sampling, SlosServeError

POPULATION = {"oslo": 717_710, "lisbon": 545_796, "riga": 605_273}


def population(city: str) -> str:
    known = POPULATION.get(city.strip().lower())
    return f"{city}: {known} people" if known is not None else f"nothing is known about {city}"


def add(numbers: str) -> str:
    return str(sum(int(number) for number in re.findall(r"-?\d+", numbers)))


TOOLS: Mapping[str, Callable[[str], str]] = {"population": population, "add": add}
CALL = re.compile(rf"\b({'|'.join(TOOLS)})\(([^()]*)\)")
SYSTEM = "Answer by calling one tool a line: population(city) or add(a, b). Write DONE when you know the answer."
MAX_STEPS = 4


def next_call(text: str, question: str, step: int) -> tuple[str, str] | None:
    """The tool the model asks for. A model that asks for none in its first step has a city looked up for it."""
    found = CALL.search(text)
    if found:
        return found.group(1), found.group(2)
    cities = [city for city in POPULATION if city in question.lower()]
    return ("population", cities[0].title()) if step == 0 and cities else None


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    question = sys.argv[2] if len(sys.argv) > 2 else "How many people live in Oslo?"
    conversation = [Message("system", SYSTEM), Message("user", question)]
    contract = Contract(profile=Profile.TOOL_USE, task_deadline_s=20.0)
    with Client(address, application="agent") as client:
        session = client.session(contract)
        for step in range(MAX_STEPS):
            thought = session.generate(
                conversation, sampling=Sampling(max_tokens=32, temperature=0.0, stop=("\n",))
            ).completion()
            call = next_call(thought.text, question, step)
            print(f"step {step + 1} [{thought.admission.verdict.name.lower()}]: {thought.text.strip()}")
            if call is None:
                break
            name, argument = call
            result = TOOLS[name](argument)
            print(f"       {name}({argument}) -> {result}")
            conversation += [Message("assistant", f"{name}({argument})"), Message("user", f"Result: {result}")]
        conversation.append(Message("user", "Now answer the question in one sentence."))
        answer = session.generate(conversation, final=True, sampling=Sampling(max_tokens=48, temperature=0.0))
        last = answer.completion()
    achieved = last.finished.achieved
    print(f"answer [{last.admission.verdict.name.lower()}]: {last.text.strip()}")
    print(f"[task {'in time' if achieved.kept else 'late: ' + achieved.missed}]")


if __name__ == "__main__":
    try:
        main()
    except SlosServeError as error:
        sys.exit(str(error))
