"""Real vLLM leaves nothing behind of what a client says or is told, also not when its worker is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from tests.cluster.conftest import REAL
from tests.support.canary import Canary, Flock, files_below
from tests.support.cluster import ClusterUnderTest, cluster_under_test, greedy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.engine]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real-canary")


@pytest.fixture(scope="module")
def cluster(run_dir: Path, model_dir: Path) -> Iterator[ClusterUnderTest]:
    """One worker that computes prompts and decodes, with everything logged that can be."""
    config = run_dir / "cluster.toml"
    text = REAL.format(model=model_dir, run_dir=run_dir / "run")
    text = text.replace("[launcher]", "[launcher]\nprefill = 0").replace("[router]", "[router]\nlocal_prefill = true")
    config.write_text(text.replace("[router]", f'[router]\nrecord = "{run_dir}/recorded"') + '[log]\nlevel = "debug"\n')
    with cluster_under_test(config) as running:
        yield running


def test_nothing_is_left_behind_by_real_engines(cluster: ClusterUnderTest, run_dir: Path, model_dir: Path) -> None:
    cluster.wait_ready(1)
    flock = Flock()
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))

    def prompt(name: str) -> str:
        text = " ".join(flock.text(name) for _ in range(4))
        flock.canaries.append(Canary(f"{name} in tokens", token_ids=tuple(tokenizer.encode(text).ids[:12])))
        return text

    request = greedy(prompt("prompt"), 24, request_id="whole")
    request.sampling.stop.append(flock.text("stop string"))
    answer = cluster.generate(request)
    flock.know_output("output", answer.text, answer.token_ids)
    stream = cluster.stub.Generate(greedy(prompt("prompt of a killed engine"), 400, request_id="killed"), timeout=300)
    for response in stream:
        if response.HasField("tokens") and response.tokens.index > 4:
            break
    cluster.kill("decode-0")
    # The request waits for another worker, which never comes.
    stream.cancel()
    places = list(files_below(run_dir))
    assert flock.found_in(places) == []
    names = {path.rpartition("/")[2] for path, _ in places}
    assert {"decode-0.log", "router.log"} <= names
    assert any(b"whole" in content for path, content in places if path.endswith("router.log"))
