"""`confgate sweep` from recorded answers: its probabilities and decisions are the gateway's own, one by one."""

import asyncio
import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from calibrators import artifact, logistic
from calibrators.artifact import Artifact
from calibrators.base import FitData, Missing
from eval import agreement, held_out, records
from eval.baselines import LENGTH, RAW
from eval.choice import replay_mix
from eval.crossed import BadTable, Crossed
from eval.crossing import completed, cross
from eval.grade import Grade
from eval.material import Wish, bound, gather, of_config
from eval.recommend import Recommendation, decide, goal_of, steps_of
from eval.records import Collected, Manifest, Record
from eval.replay import answers
from eval.sweep import Route, replay, sweep
from eval.sweep_cli import app
from gateway import cascade, checking
from gateway import config as configs
from gateway.answers import Rule
from gateway.errors import ConfigError
from gateway.nouns import Ask, Completion, Finish, Message, Policy, Source, Tier, TokenTrace

TIERS, PRICES = ("small", "middle", "large"), (1.0, 4.0, 16.0)
OWN = ("lp_mean", "length")
LOOKING = (*OWN, "upstream_logit", "upstream_agreement")


def written(n: int, split: str, seed: int) -> Iterator[Record]:
    """Answers of three models whose log-probs know how hard a question was; one in fifty is cut, empty or has no trace,
    and one question is never answered by the last tier."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        hard = rng.normal()
        for tier, skill in zip(TIERS, (0.3, 1.5, 3.0), strict=True):
            margin = skill - 1.5 * hard + 0.5 * rng.normal()
            right = rng.random() < 1 / (1 + np.exp(-margin))
            odd = rng.choice(["cut", "empty", "bare", "no"], p=[0.01, 0.005, 0.005, 0.98])
            length = int(rng.integers(3, 9))
            chosen = -np.log1p(np.exp(-margin + rng.normal(0, 0.2, length)))
            answer = str(i) if right and odd != "cut" else str(rng.integers(10_000, 10_003))
            yield Record(
                question=f"{split}-{i}",
                dataset="made",
                split=split,
                family=f"{split}-{i}",
                tier=tier,
                engine="e",
                prompt="p",
                text="" if odd == "empty" else f"so\n#### {answer}",
                answer="" if odd == "empty" else answer,
                rule=Rule.NONE if odd == "empty" else Rule.HASHES,
                grade=Grade.UNREADABLE if odd == "empty" else Grade.RIGHT if right and odd != "cut" else Grade.WRONG,
                finish=Finish.LENGTH if odd == "cut" else Finish.STOP,
                prompt_tokens=20,
                completion_tokens=length,
                seconds=length / 100,
                trace=None
                if odd in ("bare", "empty")
                else TokenTrace(Source.CHOSEN, chosen.astype("f4").astype(float)),
                no_trace="none sent" if odd in ("bare", "empty") else "",
                slices={"odd": i % 2},
            )


def unasked(rows: list[Record]) -> list[Record]:
    return [replace(rows[0], text=None, finish=None, grade=Grade.UNASKED, error="down", trace=None), *rows[1:]]


class Answering:
    """An engine that answers with a record."""

    def __init__(self, record: Record) -> None:
        self.record, self.name = record, record.tier

    async def complete(self, _ask: Ask) -> Completion:
        return completed(self.record)

    async def ready(self) -> bool:
        return True

    async def fingerprint(self) -> Mapping[str, str]:
        return {}

    async def close(self) -> None:
        return None


def fitted_tiers(rows: list[Record]) -> list[Tier]:
    """The last two look at what the tier just before them said, and can do without."""
    plain = cross(rows, [bare(name, OWN, None) for name in TIERS])["fit"].table
    rng = np.random.default_rng(0)
    tiers = []
    for place, name in enumerate(TIERS):
        right, lp, n = (
            plain.right[:, place],
            np.log(plain.scores[RAW][:, place]),
            1 / plain.scores[LENGTH][:, place] - 1,
        )
        X = np.stack([lp, n], axis=1)
        names: tuple[str, ...] = OWN
        if place:
            agree = np.array([float(row[place] == row[place - 1]) for row in plain.answers])
            said = np.stack([rng.normal(size=len(agree)) + 2 * agree, agree], axis=1)
            said[rng.random(len(agree)) < 0.2] = np.nan
            X, names = np.hstack([X, said]), LOOKING
        known = ~np.isnan(X[:, 0])
        missing = (Missing.REFUSE,) * 2 + (Missing.INDICATE,) * (len(names) - 2)
        tiers.append(bare(name, names, logistic.fit(FitData(X[known], right[known], names, missing=missing))))
    return tiers


def measured(table: Crossed, tier: int) -> np.ndarray:
    """(n, 2) lp_mean and length, back from the scores that were made of them."""
    return np.stack([np.log(table.scores[RAW][:, tier]), 1 / table.scores[LENGTH][:, tier] - 1], axis=1)


def bare(name: str, features: tuple[str, ...], calibrator: logistic.Logistic | None) -> Tier:
    return Tier(name, Answering(next(written(1, "x", 0))), features, calibrator)


def test_every_decision_of_the_sweep_is_the_gateways_own() -> None:
    """Every efficient route, question by question: who serves, after how many tiers, for how many tokens."""
    rows = list(written(300, "fit", 1))
    tiers = fitted_tiers(rows)
    table = cross(rows, tiers)["fit"].table
    assert np.isnan(table.p).any()
    assert not np.array_equal(table.p_of((0, 1)), table.p_of((1,)), equal_nan=True)
    by_question = {q: {row.tier: row for row in rows if row.question == q} for q in table.questions}
    swept = sweep(table, steps=8)
    routes = [swept.routes[place] for place in swept.frontier][::3]
    assert any(len(route.chain) == 3 for route in swept.routes)
    routes += [next(route for route in swept.routes if route.chain == chain) for chain in ((0, 1, 2), (0, 2), (1, 2))]

    async def served(question: str, route: Route) -> tuple[str, int, int]:
        marks = (*route.thresholds, None)
        chain = [
            replace(tiers[tier], engine=Answering(by_question[question][TIERS[tier]]), threshold=mark)
            for tier, mark in zip(route.chain, marks, strict=True)
        ]
        deadline = asyncio.get_running_loop().time() + 60
        found = await cascade.answer(Ask((Message("user", "q"),), deadline), Policy("p", tuple(chain)))
        return found.served.tier, len(found.hops), found.cost.total_tokens

    with asyncio.Runner() as runner:
        for route in routes:
            played = replay(table, route)
            ours = [
                (TIERS[tier], int(asked), int(cost))
                for tier, asked, cost in zip(played.served, played.asked, played.cost, strict=True)
            ]
            theirs = [runner.run(served(question, route)) for question in table.questions]
            assert ours == theirs


def test_questions_that_some_tier_never_answered_are_counted_and_left_out() -> None:
    rows = list(written(10, "fit", 2))
    told = cross([*rows[:27], *unasked(rows[27:])], [bare(name, OWN, None) for name in TIERS])["fit"]
    assert (told.table.n, told.unasked) == (9, 1)
    with pytest.raises(BadTable, match="was answered by all of small, nobody"):
        cross(rows, [bare(name, OWN, None) for name in ("small", "nobody")])


def test_one_split_each_keeps_its_questions_tokens_and_scores() -> None:
    rows = [*written(12, "fit", 3), *written(8, "test", 4)]
    found = cross(rows, [bare(name, OWN, None) for name in TIERS])
    assert {split: one.table.n for split, one in found.items()} == {"fit": 12, "test": 8}
    table = found["test"].table
    assert table.cost.tolist() == (found["test"].usage.prompt_tokens + found["test"].usage.completion_tokens).tolist()
    assert set(table.scores) == {RAW, LENGTH}
    assert found["test"].slices == {"odd": tuple(i % 2 for i in range(8))}
    assert np.isnan(table.p).all()


def test_what_was_cut_unreadable_or_came_without_log_probs_is_marked() -> None:
    rows = list(written(200, "test", 4))
    found = cross(rows, [bare(name, OWN, None) for name in TIERS])["test"]
    by = {(row.question, row.tier): row for row in rows}
    for name, is_so in (
        ("cut", lambda row: row.finish is Finish.LENGTH),
        ("unreadable", lambda row: row.grade is Grade.UNREADABLE),
        ("silent", lambda row: row.trace is None),
    ):
        expected = [[is_so(by[question, tier]) for tier in TIERS] for question in found.table.questions]
        assert getattr(found, name).tolist() == expected
        assert getattr(found, name).any()
    half = found.rows(np.arange(200) % 2 == 0)
    assert half.table.n == len(half.slices["odd"]) == half.cut.shape[0] == 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of two splits, calibrators fitted on the first, and a cascade file."""
    folder = tmp_path_factory.mktemp("made")
    rows = [*written(500, "calibration", 5), *unasked(list(written(500, "test", 6)))]
    records.write(folder / records.RECORDS, (records.flatten(row) for row in rows))
    manifest = Manifest(
        dataset="made",
        splits={"calibration": 500, "test": 500},
        data_sha256="0" * 64,
        template="{question}",
        max_tokens=None,
        top_k=0,
        seed=0,
        tiers=tuple(Collected(name=name, fingerprint={"model": name, "engine": "made"}) for name in TIERS),
    )
    records.write_manifest(folder / records.MANIFEST, manifest)
    table = cross(rows, [bare(name, OWN, None) for name in TIERS])["calibration"].table
    for place, name in enumerate(TIERS):
        known = ~np.isnan(table.scores[RAW][:, place])
        data = FitData(measured(table, place)[known], table.right[known, place], OWN)
        fitted = Artifact.seal(
            id=name,
            kind="logistic",
            features=OWN,
            params=logistic.fit(data).to_params(),
            fingerprint={"model": name, "engine": "made", "source": "chosen", "prompt_template": manifest.prompt},
            fit={"data_sha256": "0" * 64, "n": data.n, "n_rare": data.n_rare, "objective": "erm", "eta": 0.0, "seed": 0,
                 "split": "calibration", "slices": {}},
            metrics={},
            validity={"conditions": [], "checks": {}},
            created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        )  # fmt: skip
        artifact.dump(fitted, folder / f"{name}.json")
        places = [("calibration", question) for question, has in zip(table.questions, known, strict=True) if has]
        held_out.write(folder / f"{name}.json", fitted, places, out_of_fold(data))
    tiers = "\n".join(
        f"  - {{name: {name}, engine: {{kind: openai_http, url: 'http://h/v1', model: {name}}},"
        f" calibrator: {name}.json, prices: {{usd_per_mtok_in: {usd}, usd_per_mtok_out: {usd}}}}}"
        for name, usd in zip(TIERS, PRICES, strict=True)
    )
    policy = "  default:  # chosen by sweep\n    steps:\n      - {tier: small, accept_at: 0.9}\n      - {tier: large}\n"
    (folder / "cascade.yaml").write_text(f"keys: {{allow_anonymous: true}}\ntiers:\n{tiers}\npolicies:\n{policy}")
    return folder


def out_of_fold(data: FitData) -> np.ndarray:
    """p of every row by a fit on the other folds."""
    fold = np.arange(data.n) % 5
    p = np.empty(data.n)
    for out in range(5):
        p[fold == out] = logistic.fit(data.rows(np.flatnonzero(fold != out))).predict(data.X[fold == out])
    return p


def recommend(places: list[Path], config: configs.Config, wish: Wish) -> Recommendation:
    return decide(gather(places, config, wish), wish)


def run(folder: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["-r", str(folder), "-c", str(folder / "cascade.yaml"), *arguments])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return done.stdout


def test_the_command_says_the_verdict_first_and_shows_what_it_was_held_against(folder: Path) -> None:
    told = run(folder, "--certify", "0.3")
    assert told.startswith(("use ", "no cascade ", "serve "))
    for part in (
        "frontier",
        "random mix",
        "agreement",
        "cascade oracle",
        "look-ahead",
        "McNemar",
        "AUDC",
        "promises",
        "best feature",
        "before answering",
        "given the prompt alone",
    ):
        assert part in told
    assert "calibrators were fitted on calibration too; there p is out of fold" in told
    assert "500 of the 500 questions that choose take their p out of fold" in told
    assert "1 questions of test left out" in told


def test_what_is_written_is_what_was_recommended_and_the_gateway_reads_it(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text((folder / "cascade.yaml").read_text().replace("calibrator: ", f"calibrator: {folder}/"))
    told = json.loads(run(folder, "--budget", "60%", "--write", str(path), "--json"))
    steps = configs.read(path).policies["default"].steps
    assert [step.tier for step in steps] == told["recommended"]["tiers"]
    assert [step.accept_at for step in steps[:-1]] == told["recommended"]["thresholds"]
    assert "# chosen by sweep" in path.read_text()
    assert told["cost_unit"] == "usd"
    assert told["mix"]["share_high"] <= 1
    assert [name.split()[0] for name in told["metrics"]] == ["AUDC", "APGR", "CPT(50%)", "CPT(80%)", "AIQ"]
    paid = [one["accuracy"] for one in told["budgets"] if one["accuracy"] is not None]
    assert len(paid) >= 3


def test_a_budget_is_written_as_a_mix_and_the_gateway_draws_as_the_sweep_does(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path) / "cascade.yaml"
    told = run(tmp_path, "--budget", "60%", "--write", str(path), "--policy", "spend", "--as", "mix")
    assert "policy spend is now a mix" in told
    config = configs.read(path)
    manifest = records.read_manifest(folder / records.MANIFEST)
    found = recommend([folder], config, Wish(budget="60%"))
    assert found.mixed is not None
    table, rows = found.test, [row for row in records.read(folder / records.RECORDS) if row.split == "test"]
    expected = replay_mix(table, found.mixed)
    served = {
        next(iter(asked.values())).question: answer
        for asked, answer in answers(rows, agreement.opened(config, "spend", [manifest]))
    }
    assert {answer.policy.name for answer in served.values()} == {"spend-high", "spend-low"}
    for place, question in enumerate(table.questions):
        answer = served[question]
        assert (answer.served.tier, len(answer.hops)) == (TIERS[expected.served[place]], expected.asked[place])
    low, high = (replay(found.chosen_on, route).mean_cost for route in (found.mixed.low, found.mixed.high))
    most = 0.6 * float(found.chosen_on.cost.mean(axis=0)[found.chosen_on.right.mean(axis=0).argmax()])
    shares = [part.share for part in config.policies["spend"].mix]
    assert shares[0] * high + shares[1] * low == pytest.approx(most, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--as", "look-ahead", "--write", "x.yaml"), "asks the tiers of a policy in order"),
        (("--as", "nonsense", "--write", "x.yaml"), "recommended or mix"),
        (("--as", "mix", "--budget", "50%"), "name the cascade file"),
        (("--as", "mix", "--write", "x.yaml"), "say with --budget"),
        (("--as", "mix", "--write", "x.yaml", "--budget", "900%"), "one policy alone spends this budget"),
    ],
)
def test_what_cannot_be_written_as_a_mix_is_said_in_words(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["-r", str(folder), "-c", str(folder / "cascade.yaml"), *arguments])
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)


def test_no_calibrator_is_tested_on_what_it_was_fitted_on(folder: Path) -> None:
    done = CliRunner().invoke(
        app, ["-r", str(folder), "-c", str(folder / "cascade.yaml"), "--choose-on", "test", "--test-on", "calibration"]
    )
    assert isinstance(done.exception, ConfigError)
    assert "fitted on 'calibration'" in str(done.exception)
    config = configs.read(folder / "cascade.yaml")
    with pytest.raises(ConfigError, match="no part of it can test"):
        recommend([folder], config, Wish(choose_on="calibration", test_on="calibration"))


def test_one_split_is_halved_and_a_wrong_one_is_answered_with_the_right_ones(folder: Path) -> None:
    config = configs.read(folder / "cascade.yaml")
    halved = recommend([folder], config, Wish(choose_on="test", test_on="test"))
    assert abs(halved.chosen_on.n - halved.test.n) <= 12
    assert not set(halved.chosen_on.questions) & set(halved.test.questions)
    with pytest.raises(ConfigError, match="no split 'tset' in these records; have calibration, test"):
        recommend([folder], config, Wish(test_on="tset"))


def test_wishes_that_contradict_or_mean_nothing_are_refused(folder: Path) -> None:
    table = recommend([folder], configs.read(folder / "cascade.yaml"), Wish(tiers=("small", "large"))).test
    assert table.tiers == ("small", "large")
    assert steps_of(table, Route((0, 1), (0.5,))) == [("small", 0.5), ("large", None)]
    with pytest.raises(ConfigError, match="one of --budget"):
        goal_of(Wish(budget="3", rate=0.1), table)
    with pytest.raises(ConfigError, match="such as 40%"):
        goal_of(Wish(budget="much"), table)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        goal_of(Wish(target=94.0), table)
    with pytest.raises(ConfigError, match="no tier 'huge'"):
        recommend([folder], configs.read(folder / "cascade.yaml"), Wish(tiers=("huge",)))
    done = CliRunner().invoke(app, ["-r", str(folder), "-c", str(folder / "cascade.yaml"), "--cost", "money"])
    assert "no cost model 'money'" in str(done.exception)


def test_a_note_says_which_tiers_have_no_confidence_when_others_are_skipped(world: Callable[..., Crossed]) -> None:
    free = world(20, 0)

    def given(path: tuple[int, ...]) -> np.ndarray:
        whole = path == tuple(range(path[-1] + 1))
        return free.p[:, path[-1]] if whole else np.full(free.n, np.nan)

    assert bound(free) == []
    notes = bound(replace(free, given=given))
    assert [note.split(" were asked")[0] for note in notes] == [
        "b has no confidence unless a",
        "c has no confidence unless a, b",
    ]
    assert all("--upstream off" in note for note in notes)


def copied(folder: Path, to: Path) -> Path:
    """The made records and the cascade file in a folder of one's own."""
    for one in folder.iterdir():
        (to / one.name).write_bytes(one.read_bytes())
    return to


def test_a_policy_is_chosen_on_the_p_of_a_fit_that_has_not_seen_the_question(folder: Path) -> None:
    config = configs.read(folder / "cascade.yaml")
    found = gather([folder], config, Wish())
    unseen = held_out.of(of_config(config))
    table = found.chosen_on.table
    for place, name in enumerate(TIERS):
        p = [unseen[name].p.get(question, np.nan) for question in table.questions]
        has = ~np.isnan(table.p[:, place])  # cut answers have none
        assert has.sum() > 450
        assert np.array_equal(table.p[has, place], np.array(p)[has])
    assert not set(found.test.table.questions) & set(unseen["small"].p)


def test_without_out_of_fold_probabilities_fit_data_chooses_nothing(folder: Path, tmp_path: Path) -> None:
    own = copied(folder, tmp_path)
    config = configs.read(own / "cascade.yaml")
    held_out.beside(own / "middle.json").unlink()
    with pytest.raises(ConfigError, match=r"of middle were fitted on 'calibration'.*run `confgate fit` again"):
        gather([own], config, Wish())
    held_out.beside(own / "middle.json").write_bytes(held_out.beside(own / "small.json").read_bytes())
    with pytest.raises(ConfigError, match="belongs to another artefact than middle@"):
        gather([own], config, Wish())
    held_out.beside(own / "middle.json").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="no out-of-fold probabilities"):
        gather([own], config, Wish())


def test_questions_of_the_fit_test_nothing_whatever_their_split_is_called(folder: Path, tmp_path: Path) -> None:
    own = copied(folder, tmp_path)
    fitted = artifact.load(own / "small.json")
    held_out.write(own / "small.json", fitted, [("elsewhere", "test-7")], np.array([0.5]))
    with pytest.raises(ConfigError, match="fitted on 1 of the questions that test"):
        gather([own], configs.read(own / "cascade.yaml"), Wish())


def test_where_a_calibrator_looks_back_the_out_of_fold_p_is_of_one_path_only() -> None:
    rows = list(written(200, "fit", 3))
    tiers = fitted_tiers(rows)
    tiers[1] = replace(tiers[1], after=("small",))
    plain = cross(rows, tiers)["fit"].table
    known = dict.fromkeys(plain.questions[:30], 0.25)
    table = cross(rows, tiers, {"middle": held_out.HeldOut(known, ("small",))})["fit"].table
    has = ~np.isnan(plain.p_of((0, 1)))
    assert has[30:].any()
    assert (table.p_of((0, 1))[:30][has[:30]] == 0.25).all()
    assert np.isnan(table.p_of((1,))[:30]).all()
    assert np.array_equal(table.p_of((0, 1))[30:], plain.p_of((0, 1))[30:], equal_nan=True)
    assert np.array_equal(table.p_of((0,)), plain.p_of((0,)), equal_nan=True)


def test_what_is_written_carries_a_certificate_that_the_gateway_finds_good(folder: Path, tmp_path: Path) -> None:
    own = copied(folder, tmp_path)
    path = own / "cascade.yaml"
    run(own, "--certify", "0.3", "--write", str(path))
    summary = checking.check(path, live=False)
    (found,) = summary["certificates"]
    assert found["holds"]
    assert "share of final answers that are wrong at most 30.00% with 95% confidence" in found["promises"][0]
    assert any(one.startswith("cost of one request in usd") for one in found["promises"])
    assert "Learn then Test kept this one" in found["chosen"]
    assert found["chosen"].startswith("on calibration: ")
    once = path.read_text()
    run(own, "--certify", "0.3", "--write", str(path))
    assert path.read_text() == once
    changed = once.replace("accept_at: 0.", "accept_at: 0.9", 1)
    path.write_text(changed)
    (broken,) = checking.check(path, live=False)["certificates"]
    assert "accept_at of" in broken["why"]


def test_an_error_rate_that_is_not_shown_writes_nothing(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path) / "cascade.yaml"
    before = path.read_text()
    arguments = ["-r", str(folder), "-c", str(path), "--certify", "0.0001", "--write", str(path)]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError)
    assert "nothing was written" in str(done.exception)
    assert "not certified" in str(done.exception)
    assert path.read_text() == before
