"""The sharing of one Gloo group by all kinds of parallelism, in an engine of one process.

vLLM makes a device group and a CPU group for each of world, tensor, pipeline, data and expert parallelism. Each Gloo
group has a thread that wakes a hundred times a second, which is most of what an idle engine of one process costs.
"""

from __future__ import annotations

import functools
from typing import Any


def share_single_rank_groups() -> None:
    """Have `torch.distributed.new_group` hand the same Gloo group to all who ask in a world of one process.

    Nothing passes between them: a collective over one rank is the identity. Worlds of several ranks and other
    backends are left as they are. Idempotent.
    """
    import torch.distributed as dist

    if not dist.is_available() or hasattr(dist.new_group, "shares_single_rank_groups"):
        return
    new_group, destroy = dist.new_group, dist.destroy_process_group
    shared: list[Any] = []

    @functools.wraps(new_group)
    def new_or_shared_group(*args: Any, **kwargs: Any) -> Any:
        if dist.get_world_size() != 1 or str(kwargs.get("backend")) != "gloo":
            return new_group(*args, **kwargs)
        if not shared:
            shared.append(new_group(*args, **kwargs))
        return shared[0]

    @functools.wraps(destroy)
    def destroy_but_keep_shared(group: Any = None) -> None:
        if group is None:
            shared.clear()
        elif group in shared:
            return
        destroy(group)

    new_or_shared_group.shares_single_rank_groups = True  # type: ignore[attr-defined]
    dist.new_group = new_or_shared_group
    dist.destroy_process_group = destroy_but_keep_shared
