"""Writing a policy into a cascade file: nothing else in it may change, not a comment, not a space."""

import datetime as dt
from pathlib import Path

import pytest

from eval import policy_file
from eval.policy_file import edited, mixed
from gateway.certificate import Certificate, CertifiedStep, Data, Promise
from gateway.config import parse
from gateway.errors import ConfigError

PATH = Path("cascade.yaml")
HEAD = """\
# Ours.
keys: {allow_anonymous: true}   # on loopback
tiers:
  - {name: a, engine: {kind: openai_http, url: "http://h/v1", model: a}, calibrator: a.json}
  - {name: b, engine: {kind: openai_http, url: "http://h/v1", model: b}, calibrator: b.json}
  - {name: c, engine: {kind: openai_http, url: "http://h/v1", model: c}}
policies:
"""
BLOCK = """\
  default:
    # cheapest first
    steps:
      - tier: a
        accept_at: 0.9   # by hand
      - {tier: c}        # always answers
    # after the steps
    serve_fallback: false
  other: {steps: [{tier: b, accept_at: 0.5}, {tier: c}]}
"""


CERTIFICATE = Certificate.sealed(
    issued=dt.date(2026, 11, 22),
    steps=[CertifiedStep(tier="a", accept_at=0.5, calibrator="a@0123456789ab"),
           CertifiedStep(tier="c", calibrator="none")],
    data=Data(split="test", n=999, sha256="1e" * 32),
    chosen="on validation: thresholds were chosen on other questions than these; bounds hold for all 2 at once, " * 2,
    promises=[Promise(what="cost of one request in usd", unit="usd", limit=1e-05, confidence=0.95, seen=2e-06, n=999,
                      method="split conformal"),
              Promise(what="share of wrong answers among those that a serves", limit=0.1 + 0.2, confidence=0.95,
                      seen=0.0, n=300, method="Clopper-Pearson, 2 tiers at once")],
    assumptions=["requests are like the questions counted here: same source, same prompt", "no: tier # fails"],
)  # fmt: skip


def steps(text: str, policy: str = "default") -> list[tuple[str, float | None]]:
    return [(step.tier, step.accept_at) for step in parse(text, PATH).policies[policy].steps]


def test_other_thresholds_for_the_same_tiers_change_the_numbers_alone() -> None:
    changed = edited(HEAD + BLOCK, PATH, "default", [("a", 0.87), ("c", None)])
    assert changed == (HEAD + BLOCK).replace("0.9 ", "0.87 ")


def test_another_chain_replaces_the_steps_and_leaves_the_comments_around_them() -> None:
    wanted = [("a", 0.5), ("b", 0.123456789012345), ("c", None)]
    changed = edited(HEAD + BLOCK, PATH, "default", wanted)
    assert steps(changed) == wanted
    for kept in ("# Ours.", "# on loopback", "# cheapest first", "    # after the steps\n    serve_fallback: false"):
        assert kept in changed
    assert steps(changed, "other") == [("b", 0.5), ("c", None)]
    assert changed.startswith(HEAD)


def test_a_list_in_brackets_stays_one() -> None:
    changed = edited(HEAD + BLOCK, PATH, "other", [("c", None)])
    assert changed.endswith("  other: {steps: [{tier: c}]}\n")
    assert steps(changed) == [("a", 0.9), ("c", None)]


@pytest.mark.parametrize("accept_at", [1e-05, 2.5e-07, 1.0, 0.0, 0.1 + 0.2])
def test_no_bit_of_a_threshold_is_lost(accept_at: float) -> None:
    for chain in (["a", "c"], ["b", "c"]):
        wanted = [(chain[0], accept_at), (chain[1], None)]
        assert steps(edited(HEAD + BLOCK, PATH, "default", wanted)) == wanted


def test_writing_twice_changes_nothing_more() -> None:
    wanted = [("b", 0.75), ("c", None)]
    once = edited(HEAD + BLOCK, PATH, "default", wanted)
    assert edited(once, PATH, "default", wanted) == once


def test_a_policy_that_is_not_there_or_is_shared_is_left_alone() -> None:
    with pytest.raises(ConfigError, match="no policy 'nowhere' to write to; have default, other"):
        edited(HEAD + BLOCK, PATH, "nowhere", [("c", None)])
    shared = HEAD + "  default: &same {steps: [{tier: a, accept_at: 0.5}, {tier: c}]}\n  other: *same\n"
    with pytest.raises(ConfigError, match="cannot be changed alone"):
        edited(shared, PATH, "other", [("c", None)])


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text(HEAD + BLOCK)
    policy_file.write(path, "default", [("c", None)])
    assert steps(path.read_text()) == [("c", None)]
    with pytest.raises(ConfigError):
        policy_file.write(path, "default", [("nobody", 0.5), ("c", None)])
    assert steps(path.read_text()) == [("c", None)]
    assert [one.name for one in tmp_path.iterdir()] == ["cascade.yaml"]


@pytest.mark.parametrize("policy", ["default", "other"])
def test_a_certificate_is_written_under_its_policy_and_read_again_bit_by_bit(policy: str) -> None:
    wanted = [("a", 0.5), ("c", None)]
    changed = edited(HEAD + BLOCK, PATH, policy, wanted, CERTIFICATE)
    read = parse(changed, PATH).policies
    assert read[policy].certificate == CERTIFICATE
    assert CERTIFICATE.own_sha256() == CERTIFICATE.sha256
    assert [one.certificate for name, one in read.items() if name != policy] == [None]
    for kept in ("# Ours.", "# on loopback", "# cheapest first", "    # after the steps\n    serve_fallback: false"):
        assert kept in changed
    assert "certificate:" in changed
    assert max(map(len, changed.splitlines())) <= 120 or policy == "other"  # in brackets it has to be one line


@pytest.mark.parametrize("policy", ["default", "other"])
def test_the_next_certificate_takes_the_place_of_the_last_and_without_one_it_goes(policy: str) -> None:
    wanted = [("a", 0.5), ("c", None)]
    bare = edited(HEAD + BLOCK, PATH, policy, wanted)
    once = edited(HEAD + BLOCK, PATH, policy, wanted, CERTIFICATE)
    assert edited(once, PATH, policy, wanted, CERTIFICATE) == once
    assert edited(once, PATH, policy, wanted) == bare


def test_a_certificate_that_was_withdrawn_by_hand_is_read_as_such_and_replaced_by_the_next() -> None:
    wanted = [("a", 0.5), ("c", None)]
    once = edited(HEAD + BLOCK, PATH, "default", wanted, CERTIFICATE)
    gone = once.replace("certificate:\n", "certificate:\n      withdrawn: {since: 2026-12-01, why: drift}\n")
    read = parse(gone, PATH).policies["default"].certificate
    assert read is not None
    assert read.withdrawn is not None
    assert read.withdrawn.why == "drift"
    assert read.own_sha256() == read.sha256
    assert edited(gone, PATH, "default", wanted, CERTIFICATE) == once


def test_a_file_that_does_not_end_its_last_line_can_be_written_to() -> None:
    text = HEAD + "  default:\n    steps:\n    - {tier: c}"
    changed = edited(text, PATH, "default", [("a", 0.5), ("c", None)], CERTIFICATE)
    assert parse(changed, PATH).policies["default"].certificate == CERTIFICATE


PARTS = {
    "spend-high": ([("b", 0.123456789012345), ("c", None)], 1 / 3),
    "spend-low": ([("a", 1e-05), ("c", None)], 2 / 3),
}


@pytest.mark.parametrize("ending", [BLOCK, BLOCK.rstrip("\n"), BLOCK + "# the end\n"])
@pytest.mark.parametrize("policy", ["spend", "other", "default"])
def test_a_mix_is_two_policies_and_one_that_draws_between_them(policy: str, ending: str) -> None:
    text = HEAD + (ending.replace("    serve_fallback: false\n", "") if policy == "default" else ending)
    changed = mixed(text, PATH, policy, PARTS)
    read = parse(changed, PATH).policies
    assert [(part.policy, part.share) for part in read[policy].mix] == [("spend-high", 1 / 3), ("spend-low", 2 / 3)]
    assert {name: steps(changed, name) for name in PARTS} == {name: wanted for name, (wanted, _) in PARTS.items()}
    untouched = {"default", "other"} - {policy}
    assert [read[name] for name in untouched] == [parse(text, PATH).policies[name] for name in untouched]
    assert changed.startswith(HEAD)
    assert mixed(changed, PATH, policy, PARTS) == changed


def test_a_mix_keeps_its_key_and_takes_new_shares() -> None:
    once = mixed(HEAD + BLOCK, PATH, "spend", PARTS).replace("  spend:\n", "  spend:\n    mix_key: rollout\n")
    swapped = {name: (wanted, 1 - share) for name, (wanted, share) in PARTS.items()}
    entry = parse(mixed(once, PATH, "spend", swapped), PATH).policies["spend"]
    assert (entry.mix_key, [part.share for part in entry.mix]) == ("rollout", [1 - 1 / 3, 1 - 2 / 3])


def test_a_mix_in_brackets_stays_there() -> None:
    text = HEAD.replace("policies:\n", "policies: {default: {steps: [{tier: c}]}}\n")
    changed = mixed(text, PATH, "spend", PARTS)
    assert changed.splitlines()[:-1] == HEAD.splitlines()[:-1]
    assert [part.policy for part in parse(changed, PATH).policies["spend"].mix] == list(PARTS)


def test_what_a_mix_cannot_keep_is_not_written_over() -> None:
    with pytest.raises(ConfigError, match="says more than its steps"):
        mixed(HEAD + BLOCK, PATH, "default", PARTS)
    with pytest.raises(ConfigError, match="part of itself"):
        mixed(HEAD + BLOCK, PATH, "spend-low", PARTS)


def test_a_mix_is_not_written_over() -> None:
    text = HEAD + BLOCK + "  both: {mix: [{policy: default, share: 0.25}, {policy: other, share: 0.75}]}\n"
    with pytest.raises(ConfigError, match="'both' is a mix of others"):
        edited(text, PATH, "both", [("c", None)])
