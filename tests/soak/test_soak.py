"""The soak, 20 seconds of it; `make soak` has ten minutes."""

from __future__ import annotations

from pathlib import Path

from tests.soak.soak import ATTEMPTS, judged, soak


def test_on_flapping_upstreams_nothing_is_lost_cut_or_mixed(tmp_path: Path) -> None:
    found = soak(20.0, 1, tmp_path)
    assert found.wrong == []
    assert found.outcomes["lost"] == 0
    assert found.outcomes["whole"] > 20  # it was reached, all of it
    assert found.outcomes["whole stream"] > 5
    assert found.outcomes["client left"] > 3
    assert found.upstream_requests > found.asked / 4
    assert found.most_attempts <= ATTEMPTS
    assert found.grown_mb < 16  # caches are still filling; the long soak holds to 5


def test_the_soak_knows_a_mixed_answer() -> None:
    texts = ["n1 small n1.0", "n1 large n1.0"]
    mixed = b'{"choices": [{"message": {"content": "n1 small n1.0 large"}}]}'
    assert judged(200, mixed, texts, stream=False)[0]
    assert judged(500, b'{"error": {"message": "x"}}', texts, stream=False)[0]
    assert judged(200, b'data: {"choices": [{"delta": {"content": "n1 sm"}}]}\n\n', texts, stream=True)[0]
