"""The prompts of the demo: sixteen of four profiles, documents of any length, and one whose answer is a count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """A prompt and the profile whose contract it asks for."""

    name: str
    """Name by which tables and lines tell it from the others."""
    profile: str
    """Name of a profile of the SLOs-Serve paper."""
    text: str


_LIGHTHOUSE = """\
The lighthouse at the northern cape was built in the spring of 1871, after three ships had been lost on the reef
within a single winter. The stone was cut on the mainland and brought over in flat barges, and because the landing
place lay open to the west, work could go on for only ninety days of the year. The first keeper, a former ship's
carpenter, moved in before the lantern room had a roof, and kept a fire burning on the gallery until the lamp arrived
from the glassworks. It burned rape oil at first, then paraffin, and was turned by a clockwork that had to be wound
every four hours, day and night. His daughter kept the journal: weather, ships, visitors, and the birds that flew
against the glass in the autumn nights. Her entries were later used by naturalists to show that the great migrations
followed the coast and did not cross the open sea, as had been believed. The station was connected to the telegraph in
1889, which made it the first place from which storms could be reported to the harbours in the south, and in the
twenty years that followed not one fishing boat from those harbours was lost in a storm that had been announced.
Electric light came in 1934 and with it the end of the night watches; the last keeper left in 1986. Today the tower is
run by a society of volunteers, who have restored the clockwork and show it to about nine thousand visitors a year.
The journal lies open in a glass case on the ground floor, at the page of the night on which the lamp was lit for the
first time.
"""
_BATTERY = """\
Engineers who look after large battery stores face a question that sounds simple: how full is the battery? The voltage
of a cell says little about its charge in the middle of its range, and it depends on temperature, on age and on the
current that happens to flow. The usual answer is to count: measure the current, add it up, and correct the sum
whenever the cell rests long enough for its voltage to settle. Counting drifts, because every sensor has a small
offset, and a store that is used all day never rests. The group whose work is reported here took another way. They
sent a very small alternating current through the cells while they were working and listened to the answer at several
frequencies. From the phase of that answer they could tell the temperature inside the cell to within one degree, and
from its change over weeks they could tell how much the cell had aged. Combined with the counted charge this gave an
estimate that stayed within two per cent of the truth for four months without a single rest. The hardware costs less
than the sensors it replaces, because one generator serves a whole rack and the measurement takes only half a second
per cell. There are limits. The method was tried on one chemistry only, and the answer of very cold cells is so weak
that it is lost in the noise of the converters. The group expects that a better choice of frequencies will help with
the second problem; for the first there is no way around measuring each chemistry in the laboratory once. Two
operators have agreed to try the method in stores of ten megawatt hours each, for a year, side by side with the
equipment they have.
"""
_MARKET = """\
When the town council decided in March to close the market square to cars, the shopkeepers were divided. Some feared
for the customers who come from the villages and carry their purchases home in the boot; others pointed at the
neighbouring town, where takings rose by a tenth in the first year after a similar change. The council promised to
measure. For six months students of the technical college counted people at the four corners of the square on every
second Saturday, and thirty shops agreed to report their weekly takings to a trustee. The result was presented on
Tuesday. The number of people on the square has grown by a third, and they stay longer: on average fifty-two minutes
instead of thirty-four. Takings have grown by six per cent in the cafes and by two in the clothes shops; in the two
shops that sell furniture and tools they have fallen, by nine and by eleven. Deliveries cause the most complaints,
since vans now arrive within the same two hours of the morning. The council proposes to open the eastern lane for
deliveries until noon, to reserve eight parking places behind the town hall for customers who have something heavy to
carry, and to keep the rest of the square free of cars for good. The owners of the two shops have said that they can
live with that. A vote is planned for the end of the month. The students, for their part, will go on counting until
the spring, because, as their teacher remarked, a square in summer and a square in January are two different places.
"""
_BRIDGE = """\
The inspection of the old railway bridge took two weeks and was done without stopping a single train. Climbers went
over every one of the nine thousand rivets and tapped them with a hammer, as their predecessors did in 1912, while a
small aircraft without a pilot photographed the same surfaces from a distance of two metres. The aim was to learn
whether the pictures can replace the hammer. Of the 214 rivets that sounded loose, the pictures had shown rust or a
visible gap at 171; the other 43 looked sound. On the other hand the pictures revealed a crack of eleven centimetres
in a cross girder that nobody can reach with a hammer without a scaffold. The engineers conclude that neither method
is enough. They recommend to photograph the bridge every year, to compare the pictures with those of the year before
by machine, and to send climbers only to places where something has changed, and once in six years everywhere. That
would cost about a third of what is spent today. The loose rivets will be replaced by bolts during the nights of the
coming month. The girder with the crack has been relieved by a plate as a first measure, and trains cross the bridge
at forty kilometres an hour until it has been replaced in the summer. The bridge carries sixty trains a day and is
listed as a monument, so that every change of its appearance, even the colour of the bolts, has to be agreed with the
office for the preservation of monuments, which asked for the old rivets to be kept for the railway museum.
"""


_ANNOUNCED = 3
"""Number of short prompts before the long ones: the first prompt begins before anybody knows of the others, and while a
long one runs nothing else can."""


def _by_profile(profile: str, *texts: str) -> list[DemoPrompt]:
    return [DemoPrompt(f"{profile}-{number}", profile, text) for number, text in enumerate(texts, start=1)]


def burst(texts: int) -> tuple[DemoPrompt, ...]:
    """Return the sixteen prompts in the order in which they are sent, most of the short ones behind the long ones.

    Args:
        texts: number of texts in each prompt of the summarizer.
    """
    chats = _by_profile(
        "chatbot",
        "What is the capital of France, and what is it known for?",
        "I have eggs, rice and one onion. What can I cook tonight?",
        "Explain to a child why the sky is blue.",
        "Give me three tips for sleeping better.",
    )
    code = _by_profile(
        "coder",
        "Write a Python function that returns the n-th Fibonacci number.",
        "Write a SQL query that returns the ten customers with the highest total of orders.",
        "Write a regular expression that matches a date like 2024-05-17, and explain it.",
        "Write a shell command that counts the lines of all Python files below a directory.",
    )
    tools = _by_profile(
        "tool_use",
        "You can call weather(city). Which call answers: do I need an umbrella in Oslo?",
        "You can call search(query). Which call finds the opening hours of the Louvre?",
        "You can call add(a, b). Which call computes the sum of 17 and 25?",
        "You can call translate(text, language). Which call says good morning in Spanish?",
    )
    summaries = _by_profile("summarizer", *(document(texts, first) for first in range(len(_TEXTS))))
    short = [prompt for together in zip(chats, code, tools, strict=True) for prompt in together]
    return (*short[:_ANNOUNCED], *summaries, *short[_ANNOUNCED:])


_TEXTS = (_LIGHTHOUSE, _BATTERY, _MARKET, _BRIDGE)
SHORT_PROMPT = "Name three rivers of Europe."
"""A prompt as long as the short ones of the burst, for measuring."""
COUNTING_PROMPT = "Count from 1 to 40: 1, 2, 3,"
"""A prompt whose answer shows at a glance whether something is missing. The model is sure of each next token, so that
the text does not depend on the order in which an engine adds numbers up."""


def document(texts: int, first: int = 0) -> str:
    """Return a prompt that asks for a summary of so many of the demo's texts, which are about 370 tokens each.

    Args:
        first: which of the texts comes first; the others follow in turn.
    """
    chosen = (_TEXTS[(first + number) % len(_TEXTS)] for number in range(texts))
    return "Summarize this in two sentences.\n\n" + "\n".join(chosen)
