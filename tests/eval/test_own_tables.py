"""A table of the user's own, all the way: calibrators, a policy that its questions choose, scored on others of them."""

import csv
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from calibrators import artifact as artifacts
from calibrators import scores
from eval import cli, held_out, report, report_cli, report_compare, sweep_cli, tables
from eval.crossing import Crossing
from eval.material import Material, Own, Wish, gather_tables
from eval.recommend import decide
from eval.records import BadRecords
from eval.report_schema import SCHEMA, SWEEP
from gateway.errors import ConfigError, GatewayError

Rows = list[dict[str, Any]]
MODELS = {"small": (2.0, 1.0), "large": (4.0, 20.0)}  # skill, price
QUICK = ("--steps", "8", "--levels", "2")
DEALT = ("--divide", "all:fit=0.5,test=0.5")


def answers(n: int = 800, seed: int = 0, *, knows: bool = True) -> Rows:
    """Two models' answers, long. knows: whether their confidence says how hard a question was."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        hard = rng.normal()
        for model, (skill, price) in MODELS.items():
            margin = skill - 4 * hard + 2 * rng.normal()
            seen = margin if knows else rng.normal()
            right = rng.random() < 1 / (1 + np.exp(-margin))
            rows.append(
                {
                    "model": model,
                    "question": f"q{i}",
                    "correct": int(right),
                    "confidence": float(1 / (1 + np.exp(-0.5 * seen - 1))),  # knows, and is not calibrated
                    "cost": price * float(rng.uniform(0.5, 1.5)),
                }
            )
    return rows


def saved(path: Path, rows: Rows) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
                writer.writeheader()
                writer.writerows(rows)
    return path


def widened(rows: Rows) -> Rows:
    wide: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = wide.setdefault(row["question"], {"question": row["question"]})
        one |= {f"{row['model']}.{name}": row[name] for name in ("correct", "confidence", "cost")}
    return list(wide.values())


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    """What is drawn matters here, not how often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "bootstrap_all", partial(scores.bootstrap_all, resamples=20))
        patch.setattr(scores, "noise_floor", partial(scores.noise_floor, draws=20))
        patch.setattr(report, "RESAMPLES", 200)
        patch.setattr(report_compare, "RESAMPLES", 200)
        patch.setattr(report_compare, "RESAMPLES_BRIER", 50)
        yield


def fit(path: Path, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, ["fit", "-r", str(path), "--no-expiry", *arguments])
    assert done.exit_code == code, f"{done.output} {done.exception!r}"
    return done.output


def sweep(*arguments: str | Path) -> str:
    done = CliRunner().invoke(sweep_cli.app, [*map(str, arguments), *QUICK])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return done.stdout


def refused(*arguments: str | Path) -> str:
    done = CliRunner().invoke(sweep_cli.app, [*map(str, arguments), *QUICK])
    assert isinstance(done.exception, GatewayError), f"{done.output} {done.exception!r}"
    return str(done.exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """long.csv, and calibrators fitted on one half of its questions."""
    folder = tmp_path_factory.mktemp("own")
    fit(saved(folder / "long.csv", answers()), *DEALT, "--split", "fit")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    return json.loads(sweep("-r", folder / "long.csv", *DEALT, "--json"))


def test_a_table_alone_gives_a_policy_with_a_verdict_on_held_out_questions(folder: Path, found: Any) -> None:
    jsonschema.validate(found, {"$defs": SCHEMA["$defs"], **SWEEP})
    assert found["chosen"]["tiers"] == ["small", "large"]
    assert found["sells"]
    assert found["verdict"].startswith("use small then large: ")
    assert found["n"]["chosen_on"] + found["n"]["test"] == 800
    assert found["cost_unit"] == "cost"
    told = " ".join(found["notes"])
    assert (
        f"{found['n']['chosen_on']} of the {found['n']['chosen_on']} questions that choose take their p out of" in told
    )
    assert "chains go from cheaper to dearer models: small, large" in told
    page = sweep("-r", folder / "long.csv", *DEALT)
    assert "length is not among them: nothing tells how long answers are" in page
    assert "a threshold on the raw column confidence" in page


def test_the_score_is_that_of_following_the_policy_by_hand(folder: Path, found: Any) -> None:
    """With nothing but the table, the artefacts and NumPy."""
    fitted = held_out.of({name: folder / "calibrators" / f"{name}.json" for name in MODELS})["small"].p
    rows = {(row["question"], row["model"]): row for row in answers() if row["question"] not in fitted}
    calibrator = artifacts.load(folder / "calibrators" / "small.json").calibrator()
    questions = sorted({question for question, _ in rows})
    [threshold] = found["chosen"]["thresholds"]
    right, cost = [], []
    for question in questions:
        small, large = rows[question, "small"], rows[question, "large"]
        stays = calibrator.predict(np.array([[small["confidence"]]]))[0] >= threshold
        right.append(small["correct"] if stays else large["correct"])
        cost.append(small["cost"] + (0 if stays else large["cost"]))
    assert len(questions) == found["n"]["test"]
    assert found["held_out"]["test_accuracy"] == pytest.approx(np.mean(right))
    assert found["held_out"]["test_cost"] == pytest.approx(np.mean(cost))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_wide_and_long_strange_names_and_any_format_come_to_the_same(
    folder: Path, found: Any, tmp_path: Path, suffix: str
) -> None:
    strange = [
        {
            name.replace("correct", "ok").replace("question", "id").replace("cost", "spent per call"): value
            for name, value in row.items()
        }
        for row in widened(answers())
    ]
    path = saved(tmp_path / f"wide.{suffix}", strange)
    named = ("--columns", "correct=ok,question=id,cost=spent per call")
    fit(path, *DEALT, "--split", "fit", *named)
    assert json.loads(sweep("-r", path, *DEALT, *named, "--json")) == found


def test_what_chooses_is_out_of_fold_and_nothing_that_was_fitted_on_tests(folder: Path) -> None:
    made = gathered(folder / "long.csv", folder)
    unseen = held_out.of(made.calibrators)
    table = made.chosen_on.table
    for place, name in enumerate(table.tiers):
        assert table.p[:, place].tolist() == [unseen[name].p[question] for question in table.questions]
    assert not set(made.test.table.questions) & set(unseen["small"].p)
    with pytest.raises(ConfigError, match="of the questions that test"):
        gathered(folder / "long.csv", folder, seed=1)


def gathered(path: Path, folder: Path, seed: int = 0, **wish: Any) -> Material:
    return gather_tables([path], folder / "calibrators", Wish(**wish), None, Own(divide=DEALT[1], seed=seed))


def test_a_question_that_some_model_did_not_answer_is_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    rows = [row for row in answers() if (row["question"], row["model"]) != ("q7", "large")]
    for suffix, written in (("csv", rows), ("parquet", widened(rows))):
        made = gathered(saved(tmp_path / f"some.{suffix}", written), folder)
        assert made.chosen_on.table.n + made.test.table.n == 799
        assert "q7" not in (*made.chosen_on.table.questions, *made.test.table.questions)
        assert any(note.startswith("1 questions of ") for note in made.notes)
    alone = [row for row in rows if (row["model"] == "small") == (int(row["question"][1:]) < 400)]
    with pytest.raises(GatewayError, match="was answered by all of small, large"):
        gathered(saved(tmp_path / "none.csv", alone), folder)


def test_a_question_answered_twice_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    rows = answers()
    path = saved(tmp_path / "twice.csv", [*rows, rows[10]])
    with pytest.raises(GatewayError, match=r"small answers question 'q5' \(split '\w+'\) 2 times"):
        gathered(path, folder)


def test_a_confidence_that_is_not_there_is_accepted_by_no_threshold(folder: Path, tmp_path: Path) -> None:
    rows = answers()
    for row in rows[:200]:
        row["confidence"] = None
    made = gathered(saved(tmp_path / "holes.csv", rows), folder)
    tables_of = {question: one.table for one in parts(made) for question in one.table.questions}
    for i in range(100):
        table = tables_of[f"q{i}"]
        p = table.p[table.questions.index(f"q{i}")]
        fitted_on = f"q{i}" in held_out.of(made.calibrators)["small"].p
        assert fitted_on or np.isnan(p).all()


def parts(made: Material) -> tuple[Crossing, Crossing]:
    return made.chosen_on, made.test


def test_a_model_that_is_always_right_gets_no_calibrator_and_can_only_be_the_last(tmp_path: Path) -> None:
    rows = [row | ({"correct": 1} if row["model"] == "large" else {}) for row in answers()]
    path = saved(tmp_path / "sure.csv", rows)
    assert "large: not fitted: all" in fit(path, *DEALT, "--split", "fit", code=1)
    found = json.loads(sweep("-r", path, *DEALT, "--json"))
    assert any(note.startswith("large has no calibrator") for note in found["notes"])
    assert {tuple(one["tiers"]) for one in found["frontier"]} <= {("small",), ("large",), ("small", "large")}


def test_a_confidence_that_knows_nothing_sells_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "weak.csv", answers(knows=False))
    fit(path, *DEALT, "--split", "fit")
    told = json.loads(sweep("-r", path, *DEALT, "--json"))
    assert not told["sells"]
    assert "no cascade beats large alone" in told["verdict"]


def test_too_few_rows_are_said_in_words(tmp_path: Path) -> None:
    path = saved(tmp_path / "few.csv", answers(60))
    told = fit(path, *DEALT, "--split", "fit", code=1)
    assert "small: not fitted: " in told
    assert "no calibrator of a table in" in refused("-r", path, *DEALT)


# What it costs


def without(name: str, rows: Rows, **more: Any) -> Rows:
    return [{key: value for key, value in row.items() if key != name} | more for row in rows]


def test_costs_come_from_a_column_tokens_a_price_per_answer_or_are_asked_for(folder: Path, tmp_path: Path) -> None:
    rows = without("cost", answers())
    path = saved(tmp_path / "bare.csv", rows)
    with pytest.raises(ConfigError, match=r"add a column cost .* usd_per_answer of each model"):
        gathered(path, folder)
    counted = [row | {"prompt_tokens": 50, "completion_tokens": 10 * place} for place, row in enumerate(rows)]
    tokens = saved(tmp_path / "tokens.csv", counted)
    made = gathered(tokens, folder)
    assert (made.test.table.cost_unit, made.test.table.cost.min() >= 50) == ("tokens", True)
    assert {"length", "raw"} <= made.test.table.scores.keys()
    prices = tmp_path / "prices.yaml"
    prices.write_text("tiers: {small: {usd_per_answer: 0.25}, large: {usd_per_mtok_in: 1.0e+6, usd_per_mtok_out: 0}}")
    told = json.loads(
        sweep("-r", tokens, "--calibrators", folder / "calibrators", *DEALT, "--prices", prices, "--json")
    )
    assert [one["cost"] for one in told["against"]] == [0.25, 50.0]
    paid = saved(tmp_path / "usd.csv", without("cost", rows, usd=0.5))
    assert gathered(paid, folder).test.table.cost_unit == "usd"
    with pytest.raises(ConfigError, match=r"needs the seconds of every answer; .* lack that"):
        gathered(paid, folder, cost="seconds")
    with pytest.raises(ConfigError, match="'cost' is the column cost of a table of your own"):
        gathered(paid, folder, cost="cost")
    with pytest.raises(BadRecords, match=r"row 1: usd is '-0\.5'; what an answer took is a number >= 0"):
        gathered(saved(tmp_path / "less.csv", without("cost", rows, usd=-0.5)), folder)


def test_what_an_answer_took_is_no_feature_unless_it_is_named(tmp_path: Path) -> None:
    rows = answers(5)
    path = saved(tmp_path / "a.csv", [row | {"completion_tokens": 3, "answer": "18"} for row in rows])
    assert tables.from_user(path)["small"].names == ("confidence",)
    assert tables.from_user(path, ["completion_tokens"])["small"].names == ("completion_tokens",)


def test_results_are_broken_down_by_columns_of_the_users_own(folder: Path, tmp_path: Path) -> None:
    topic = {f"q{i}": ("algebra", "geometry")[i % 2] for i in range(800)}
    for suffix, rows in (("csv", answers()), ("jsonl", widened(answers()))):
        path = saved(tmp_path / f"a.{suffix}", [row | {"topic": topic[row["question"]]} for row in rows])
        how = Own(divide=DEALT[1], slices=("topic",))
        made = gather_tables([path], folder / "calibrators", Wish(), None, how)
        assert made.test.slices == {"topic": tuple(topic[question] for question in made.test.table.questions)}
    told = report.slices(decide(made, Wish(levels=2, steps=8)), made.test, np.random.default_rng(0))
    assert [one["slice"] for one in told] == ["algebra", "geometry"]
    assert sum(one["n"] for one in told) == made.test.table.n


def test_an_empty_family_or_split_is_none_of_its_own_in_any_format(tmp_path: Path) -> None:
    rows = [row | {"family": None, "split": ""} for row in answers(3)]
    for suffix in ("csv", "jsonl", "parquet"):
        found = tables.from_user(saved(tmp_path / f"a.{suffix}", rows))["small"]
        assert found.family.tolist() == found.question.tolist() == ["q0", "q1", "q2"]
        assert set(found.split) == {"all"}
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]} | {"family": [np.nan] * 6}),
                   tmp_path / "nan.parquet")  # fmt: skip
    assert tables.from_user(tmp_path / "nan.parquet")["large"].family.tolist() == ["q0", "q1", "q2"]


# What cannot be


def test_a_policy_of_a_table_is_not_written_for_the_gateway(folder: Path, tmp_path: Path) -> None:
    told = refused("-r", folder / "long.csv", *DEALT, "--write", tmp_path / "cascade.yaml")
    assert "nothing was written" in told
    assert "the gateway measures its own" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--columns", "correct"), "--columns is written like question=id"),
        (("--columns", "wrong=x"), "no 'wrong'; have model, question, correct"),
        (("--columns", "correct=x"), "no column x; have model, question"),
        (("--columns", "correct=cost"), "column correct would be there twice"),
        (("--divide", "all:fit=0.7,test=0.7"), "must be positive and sum to 1"),
        (("--divide", "some:fit=0.5,test=0.5"), "no questions of 'some' are asked; have all"),
        (("--tiers", "huge"), "no answers of 'huge' in these records; have small, large"),
        (("--calibrators", "/nowhere"), "no calibrator of a table in /nowhere"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused("-r", folder / "long.csv", *DEALT, *arguments)


def test_without_a_test_of_its_own_nothing_is_scored(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.csv", answers(300))
    fit(path)
    assert "deal a table of your own out with --divide" in refused("-r", path)


def test_a_table_without_what_the_calibrator_looks_at_is_refused(folder: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "other.csv", without("confidence", answers(), certainty=0.5))
    assert "was fitted on the column confidence, which small does not have" in refused(
        "-r", path, *DEALT, "--calibrators", folder / "calibrators"
    )


# Later models, other tools, reports


def test_a_later_model_may_look_at_an_earlier_ones_confidence(tmp_path: Path) -> None:
    path = saved(tmp_path / "back.csv", answers())
    fit(path, *DEALT, "--split", "fit", "--tiers", "small,large", "--upstream", "on")
    made = gathered(path, tmp_path, tiers=("small", "large"))
    sealed = artifacts.load(tmp_path / "calibrators" / "large.json")
    assert sealed.features[0] == "confidence"
    assert sealed.features[1].startswith("upstream_logit")
    table = made.test.table
    rows = {(row["question"], row["model"]): row["confidence"] for row in answers()}
    small = table.p_of((0,))
    for i, question in enumerate(table.questions[:50]):
        look = np.full(len(sealed.features), np.nan)
        look[:2] = rows[question, "large"], np.log(small[i] / (1 - small[i]))
        assert table.p_of((0, 1))[i] == pytest.approx(sealed.calibrator().predict(look[np.newaxis])[0])
        look[1] = np.nan
        assert table.p_of((1,))[i] == pytest.approx(sealed.calibrator().predict(look[np.newaxis])[0])


def test_samples_of_lm_eval_go_the_same_way_with_a_price_per_answer(tmp_path: Path) -> None:
    name = "samples_arc_2026-01-01T00-00-00.0.jsonl"
    paths = []
    for model in MODELS:
        folder = tmp_path / f"acme__{model}"
        folder.mkdir()
        rng = np.random.default_rng(3)
        lines = []
        for row in (row for row in answers(600) if row["model"] == model):
            nats = np.log(np.array([row["confidence"], 1 - row["confidence"]])) + rng.normal()
            lines.append({"doc_id": int(row["question"][1:]), "resps": [], "acc": row["correct"], "filter": "none",
                          "filtered_resps": [[str(one), "False"] for one in nats]})  # fmt: skip
        paths += ["-r", str(saved(folder / name, lines))]
    (tmp_path / "prices.yaml").write_text("tiers: {acme/small: {usd_per_answer: 1}, acme/large: {usd_per_answer: 9}}")
    out = ("--out", str(tmp_path / "calibrators"))
    fit(Path(paths[1]), *paths[2:], *DEALT, "--split", "fit", "--features", "choice_margin,choice_p", *out)
    told = json.loads(sweep(*paths, *DEALT, "--calibrators", tmp_path / "calibrators", "--prices",
                            tmp_path / "prices.yaml", "--json"))  # fmt: skip
    assert told["chosen"]["tiers"] == ["acme/small", "acme/large"]
    assert told["sells"]


def reported(*arguments: str | Path) -> str:
    done = CliRunner().invoke(report_cli.app, [*map(str, arguments), *QUICK])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return done.stdout


def test_a_report_says_what_a_table_does_not_tell(folder: Path, found: Any, tmp_path: Path) -> None:
    out = tmp_path / "report"
    reported("-r", folder / "long.csv", *DEALT, "--out", out)
    twin = json.loads((out / "report.json").read_text())
    jsonschema.validate(twin, SCHEMA)
    assert twin["sweep"] == found
    assert twin["provenance"]["config"] is None
    assert [one["tier"] for one in twin["provenance"]["calibrators"]] == ["small", "large"]
    [model, _] = twin["models"]
    assert (model["seconds"], model["cut"], model["unreadable"], model["silent"]) == (None,) * 4
    text = (out / "report.md").read_text()
    assert text.startswith("# Use small then large")
    assert "Not drawn: answer length only (nothing tells how long answers are" in text
    assert "how long they took is not known" in text


def test_two_tables_are_compared_question_by_question(folder: Path, tmp_path: Path) -> None:
    dearer = saved(tmp_path / "dear.csv", [row | {"cost": 2 * row["cost"]} for row in answers()])
    shutil.copytree(folder / "calibrators", tmp_path / "calibrators")
    told = reported("--compare", folder / "long.csv", dearer, *DEALT, "--calibrators", folder / "calibrators")
    assert "the second is dearer, which is more than noise" in told
    assert "share of cost saved" in told
