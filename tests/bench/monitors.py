"""What the monitors cost the event loop, per request: `python -m tests.bench.monitors`.

The pocket cascade's own reference and policy; every request takes all four tiers, the dearest way.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from eval.card import Absent
from gateway import config as configs
from gateway.monitor import reference as references
from gateway.monitoring import Monitoring
from gateway.nouns import Answer, Ask, Completion, Features, Finish, Hop, Message, Policy, Reason, Tier
from gateway.snapshot import Snapshot
from gateway.store.story import Story

CASCADE = Path(__file__).parents[2] / "deploy/pocket/cascade.yaml"


def ended_microseconds(requests: int = 20_000) -> tuple[float, float, int]:
    """Median and 99th percentile of Monitoring.ended, and how many tiers each request asked."""
    config = configs.read(CASCADE)
    assert config.monitors.reference is not None
    reference = references.load(config.monitors.reference)
    wide = config.monitors.model_copy(update={"rows": requests})  # so that every request is noted
    config = config.model_copy(update={"monitors": wide})
    known = {tier: one for (_, tier), one in reference.tiers.items()}
    tiers = tuple(
        Tier(name, Absent(name, {}), features=one.names, calibrator_id=one.calibrator, threshold=0.9)
        for name, one in known.items()
    )
    policy = Policy("default", tiers)
    monitoring = Monitoring(CollectorRegistry())
    snapshot = Snapshot(config, {tier.name: tier for tier in tiers}, {"default": policy}, {}, reference=reference)
    monitoring.serve(snapshot)
    ask = Ask((Message("user", "?"),), deadline=0.0)
    stories = []
    for row in range(200):
        hops = tuple(
            Hop(
                name, Reason.UNSURE, 0.1, 0.9, float(one.rows[row, -1]), Features(one.names, one.rows[row, :-1]),
                Completion("42", Finish.STOP, 10, 20, name, name, 0.1), calibrator_id=one.calibrator,
            )
            for name, one in known.items()
        )  # fmt: skip
        stories.append(Story("n", 0.0, ask=ask, route=policy, answer=Answer(hops, hops[-1], Reason.LAST, policy)))
    took = np.empty(requests)
    for place in range(requests):
        story = stories[place % len(stories)]
        began = time.perf_counter()
        monitoring.ended(snapshot, story, 200, 0.1)
        took[place] = time.perf_counter() - began
    return float(np.median(took) * 1e6), float(np.quantile(took, 0.99) * 1e6), len(tiers)


if __name__ == "__main__":
    middle, late, tiers = ended_microseconds()
    print(f"noting one request over {tiers} tiers: median {middle:.1f} us, 99th percentile {late:.1f} us (n = 20,000)")
