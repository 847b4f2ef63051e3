"""The report: its numbers are the sweep's, its page needs nobody else, and two of them can be held together."""

import datetime as dt
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from calibrators import artifact, platt
from calibrators.artifact import Artifact
from calibrators.base import FitData
from eval import (
    recommend,
    records,
    report,
    report_blocks,
    report_cli,
    report_compare,
    report_curve,
    report_files,
    sanity,
)
from eval.baselines import LENGTH, RAW
from eval.costs import Usage
from eval.crossed import Crossed
from eval.crossing import Crossing
from eval.grade import Grade
from eval.material import Material, Wish, gather
from eval.records import Collected, Manifest, Record
from eval.report_files import BadReport, checked
from eval.report_schema import SCHEMA
from eval.stats import DEFINITIONS
from gateway import config as configs
from gateway.answers import Rule
from gateway.errors import ConfigError, GatewayError
from gateway.nouns import Finish, Source, TokenTrace

TIERS, PRICES = ("small", "middle", "large"), (1.0, 4.0, 16.0)
SIZES = {"calibration": 500, "validation": 400, "test": 400}
SPLITS = ("--choose-on", "validation", "--test-on", "test")


def written(split: str, seed: int, *, knows: bool, traces: bool = True) -> Iterator[Record]:
    """Three models' answers. knows: whether their log-probs say how hard a question was. Every fortieth is cut."""
    rng = np.random.default_rng(seed)
    for i in range(SIZES[split]):
        hard = rng.normal()
        for tier, skill in zip(TIERS, (0.3, 3.0, 4.0), strict=True):
            margin = skill - 3.0 * hard + 0.4 * rng.normal()
            cut = rng.random() < 1 / 40
            right = not cut and rng.random() < 1 / (1 + np.exp(-margin))
            seen = margin if knows else rng.normal()
            nats = -np.log1p(np.exp(-seen + rng.normal(0, 0.2, 6)))
            answer = str(i) if right else str(rng.integers(10_000, 10_003))
            yield Record(
                question=f"{split}-{i}",
                dataset="made up",
                split=split,
                family=f"{split}-{i}",
                tier=tier,
                engine="e",
                prompt="p",
                text=f"so\n#### {answer}",
                answer=answer,
                rule=Rule.HASHES,
                grade=Grade.RIGHT if right else Grade.WRONG,
                finish=Finish.LENGTH if cut else Finish.STOP,
                prompt_tokens=20,
                completion_tokens=6,
                seconds=0.06,
                trace=TokenTrace(Source.CHOSEN, nats.astype("f4").astype(float)) if traces else None,
                no_trace="" if traces else "none sent",
                slices={"steps": 2 + i % 3, "kind": "only one"},
            )


def collect(folder: Path, *, knows: bool = True, traces: bool = True, fitted: bool = True) -> Path:
    """A folder with records, calibrators fitted on the first split, and a cascade file."""
    folder.mkdir()
    rows = [row for seed, split in enumerate(SIZES) for row in written(split, seed, knows=knows, traces=traces)]
    records.write(folder / records.RECORDS, map(records.flatten, rows))
    tiers = tuple(Collected(name=name, fingerprint={"model": name}) for name in TIERS)
    manifest = Manifest(dataset="made up", splits=SIZES, data_sha256="0" * 64, template="{question}", max_tokens=None,
                        top_k=0, seed=0, tiers=tiers)  # fmt: skip
    records.write_manifest(folder / records.MANIFEST, manifest)
    if fitted:
        for name in TIERS:
            fit([row for row in rows if (row.tier, row.split) == (name, "calibration")], folder / f"{name}.json")
    named = "calibrator: {name}.json, " if fitted else ""
    entries = "\n".join(
        f"  - {{name: {name}, engine: {{kind: openai_http, url: 'http://h/v1', model: {name}}}, "
        f"{named.format(name=name)}prices: {{usd_per_mtok_in: {usd}, usd_per_mtok_out: {usd}}}}}"
        for name, usd in zip(TIERS, PRICES, strict=True)
    )
    steps = "[{tier: small, accept_at: 0.9}, {tier: large}]" if fitted else "[{tier: small}]"
    text = f"keys: {{allow_anonymous: true}}\ntiers:\n{entries}\npolicies: {{default: {{steps: {steps}}}}}\n"
    (folder / "cascade.yaml").write_text(text)
    return folder


def fit(rows: list[Record], path: Path) -> None:
    """Platt on the mean log-prob, sealed for the gateway."""
    known = [row for row in rows if row.trace is not None]
    X = np.array([[row.trace.chosen.mean()] for row in known if row.trace is not None])
    data = FitData(X, np.array([float(row.grade is Grade.RIGHT) for row in known]), ("lp_mean",))
    facts = {"data_sha256": "0" * 64, "n": data.n, "n_rare": data.n_rare, "objective": "erm", "eta": 0.0, "seed": 0,
             "split": "calibration", "slices": {}}  # fmt: skip
    sealed = Artifact.seal(
        id=rows[0].tier, kind="platt", features=("lp_mean",), params=platt.fit(data).to_params(),
        fingerprint={"model": rows[0].tier, "source": "chosen"}, fit=facts, metrics={},
        validity={"conditions": [], "checks": {}}, created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )  # fmt: skip
    artifact.dump(sealed, path)


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Iterator[None]:
    """What is drawn matters here, not how often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "RESAMPLES", 500)
        patch.setattr(report_compare, "RESAMPLES", 500)
        patch.setattr(report_compare, "RESAMPLES_BRIER", 50)
        yield


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(tmp_path_factory.mktemp("strong") / "records")


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(tmp_path_factory.mktemp("weak") / "records", knows=False)


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(report_cli.app, list(map(str, arguments)))


def made(folder: Path, out: Path, *arguments: str) -> str:
    done = invoke("-r", folder, "-c", folder / "cascade.yaml", *SPLITS, "--out", out, *arguments)
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def out(strong: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "report"
    made(strong, out, "--created", "2026-05-01")
    return out


@pytest.fixture(scope="module")
def twin(out: Path) -> Any:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def drawn(twin: Any) -> report_curve.Pictures:
    return report_curve.draw(twin)


# Numbers


def test_the_numbers_are_those_of_the_sweep(strong: Path, twin: Any) -> None:
    wish = Wish(choose_on="validation", test_on="test")
    found = recommend.decide(gather([strong], configs.read(strong / "cascade.yaml"), wish), wish)
    assert twin["sweep"] == json.loads(json.dumps(recommend.as_json(found)))
    assert twin["verdict"] == found.verdict.sentence
    assert [one["accuracy"] and one["accuracy"]["value"] for one in twin["budgets"]] == pytest.approx(
        [one.accuracy for one in found.budgets]
    )
    parity = twin["parity"][0]
    assert parity["cost_share"]["value"] == pytest.approx(found.verdict.cost_share.value)
    assert parity["cost_share"]["low"] == pytest.approx(found.verdict.cost_share.low, abs=0.02)


def test_the_twin_is_what_its_schema_says(twin: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(twin, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(twin | {"verdict": None}, SCHEMA)


def test_every_question_is_counted_where_it_was_answered(twin: Any) -> None:
    n = SIZES["test"]
    assert sum(step["answered"] for step in twin["steps"]) == n
    assert twin["steps"][0]["reached"] == n
    for before, after in zip(twin["steps"][:-1], twin["steps"][1:], strict=True):
        assert after["reached"] == before["reached"] - before["answered"]
    assert sum(step["cost"] for step in twin["steps"]) == pytest.approx(twin["sweep"]["held_out"]["test_cost"])
    assert [one["slice"] for one in twin["slices"]] == ["2", "3", "4"]
    assert sum(one["n"] for one in twin["slices"]) == n
    for model in twin["models"]:
        told = model["confidence"]
        assert sum(told["histogram"]["right"]) + sum(told["histogram"]["wrong"]) == told["n"] == n - model["without_p"]
        assert model["cut"] == model["without_p"] > 0
    assert len(twin["questions"]["id"]) == n
    assert twin["sweep"]["served"] == twin["sweep"]["chosen"]
    assert np.mean(twin["questions"]["right"]) == twin["sweep"]["numbers"]["accuracy"]["value"]


def test_the_band_is_around_the_line_through_the_policies(twin: Any) -> None:
    band = {point["cost"]: point for point in twin["curve"]["band"]}
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in band.values())
    for policy in twin["curve"]["policies"]:
        assert band[policy["cost"]["value"]]["accuracy"] == pytest.approx(policy["accuracy"]["value"])
        assert policy["accuracy"]["low"] <= policy["accuracy"]["value"] <= policy["accuracy"]["high"]
        assert policy["optimism"] == pytest.approx(policy["chosen_accuracy"] - policy["accuracy"]["value"])


def test_a_promise_carries_its_n_its_level_and_what_it_assumes(twin: Any) -> None:
    promised = twin["guarantees"]
    assert len(promised["thresholds"]) == len(TIERS) * len(report.RISKS)
    assert all(row["n"] == SIZES["test"] and row["confidence"] == 0.95 for row in promised["thresholds"])
    trusted = [row for row in promised["thresholds"] if "threshold" in row["trusted"]]
    assert trusted
    for row in trusted:
        assert row["trusted"]["wrong"] / row["trusted"]["accepted"] < row["risk"]
    assert any("certificate" in row for row in promised["proven"])
    assert len(promised["assumptions"]) == 3


def test_where_it_comes_from_is_written_down(strong: Path, twin: Any) -> None:
    told = twin["provenance"]
    assert told["records"][0]["sha256"] == report.sha256(strong / records.RECORDS)
    assert told["config"]["sha256"] == report.sha256(strong / "cascade.yaml")
    assert [one["tier"] for one in told["calibrators"]] == list(TIERS)
    assert told["command"].startswith("confgate")
    assert told["wish"]["seed"] == 0
    assert {"python", "numpy", "matplotlib"} <= told["versions"].keys()


# Words and pictures


def test_the_first_line_is_the_verdict(strong: Path, weak: Path, out: Path, twin: Any, tmp_path: Path) -> None:
    first = (out / "report.md").read_text().splitlines()[0]
    assert first.lower().startswith("# use middle then large: ")
    assert first.replace("\\", "").removeprefix("# U").removesuffix(".") == twin["verdict"].removeprefix("u")
    said = made(weak, tmp_path / "weak")
    assert said.startswith("no cascade ")
    assert "AUROC" in said.splitlines()[0]
    page = (tmp_path / "weak/report.html").read_text()
    assert page[page.index("<h1>") :].startswith("<h1>No cascade ")


def test_the_page_refers_to_nothing_outside_itself(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)\s*=\s*"(?!#)', page)
    assert not re.findall(r"url\((?!#)", page)
    assert not re.findall(r"@import|<link|<iframe|<object", page)
    assert set(re.findall(r"https?://[^/\"<]+", page)) <= {"http://www.w3.org"}  # names of XML, not addresses
    assert "default-src 'none'" in page


def test_the_page_serves_light_dark_paper_and_those_who_cannot_see(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert '<html lang="en">' in page
    pictures = re.findall(r"<svg[^>]*>", page)
    assert len(pictures) >= 7
    assert all('role="img"' in one and "aria-label=" in one for one in pictures)
    assert page.count("<th scope=") == page.count("<th") - page.count("<thead")
    for light in report_curve.LIGHT.values():
        assert (
            light not in page.split("</style>")[2]
        )  # every colour of the curve is one that the reader's setting fills


def test_all_baselines_metrics_and_definitions_are_told(out: Path) -> None:
    told = (out / "report.md").read_text().replace("\\", "")
    for word in (*TIERS, *(style.label for style in report_curve.STYLES.values()), *DEFINITIONS.values()):
        assert word in told
    for metric in ("AUDC", "APGR", "CPT(80%)", "AIQ", "Cost at parity", "Accuracy at budgets", "steps 2"):
        assert metric in told
    assert "![" in told
    assert "](curve.svg)" in told
    picture = (out / "curve.svg").read_text()
    for word in ("US dollars per 1,000 questions", "% of the cost of large alone", "95 % interval", "small", "if p ≥"):
        assert word in picture
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_twin_is_drawn_in_the_same_bytes(out: Path, drawn: report_curve.Pictures) -> None:
    assert drawn.svg.encode() == (out / "curve.svg").read_bytes()
    assert drawn.png == (out / "curve.png").read_bytes()
    assert drawn.inline in (out / "report.html").read_text()


def test_words_from_outside_stay_words(twin: Any) -> None:
    evil = json.loads(json.dumps(twin).replace("middle", "<b>$m_x$&"))
    drawn = report_curve.draw(evil)
    page = report_files._page.write(report_blocks.title(evil), report_blocks.blocks(evil, drawn.inline))
    assert "<b>" not in page
    assert "$m_x$" in drawn.svg


# Odd worlds


def crossing(table: Crossed, **slices: tuple[Any, ...]) -> Crossing:
    never = np.zeros(table.p.shape, dtype=bool)
    tokens = np.ones(table.p.shape)
    return Crossing(table, Usage(table.tiers, tokens, tokens, tokens), 0, never, never, never, slices)


@pytest.mark.parametrize(
    ("n", "planted"),
    [
        (200, {"skills": (1.0,), "costs": (1.0,)}),
        (200, {"skills": (0.0, 2.0), "costs": (4.0, 4.0)}),
        (300, {"skills": (1.0, 3.5, 1.2), "costs": (1.0, 6.0, 16.0)}),
        (12, {}),
        (250, {"skills": (0.0, 0.5, 1.0, 2.0, 2.5, 3.0), "costs": (1.0, 2.0, 4.0, 8.0, 30.0, 64.0)}),
        (200, {"constant": 0.5}),
        (200, {"free": True}),
    ],
    ids=["one model", "equal costs", "worse last", "a dozen questions", "six models", "constant p", "a free model"],
)
def test_odd_worlds_have_a_report_too(world: Callable[..., Crossed], n: int, planted: dict[str, Any]) -> None:
    constant, free = planted.pop("constant", None), planted.pop("free", False)
    tables = [world(n, seed, **planted) for seed in (1, 2)]
    if constant is not None:
        tables = [replace(table, p=np.full(table.p.shape, constant)) for table in tables]
    if free:
        tables = [replace(table, cost=table.cost * (np.arange(3) > 0)) for table in tables]
    scored = [replace(t, scores={RAW: t.p, LENGTH: 1 / (1 + t.seconds)}) for t in tables]
    material = Material(crossing(scored[0]), crossing(scored[1]), (), ("validation", "test"))
    found = report.findings(material, Wish(levels=3, steps=6))
    whole = {
        "schema": report.SCHEMA_NAME,
        "schema_version": 1,
        "created": "now",
        **json.loads(json.dumps(found)),
        "provenance": {
            "command": "confgate",
            "config": {"path": "c", "sha256": "0" * 64},
            "prices": None,
            "wish": {"seed": 0},
            "versions": {},
            "machine": "m",
            "records": [],
            "calibrators": [],
        },
    }
    jsonschema.validate(whole, SCHEMA)
    drawn = report_curve.draw(whole)
    told = report_files._page.write(report_blocks.title(whole), report_blocks.blocks(whole, drawn.inline))
    assert "nan" not in re.sub(r"<[^>]+>", " ", told).lower().split()


# Comparing


def test_a_run_against_itself_is_no_difference(out: Path) -> None:
    done = invoke("--compare", out, out)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"no difference: both runs do the same with all {SIZES['test']} questions")
    assert "what differs between the runs\nnothing" in done.stdout


def test_another_policy_is_told_apart_question_by_question(strong: Path, out: Path, tmp_path: Path) -> None:
    made(strong, tmp_path / "cheap", "--budget", "20%")
    done = invoke("--compare", out, tmp_path / "cheap", "--json")
    told = json.loads(done.stdout)
    assert "the second is right less often and is cheaper, which is more than noise" in told["verdict"]
    assert told["questions"]["shared"] == SIZES["test"]
    assert told["accuracy"]["high"] < 0 < told["saving"]["low"]
    assert told["p_value"] < 0.05
    assert {"policy", "wish budget"} <= {row["what"] for row in told["differs"]}
    back = json.loads(invoke("--compare", tmp_path / "cheap", out, "--json").stdout)
    assert back["accuracy"]["value"] == pytest.approx(-told["accuracy"]["value"])


def test_chance_alone_is_called_noise(twin: Any) -> None:
    """The same policy with ten answers of 400 flipped at random, to and fro."""
    first = checked(Path("a"), json.dumps(twin).encode())
    other = json.loads(json.dumps(twin))
    right = np.array(other["questions"]["right"])
    flipped = np.concatenate([np.flatnonzero(right == 1)[:5], np.flatnonzero(right == 0)[:5]])
    right[flipped] = 1 - right[flipped]
    other["questions"]["right"] = right.tolist()
    told = report_compare.compare(first, checked(Path("b"), json.dumps(other).encode()), np.random.default_rng(0))
    assert told.verdict.startswith("no difference that is more than noise")
    assert told.changed == 10
    assert told.p_value == 1.0


def test_runs_on_other_questions_are_compared_as_two_samples(twin: Any) -> None:
    first = checked(Path("a"), json.dumps(twin).encode())
    other = json.loads(json.dumps(twin))
    other["questions"]["id"] = [f"other {name}" for name in other["questions"]["id"]]
    other["sweep"]["cost_unit"] = "tokens"
    told = report_compare.compare(first, checked(Path("b"), json.dumps(other).encode()), np.random.default_rng(0))
    assert told.shared == 0
    assert "share no questions" in told.verdict
    assert "no difference that is more than noise" in told.verdict
    assert "costs are usd in the one and tokens in the other" in told.verdict
    assert told.accuracy.low is not None
    assert told.accuracy.low < 0 < told.accuracy.high
    assert "unpaired" in told.accuracy.how


def test_folders_of_records_are_compared_by_the_reports_they_would_make(strong: Path, out: Path) -> None:
    done = invoke("--compare", out, strong, "-c", strong / "cascade.yaml", *SPLITS)
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    assert done.stdout.startswith("no difference: both runs do the same")


# What goes wrong


def refused(*arguments: str | Path) -> str:
    done = invoke(*arguments)
    assert isinstance(done.exception, GatewayError), f"{done.output} {done.exception!r}"
    return str(done.exception)


def test_what_is_missing_is_said_with_what_to_do(strong: Path, out: Path, tmp_path: Path) -> None:
    config = ("-c", strong / "cascade.yaml", "--out", tmp_path / "new")
    assert "name the recorded answers with --records" in refused(*config)
    assert "there is no such file; collect answers with" in refused("-r", tmp_path, *config)
    assert "cannot read" in refused("-r", strong, "-c", tmp_path / "none.yaml", "--out", tmp_path / "new")
    assert "not both" in refused("-r", strong, "--compare", out, out)
    assert "there is no such report" in refused("--compare", out, tmp_path)
    assert "no cost model 'gold'" in refused("-r", strong, *config, "--cost", "gold")
    assert not (tmp_path / "new").exists()


def test_answers_that_no_sound_prompt_gives_are_stopped_as_in_the_sweep(
    strong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_sources: object) -> list[str]:
        raise sanity.Implausible(["almost nothing is right"])

    monkeypatch.setattr(sanity, "check", broken)
    config = ("-r", strong, "-c", strong / "cascade.yaml", *SPLITS, "--out", tmp_path / "new")
    assert "almost nothing is right" in refused(*config)
    assert not (tmp_path / "new").exists()


def test_answers_without_any_confidence_make_no_report(tmp_path: Path) -> None:
    bare = collect(tmp_path / "bare", fitted=False)
    told = refused("-r", bare, "-c", bare / "cascade.yaml", *SPLITS, "--out", tmp_path / "new")
    assert "none of small, middle, large has a calibrator" in told
    assert "confgate fit" in told


def test_answers_without_log_probs_make_no_report(strong: Path, tmp_path: Path) -> None:
    silent = collect(tmp_path / "silent", traces=False, fitted=False)
    text = (strong / "cascade.yaml").read_text().replace("calibrator: ", f"calibrator: {strong}/")
    (silent / "cascade.yaml").write_text(text)
    told = refused("-r", silent, "-c", silent / "cascade.yaml", *SPLITS, "--out", tmp_path / "new")
    assert "no recorded answer has a confidence (1,200 of 1,200 answers came without log-probs)" in told


def test_a_calibrator_that_is_not_there_is_named(strong: Path, tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text((strong / "cascade.yaml").read_text().replace("calibrator: ", f"calibrator: {tmp_path}/"))
    assert "small.json" in refused("-r", strong, "-c", path, *SPLITS, "--out", tmp_path / "new")


def test_a_folder_with_other_things_in_it_is_left_alone(strong: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    config = ("-r", strong, "-c", strong / "cascade.yaml", *SPLITS)
    assert "holds thesis.tex, no part of a report" in refused(*config, "--out", tmp_path)
    assert "is a file" in refused(*config, "--out", tmp_path / "thesis.tex")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no whole report"),
        ('{"schema": "confidence-gateway/report", "schema_ver', "no whole report"),
        ("[1]", "no report of ours"),
        ('{"schema": "confidence-gateway/calibration-card"}', "no report of ours"),
        ('{"schema": "confidence-gateway/report", "schema_version": 9}', "schema version 9"),
        ('{"schema": "confidence-gateway/report", "schema_version": 1}', "no whole report"),
    ],
)
def test_half_a_report_or_another_file_is_refused_in_words(out: Path, tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "report.json").write_text(text)
    assert match in refused("--compare", out, tmp_path)


def test_a_report_whose_questions_do_not_fit_together_is_refused(twin: Any) -> None:
    for name, value in (("right", [1]), ("served", [9] * SIZES["test"]), ("id", ["one"] * SIZES["test"])):
        broken = twin | {"questions": twin["questions"] | {name: value}}
        with pytest.raises(BadReport, match="make the report anew"):
            checked(Path("x"), json.dumps(broken).encode())


def test_an_old_report_stands_until_the_new_one_is_whole(
    out: Path, twin: Any, drawn: report_curve.Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "report"
    report_files.save(place, twin, drawn)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    renamed = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if Path(target) == place and "old" not in self.suffix:
            raise OSError("the disk is gone")
        return renamed(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        report_files.save(place, twin | {"created": "later"}, drawn)
    assert before == {path.name: path.read_bytes() for path in place.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    monkeypatch.undo()
    report_files.save(place, twin | {"created": "later"}, drawn)
    assert json.loads((place / "report.json").read_text())["created"] == "later"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_without_matplotlib_the_extra_is_named_before_any_work(
    strong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    told = refused("-r", strong, "-c", strong / "cascade.yaml", *SPLITS, "--out", tmp_path / "new")
    assert "pip install 'confidence-gateway[report]'" in told


def test_a_wish_that_cannot_be_met_is_an_error_in_words(strong: Path, tmp_path: Path) -> None:
    config = ("-r", strong, "-c", strong / "cascade.yaml", "--out", tmp_path / "new")
    assert "no policy is right 99.9% of the time" in refused(*config, *SPLITS, "--target", "0.999")
    assert "no split 'tset'" in refused(*config, "--test-on", "tset")


def test_without_any_calibrator_there_is_nothing_to_report_on(world: Callable[..., Crossed]) -> None:
    material = Material(crossing(world(20, 1)), crossing(world(20, 2)), (), ("validation", "test"))
    with pytest.raises(ConfigError, match="none of a, b, c has a calibrator"):
        report.check_calibrators(material)
