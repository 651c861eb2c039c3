"""The rehearsal of the demo: the machine is measured, and what is asked for is scaled to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cli.demo.measuring import measure, prompt_tokens
from cli.demo.prompts import SHORT_PROMPT, DemoPrompt, burst, document
from cli.demo.scene import Scene
from cli.demo.stage import Stage
from cli.demo.targets import Ask, Stretch, Targets, stretch_for, texts_in_long_prompt
from cli.demo.workers import DemoWorkers
from slos_serve import AsyncClient


async def rehearse(client: AsyncClient, stage: Stage, workers: DemoWorkers, max_hold_s: float) -> Scene:
    """Return the scene for this machine: the paper's targets, stretched until the burst fits.

    Args:
        max_hold_s: seconds that the router lets a request wait for its verdict.

    Raises:
        SlosServeError
    """
    machine = await measure(client, stage.say)
    short, one, two = await prompt_tokens(client, [SHORT_PROMPT, document(1), document(2)])
    prompts = burst(texts_in_long_prompt(machine, short, two - one))
    lengths = await prompt_tokens(client, [prompt.text for prompt in prompts])
    asks = [Ask(prompt.profile, tokens) for prompt, tokens in zip(prompts, lengths, strict=True)]
    stretch = stretch_for(machine, asks)
    targets = {prompt.name: stretch.targets(ask, machine) for prompt, ask in zip(prompts, asks, strict=True)}
    for line in asked(stretch, prompts, targets):
        stage.say(line)
    return Scene(client, stage, machine, workers, prompts, targets, max_hold_s)


def asked(stretch: Stretch, prompts: Sequence[DemoPrompt], targets: Mapping[str, Targets]) -> list[str]:
    """Return lines about the targets of each profile.

    Args:
        targets: targets of each prompt, by its name.
    """
    heading = (
        f"asked for: the targets of the SLOs-Serve paper, TTFT times {stretch.ttft:.1f} and TPOT times "
        f"{stretch.tpot:.1f}, which this machine can keep for sixteen prompts at once"
    )
    lines = [heading]
    for profile in dict.fromkeys(prompt.profile for prompt in prompts):
        own = [targets[prompt.name] for prompt in prompts if prompt.profile == profile]
        ttfts_s = [target.ttft_s for target in own]
        lines.append(
            f"  {profile:<10}  first token within {min(ttfts_s):.2f} to {max(ttfts_s):.2f} s, then "
            f"{own[0].tpot_s * 1e3:,.0f} ms a token"
        )
    return lines
