"""The planner: dimensions, bytes, placement, refusals. What vLLM logs for the same models is what must come out."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import checking, launching
from gateway import config as configs
from gateway.errors import ConfigError
from gateway.fleet import command, gpus, memory, shapes
from gateway.fleet.memory import GIB
from gateway.fleet.plan import Device, Plan, Unfit, Wish, assign, half_context, plan
from gateway.fleet.settings import Fleet, Serve
from tests.faults.gateway import ROOT, confgate_ends
from tests.gpu.fleet_plan import TIERS

QWEN = ROOT / "deploy" / "qwen2.5"
SIZES = ("0.5B", "1.5B", "3B", "7B", "14B", "32B")
POCKET = ROOT / "deploy" / "pocket" / "models"


def of(size: str) -> shapes.Shape:
    name = f"Qwen2.5-{size}-Instruct"
    return shapes.read(f"Qwen/{name}", revision=None, config=QWEN / "models" / name / "config.json")


def serve(**changes: Any) -> Serve:
    return Serve.model_validate({"model": "Qwen/Qwen2.5-7B-Instruct", "context": 4096, "concurrency": 16} | changes)


def wish(size: str, **changes: Any) -> Wish:
    return Wish(size, serve(**changes), of(size))


def cards(*gib: float) -> list[Device]:
    return [Device(n, int(size * GIB), int(size * GIB)) for n, size in enumerate(gib)]


@pytest.mark.parametrize(
    ("size", "billions", "without_embedding"),
    # the model cards at huggingface.co/Qwen, "Number of Parameters" and "(Non-Embedding)"
    [("0.5B", 0.49, 0.36), ("1.5B", 1.54, 1.31), ("3B", 3.09, 2.77), ("7B", 7.61, 6.53), ("14B", 14.7, 13.1),
     ("32B", 32.5, 31.0)],
)  # fmt: skip
def test_parameters_are_those_that_qwen_publishes(size: str, billions: float, without_embedding: float) -> None:
    shape = of(size)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    embedding = shape.vocabulary_on(1, padded=False)
    assert (shape.parameters - embedding) / 1e9 == pytest.approx(without_embedding, rel=0.012)


@pytest.mark.parametrize("folder", sorted(POCKET.iterdir()), ids=lambda folder: folder.name)
def test_parameters_of_the_pocket_models_are_those_in_their_weights(folder: Path) -> None:
    shape = shapes.read(str(folder), revision=None, config=None)
    assert shapes.stored_parameters(folder) == shape.parameters


def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path: Path) -> None:
    source = POCKET / "pocket-nano"
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] + 8}))
    with pytest.raises(ConfigError, match=r"its safetensors hold [\d,]+ parameters, its config.json says [\d,]+"):
        shapes.read(str(tmp_path), revision=None, config=None)


def test_a_torn_safetensors_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((POCKET / "pocket-nano" / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{")
    with pytest.raises(ConfigError, match="is no safetensors file: the header is longer than the file"):
        shapes.read(str(tmp_path), revision=None, config=None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "cannot plan for the architecture MambaForCausalLM; can for Qwen2"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised already"),
        ({"hidden_size": "wide"}, "not the config.json of a model"),
        ({"num_key_value_heads": 3}, "14 heads cannot share 3 key-value heads"),
        ({"vocab_size": 0}, "a dimension below 1"),
    ],
)
def test_a_model_that_cannot_be_planned_for_is_refused(change: dict[str, Any], told: str) -> None:
    raw = json.loads((QWEN / "models" / "Qwen2.5-0.5B-Instruct" / "config.json").read_text())
    with pytest.raises(ConfigError, match=told):
        shapes.shape(raw | change, "config.json")


def test_a_hub_name_is_found_in_the_hubs_cache_or_asked_for(tmp_path: Path) -> None:
    name = "Qwen/Qwen2.5-3B-Instruct"
    environ = {"HF_HOME": str(tmp_path)}
    with pytest.raises(ConfigError, match=f"hf download {name} config.json"):
        shapes.read(name, revision=None, config=None, environ=environ)
    hub = tmp_path / "hub" / "models--Qwen--Qwen2.5-3B-Instruct"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("abc123\n")
    (hub / "snapshots" / "abc123").mkdir(parents=True)
    text = (QWEN / "models" / "Qwen2.5-3B-Instruct" / "config.json").read_text()
    (hub / "snapshots" / "abc123" / "config.json").write_text(text)
    for revision in (None, "abc123"):
        assert shapes.read(name, revision=revision, config=None, environ=environ) == of("3B")


def test_kv_cache_bytes_per_token_by_hand() -> None:
    assert memory.kv_bytes_per_token(serve(), of("7B")) == 2 * 28 * 4 * 128 * 2
    assert memory.kv_bytes_per_token(serve(kv_cache_dtype="fp8"), of("7B")) == 2 * 28 * 4 * 128
    assert memory.kv_bytes_per_token(serve(tensor_parallel=4), of("7B")) == 2 * 28 * 1 * 128 * 2
    assert memory.kv_bytes_per_token(serve(tensor_parallel=2), of("0.5B")) == 2 * 24 * 1 * 64 * 2
    few = replace(of("7B"), kv_heads=2)
    assert memory.kv_bytes_per_token(serve(tensor_parallel=4), few) == 2 * 28 * 1 * 128 * 2, "fewer heads than GPUs"


def test_kv_cache_is_whole_blocks_and_never_less_than_one_context() -> None:
    assert memory.kv_tokens(serve(concurrency=10, tokens_per_request=100)) == 4096 + 16
    assert memory.kv_tokens(serve(concurrency=100, tokens_per_request=100)) == 100 * 112 + 16
    assert memory.kv_tokens(serve(concurrency=3)) == 3 * 4096 + 16


def test_rows_of_the_vocabulary_come_in_multiples_of_64_as_vllm_pads_them() -> None:
    shape = replace(of("0.5B"), vocab=1000, tied=True)
    assert shape.vocabulary_on(1) == 1024 * shape.hidden
    assert shape.vocabulary_on(1, padded=False) == 1000 * shape.hidden
    assert replace(shape, tied=False).vocabulary_on(2) == 2 * 512 * shape.hidden


@pytest.mark.parametrize(
    "row", json.loads((ROOT / "docs/results/fleet-h200.json").read_text())["servers"], ids=lambda row: row["tier"]
)
def test_the_plan_is_what_vllm_reported_on_an_h200(row: dict[str, Any]) -> None:
    """Of the run that is published: weights and KV cache within the 5 % that were promised."""
    size = row["tier"].removeprefix("qwen2.5-")
    planned, reported = wish(size, tokens_per_request=1024, **TIERS[size]).need, row["reported"]
    assert planned.weights / GIB == pytest.approx(reported["weights_gib"], rel=0.05)
    assert planned.kv_cache / GIB == pytest.approx(reported["kv_gib"], rel=0.05)
    assert planned.total / GIB == pytest.approx(row["planned"]["total_gib"], rel=0.05)


def test_gpus_that_share_a_server_need_room_to_talk() -> None:
    alone, shared = (memory.need(serve(tensor_parallel=n), of("7B")) for n in (1, 2))
    assert shared.context - alone.context == memory.NCCL_BYTES


def test_each_gpu_of_several_holds_its_part_and_all_parts_make_the_whole() -> None:
    shape = of("32B")
    whole, half = memory.need(serve(), shape), memory.need(serve(tensor_parallel=2), shape)
    assert half.kv_cache * 2 == whole.kv_cache
    assert half.weights == pytest.approx(whole.weights / 2, rel=0.001)
    assert shape.linear_on(2) * 2 == shape.linear


@pytest.mark.parametrize(
    ("change", "told"),
    [({"context": 40960}, "a context of 32,768 tokens, not 40,960"), ({"tensor_parallel": 3}, "cannot be shared by 3")],
)
def test_what_the_model_cannot_do_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        memory.need(serve(**change), of("7B"))


@pytest.mark.parametrize("change", [{"quantization": "fp8"}, {"kv_cache_dtype": "fp8"}, {"enforce_eager": True},
    {"context": 2048}, {"concurrency": 8}, {"tokens_per_request": 512}, {"tensor_parallel": 2}])  # fmt: skip
def test_what_a_remedy_changes_makes_the_need_smaller(change: dict[str, Any]) -> None:
    assert memory.need(serve(**change), of("14B")).total < memory.need(serve(), of("14B")).total + (
        memory.NCCL_BYTES if "tensor_parallel" in change else 0
    )


def test_captured_sizes_are_vllms() -> None:
    """As vLLM 0.22 logs them for 64 sequences: 1, 2, 4, then steps of 8 to 128."""
    assert memory.captured(serve(concurrency=64)) == [1, 2, 4, *range(8, 129, 8)]
    assert memory.captured(serve(concurrency=1024))[-1] == 512
    assert memory.captured(serve(concurrency=1)) == [1, 2]


def brute_force(loads: list[tuple[int, int]], budgets: list[int]) -> float | None:
    """The least largest share over every placement there is."""
    best = None
    for where in itertools.product(*(itertools.combinations(range(len(budgets)), count) for _, count in loads)):
        used = [0] * len(budgets)
        for (size, _), positions in zip(loads, where, strict=True):
            for n in positions:
                used[n] += size
        shares = [u / b for u, b in zip(used, budgets, strict=True)]
        if max(shares) <= 1 and (best is None or max(shares) < best):
            best = max(shares)
    return best


@pytest.mark.parametrize("budgets", [[10], [10, 10], [8, 12], [7, 7, 7], [5, 9, 13]])
@pytest.mark.parametrize(
    "loads", [[(3, 1)], [(5, 1), (5, 1), (4, 1)], [(6, 2), (3, 1)], [(4, 1), (4, 1), (4, 1), (2, 2)]]
)
def test_placement_is_the_best_there_is(loads: list[tuple[int, int]], budgets: list[int]) -> None:
    found, best = assign(loads, budgets), brute_force(loads, budgets)
    assert (found is None) == (best is None)
    if found is not None:
        used = [sum(size for (size, _), at in zip(loads, found, strict=True) if n in at) for n in range(len(budgets))]
        assert max(u / b for u, b in zip(used, budgets, strict=True)) == pytest.approx(best)
        assert assign(loads, budgets) == found, "the same again"


def test_shares_of_one_gpu_leave_the_headroom_free() -> None:
    found = plan([wish("0.5B"), wish("7B"), wish("14B")], cards(79.1), headroom=0.05)
    assert sum(server.need.total for server in found.servers) <= 0.95 * 79.1 * GIB
    assert sum(server.utilization for server in found.servers) < 0.95
    for server in found.servers:
        assert 0 < server.utilization < server.need.total / (79.1 * GIB)


def test_the_share_is_what_a_server_needs_of_its_largest_gpu_less_its_context() -> None:
    """vLLM wants so much of each of its GPUs to be free, and does not count the context."""
    (one,) = plan([wish("7B")], cards(24), headroom=0.05).servers
    assert one.utilization * 24 * GIB == pytest.approx(one.need.total - one.need.context, rel=1e-3)
    (both,) = plan([wish("7B", tensor_parallel=2)], cards(24, 48), headroom=0.05).servers
    assert both.utilization * 48 * GIB == pytest.approx(both.need.total - both.need.context, rel=1e-3)


def test_headroom_is_a_share_of_the_whole_gpu_not_of_what_is_free() -> None:
    assert Device(0, total=100, free=50).budget(0.1) == 40


def test_memory_that_others_hold_is_not_planned_with() -> None:
    busy = [Device(0, int(79.1 * GIB), int(40 * GIB))]
    assert plan([wish("7B")], busy, headroom=0.05)
    with pytest.raises(Unfit, match="the tiers do not fit"):
        plan([wish("14B"), wish("7B")], busy, headroom=0.05)


def remedied(told: str, wishes: list[Wish]) -> list[Wish]:
    """The wishes after doing what a remedy says."""
    what, _, names = told.partition(" for ")
    chosen = set(names.split(", "))
    key, _, value = what.partition(": ")
    update: dict[str, Any] = {key: True if value == "true" else value}
    return [Wish(w.tier, w.serve.model_copy(update=update) if w.tier in chosen else w.serve, w.shape) for w in wishes]


def test_a_plan_that_does_not_fit_is_refused_with_a_table_and_remedies_that_work() -> None:
    wishes = [wish("0.5B", concurrency=64), wish("7B", concurrency=64), wish("14B", concurrency=32)]
    with pytest.raises(Unfit) as refused:
        plan(wishes, cards(79.1), headroom=0.05)
    told = str(refused.value)
    assert "weights_gib" in told
    assert "14B" in told
    kinds = {remedy.split(":")[0] for remedy in refused.value.remedies}
    assert {
        "quantization",
        "kv_cache_dtype",
        "context",
        "concurrency",
        "fewer tiers",
        "1 more GPU with 79.1 GiB",
    } <= kinds
    for remedy in refused.value.remedies:
        if " for " in remedy:
            plan(remedied(remedy, wishes), cards(79.1), headroom=0.05)
    assert "fewer tiers: without 7B" in told or "fewer tiers: without 14B" in told
    plan(wishes, cards(79.1, 79.1), headroom=0.05)


def test_when_nothing_else_helps_the_gpu_that_would_do_is_named() -> None:
    wishes = [wish("32B", context=512, concurrency=1)]
    with pytest.raises(Unfit, match="any one of these would fit:\n  - 1 GPU with at least") as refused:
        plan(wishes, cards(4), headroom=0.05)
    (told,) = refused.value.remedies
    size = float(told.split()[-2])
    assert plan(wishes, cards(size), headroom=0.05)
    with pytest.raises(Unfit):
        plan(wishes, cards(size - 0.3), headroom=0.05)
    with pytest.raises(Unfit, match=r"2 GPUs with at least [\d.]+ GiB each"):
        plan([wish("32B", context=512, concurrency=1, tensor_parallel=2)], cards(4), headroom=0.05)


def test_a_remedy_changes_as_few_tiers_as_will_do() -> None:
    """Of a small and a large one that miss a little, the large one alone saves enough."""
    wishes = [wish("0.5B"), wish("7B"), wish("14B")]
    room = sum(w.need.total for w in wishes) / GIB
    with pytest.raises(Unfit) as refused:
        plan(wishes, cards(room), headroom=0.05)
    assert "quantization: fp8 for 14B" in refused.value.remedies
    assert "kv_cache_dtype: fp8 for 14B" in refused.value.remedies


def test_half_the_context_can_be_written_down() -> None:
    half = half_context(wish("7B", context=4096, tokens_per_request=3000))
    assert (half.context, half.tokens_per_request) == (2048, 2048)
    assert Serve.model_validate(half.model_dump()) == half


def test_doing_without_cuda_graphs_is_offered_where_that_suffices() -> None:
    wishes = [wish("0.5B", concurrency=256)]
    room = (wishes[0].need.total - wishes[0].need.graphs / 2) / GIB / 0.95
    with pytest.raises(Unfit) as refused:
        plan(wishes, cards(room), headroom=0.05)
    assert "enforce_eager: true for 0.5B" in refused.value.remedies
    assert plan([wish("0.5B", concurrency=256, enforce_eager=True)], cards(room), headroom=0.05)


def test_both_kinds_of_fp8_are_offered_where_neither_suffices_alone() -> None:
    wishes = [wish("14B", concurrency=64)]
    both = [wish("14B", concurrency=64, quantization="fp8", kv_cache_dtype="fp8")]
    room = (both[0].need.total / GIB + 0.5) / 0.95
    with pytest.raises(Unfit) as refused:
        plan(wishes, cards(room), headroom=0.05)
    assert "quantization: fp8 and kv_cache_dtype: fp8 for all tiers" in refused.value.remedies
    assert plan(both, cards(room), headroom=0.05)


def test_twenty_tiers_on_eight_different_gpus_are_placed_or_refused_without_trying_everything() -> None:
    """8 to the 20th placements would take the age of the universe; this test ends, or times out."""
    wishes = [wish(size) for _ in range(5) for size in ("0.5B", "1.5B", "3B", "7B")]
    wishes = [Wish(f"{n}-{w.tier}", w.serve, w.shape) for n, w in enumerate(wishes)]
    found = plan(wishes, cards(*(30 + n / 10 for n in range(8))), headroom=0.05)
    assert len(found.servers) == 20
    assert all(row["spare_gib"] >= 0 for row in found.gpu_rows())
    with pytest.raises(Unfit) as refused:
        plan(wishes, cards(*(20 + n / 10 for n in range(8))), headroom=0.05)
    (fewer,) = (remedy for remedy in refused.value.remedies if remedy.startswith("fewer tiers: without "))
    gone = fewer.removeprefix("fewer tiers: without ").split(", ")
    assert plan([w for w in wishes if w.tier not in gone], cards(*(20 + n / 10 for n in range(8))), headroom=0.05)
    small, large = ([Wish(f"{size}-{n}", serve(), of(size)) for n in range(12)] for size in ("0.5B", "7B"))
    room = sum(w.need.total for w in small) / GIB / 0.95 + 0.1
    with pytest.raises(Unfit, match=r"fewer tiers: without 7B-0(, 7B-\d+){11}\n"):
        plan([*small, *large], cards(room), headroom=0.05)


def planned(file: str, **changes: Any) -> launching.Launch:
    return launching.plan(configs.read(QWEN / file), dry=True, logs=Path("logs"), environ={})


PRESETS = {"one-24gb.yaml": 1, "one-80gb.yaml": 1, "one-141gb.yaml": 1, "two-80gb.yaml": 2}


def test_there_is_a_test_for_every_preset() -> None:
    assert {path.name for path in QWEN.glob("*.yaml")} == {*PRESETS, "cpu.yaml"}


@pytest.mark.parametrize(("file", "count"), PRESETS.items())
def test_every_preset_fits_its_gpus_and_uses_them_all(file: str, count: int) -> None:
    found = planned(file).plan
    assert isinstance(found, Plan)
    assert len(found.devices) == count
    assert {gpu for server in found.servers for gpu in server.gpus} == set(range(count))
    assert all(row["spare_gib"] >= 0 for row in found.gpu_rows())
    assert found.servers[-1].need.kv_tokens >= found.servers[-1].wish.serve.context


@pytest.mark.parametrize("file", PRESETS)
def test_every_server_of_a_preset_computes_confidence_itself(file: str) -> None:
    assert all(
        dict(itertools.pairwise(s.argv)).get("--middleware") == command.MIDDLEWARE for s in planned(file).servers
    )


@pytest.mark.parametrize("file", [*PRESETS, "cpu.yaml"])
def test_every_preset_passes_check(file: str) -> None:
    told = checking.check(QWEN / file, live=False)
    assert len(told["tiers"]) >= 3
    assert not any(row["withheld"] for row in told["tiers"])


def test_the_cpu_preset_fits_its_memory_and_a_smaller_machine_is_refused() -> None:
    launch = planned("cpu.yaml")
    assert [row["tier"] for row in launch.in_process] == ["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b"]
    config = configs.read(QWEN / "cpu.yaml")
    small = config.model_copy(update={"fleet": Fleet(host_memory_gib=8)})
    with pytest.raises(ConfigError, match="the models in this process do not fit its memory"):
        launching.plan(small, dry=True, logs=Path("logs"), environ={})


def test_commands_say_all_that_the_plan_and_the_gateway_depend_on() -> None:
    (placed,) = plan(
        [wish("7B", quantization="fp8", kv_cache_dtype="fp8", revision="abc")], cards(24), headroom=0.05
    ).servers
    told = command.server(
        placed,
        Fleet(),
        url="http://127.0.0.1:8104/v1",
        served_as="seven",
        api_key="env:KEY",
        top_k=40,
        plugin="/logs/python",
    )
    words = list(told.argv)
    assert words[:3] == ["vllm", "serve", "Qwen/Qwen2.5-7B-Instruct"]
    pairs = dict(itertools.pairwise(words))
    assert {
        "--port": "8104", "--served-model-name": "seven", "--revision": "abc", "--quantization": "fp8",
        "--kv-cache-dtype": "fp8", "--max-model-len": "4096", "--max-num-seqs": "16", "--block-size": "16",
        "--kv-cache-memory-bytes": str(placed.need.kv_cache), "--generation-config": "vllm",
        "--logprobs-mode": "raw_logprobs", "--max-logprobs": "40", "--shutdown-timeout": "30",
        "--middleware": command.MIDDLEWARE,
    }.items() <= pairs.items()  # fmt: skip
    assert "--enable-prefix-caching" in words
    assert 0 < float(pairs["--gpu-memory-utilization"]) <= 0.95
    assert told.env["CUDA_VISIBLE_DEVICES"] == "0"
    env = command.environment(told, {"KEY": "s3cret", "PYTHONPATH": "/site", "VLLM_API_KEY": "other"})
    assert env["VLLM_API_KEY"] == "s3cret"
    assert env["PYTHONPATH"] == "/logs/python:/site"
    assert "s3cret" not in command.shown(told)
    assert 'VLLM_API_KEY="$KEY"' in command.shown(told)


def test_a_server_on_two_gpus_is_told_so_and_what_else_was_written_for_it() -> None:
    fleet = Fleet(command=("python3", "-m", "vllm"), env={"HF_HUB_OFFLINE": "1"})
    written = {"tensor_parallel": 2, "enforce_eager": True, "batch_tokens": 2048, "dtype": "float16"}
    (placed,) = plan([wish("7B", **written)], [*cards(24, 24, 24)][1:], headroom=0.05).servers
    told = command.server(
        placed, fleet, url="http://127.0.0.1:80/v1", served_as="s", api_key=None, top_k=0, plugin=None
    )
    words = list(told.argv)
    assert words[:5] == ["python3", "-m", "vllm", "--model", "Qwen/Qwen2.5-7B-Instruct"]
    assert "--enforce-eager" in words
    assert {
        "--tensor-parallel-size": "2", "--max-num-batched-tokens": "2048", "--dtype": "float16",
    }.items() <= dict(itertools.pairwise(words)).items()  # fmt: skip
    assert told.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,2", "HF_HUB_OFFLINE": "1"}


def test_a_server_called_without_a_key_does_not_inherit_somebody_elses() -> None:
    (placed,) = plan([wish("0.5B")], cards(24), headroom=0.05).servers
    told = command.server(placed, Fleet(), url="http://[::1]:80/v1", served_as="s", api_key=None, top_k=0, plugin=None)
    assert "VLLM_API_KEY" not in command.environment(told, {"VLLM_API_KEY": "other"})
    assert (told.host, told.port) == ("::1", 80)


SMI = "0, GPU-aaaa1111, 143771, 143000\n1, GPU-bbbb2222, 81559, 500\n"


@pytest.mark.parametrize(
    ("visible", "found"), [(None, [0, 1]), ("1", [1]), ("GPU-aaaa", [0]), ("1,0", [0, 1]), ("", [])]
)
def test_only_visible_gpus_are_planned_with(visible: str | None, found: list[int]) -> None:
    devices = gpus.parse(SMI, visible)
    assert [device.index for device in devices] == found
    assert all(device.free < device.total for device in devices)


def test_gpus_that_are_there_overrule_what_the_file_says_of_them() -> None:
    present = gpus.parse(SMI, None)
    listed = Fleet.model_validate({"gpus": [{"index": 1, "memory_gib": 999}]})
    assert gpus.to_plan_for(listed, present) == [present[1]]
    assert gpus.to_plan_for(listed, [])[0].total == 999 * GIB
    with pytest.raises(ConfigError, match="lists GPU 3; there is: 0, 1"):
        gpus.to_plan_for(Fleet.model_validate({"gpus": [{"index": 3, "memory_gib": 9}]}), present)
    with pytest.raises(ConfigError, match="no GPU found"):
        gpus.to_plan_for(Fleet(), [])


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("flags: [--max-model-len=4096]", "serve.flags[0]: --max-model-len is set by the plan"),
        ("flags: [--max-model, '4096']", "serve.flags[0]: --max-model-len is set by the plan"),
        ("flags: [--no-enable_prefix_caching]", "serve.flags[0]: --enable-prefix-caching is set by the plan"),
        ("flags: [--ssl-keyfile=key.pem]", "serve.flags[0]: --ssl-keyfile is set by the plan"),
        ("flags: [--speculative-config, '{}']", "takes memory that the plan cannot foresee"),
        ("flags: [--load-format, dummy, -sc.num_speculative_tokens, '3']", "serve.flags[2]: -sc takes memory"),
        ("tokens_per_request: 9999", "serve.tokens_per_request: a request cannot hold more than the context"),
        ("contxt: 5", "did you mean 'context'"),
    ],
)
def test_mistakes_in_serve_are_told_with_file_and_line(tmp_path: Path, written: str, told: str) -> None:
    text = (QWEN / "one-24gb.yaml").read_text().replace("models/", f"{QWEN}/models/")
    path = tmp_path / "cascade.yaml"
    key = written.split(":")[0]
    old = re.search(rf"{key}: [^,}}]+", text)
    path.write_text(text.replace(*((old[0], written) if old else ("context: 2048", f"context: 2048, {written}")), 1))
    with pytest.raises(ConfigError) as refused:
        configs.read(path)
    assert re.match(rf"{re.escape(str(path))}:2[3-5]: tiers\[0\].serve", str(refused.value))
    assert told in str(refused.value)


def test_flags_that_the_plan_does_not_depend_on_are_passed_on() -> None:
    flags = ("--load-format", "dummy", "--no-async-scheduling", "--api-server-count", "2", "--tokenizer=./here")
    (placed,) = plan([wish("0.5B", flags=flags)], cards(24), headroom=0.05).servers
    told = command.server(
        placed, Fleet(), url="http://127.0.0.1:80/v1", served_as="s", api_key=None, top_k=0, plugin=None
    )
    assert told.argv[-len(flags) :] == flags


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://127.0.0.1:8101/v1", "write http://127.0.0.1:8101/v1, or leave serve: out"),
        ("http://127.0.0.1:8101", "write http://127.0.0.1:8101/v1, or leave serve: out"),
    ],
)
def test_a_url_where_no_server_of_ours_would_answer_is_refused(url: str, told: str) -> None:
    config = configs.read(QWEN / "one-24gb.yaml")
    engine = config.tiers[0].engine.model_copy(update={"url": url})
    other = config.model_copy(update={"tiers": (config.tiers[0].model_copy(update={"engine": engine}),)})
    with pytest.raises(ConfigError, match=re.escape(told)):
        launching.plan(other, dry=True, logs=Path("logs"), environ={})


def test_a_port_that_cannot_be_is_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text((QWEN / "one-24gb.yaml").read_text().replace("127.0.0.1:8101", "127.0.0.1:81010"))
    with pytest.raises(ConfigError, match=r"cascade\.yaml:\d+: tiers\[0\]\.engine\.url: .*Port out of range"):
        configs.read(path)


def test_what_a_broken_driver_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ConfigError, match=r"library version mismatch.*; repair the driver"):
        gpus.there_are({})
    with pytest.raises(ConfigError, match="cannot plan for such a GPU; start vLLM by hand"):
        gpus.parse("0, GPU-aaaa1111, [N/A], [N/A]", None)


def test_a_dry_run_prints_plan_and_commands_for_people_and_for_programs() -> None:
    code, out, _ = confgate_ends("up", str(QWEN / "two-80gb.yaml"), "--dry-run", "--json")
    assert code == 0
    told = json.loads(out)
    assert [row["tier"] for row in told["servers"]][-1] == "qwen2.5-32b"
    assert told["servers"][-1]["gpus"] == "0,1"
    code, out, _ = confgate_ends("up", str(QWEN / "two-80gb.yaml"), "--dry-run")
    assert code == 0
    assert all(line in out for line in told["commands"])


def test_a_cascade_that_up_has_nothing_to_do_for_is_told() -> None:
    code, _, err = confgate_ends("up", "deploy/pocket/cascade.yaml", "--dry-run")
    assert code == 1
    assert "no tier says how it is served" in err


def test_the_servers_python_finds_the_plugin_by_its_entry_point_and_nothing_else_of_ours(tmp_path: Path) -> None:
    for _ in range(2):  # a second start finds the first one's links
        launching.link_packages(tmp_path)
    program = (
        "import importlib.metadata as m, importlib.util as u, json; "
        "print(json.dumps([[e.value for e in m.entry_points(group='vllm.logits_processors')], "
        "u.find_spec('gateway.vllm_plugin.processor') is not None, u.find_spec('calibrators') is not None]))"
    )
    python = str(Path(sys.executable).resolve())  # the one that our environment was made from, without its packages
    told = subprocess.run(
        [python, "-S", "-c", program], env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads(told.stdout) == [[launching.PROCESSOR], True, False]


def test_a_tier_whose_confidence_comes_from_the_engine_gets_the_plugin_and_room_for_it() -> None:
    preset = configs.read(QWEN / "one-24gb.yaml")
    over_http = [
        tier.model_copy(update={"engine": tier.engine.model_copy(update={"confidence": "logprobs"})})
        for tier in preset.tiers
    ]
    without = preset.model_copy(update={"tiers": tuple(over_http)})
    with_plugin = preset.model_copy(update={"tiers": (preset.tiers[0], *over_http[1:])})
    plain, more = (launching.plan(c, dry=True, logs=Path("logs"), environ={}) for c in (without, with_plugin))
    assert "--middleware" in more.servers[0].argv
    assert more.servers[0].env["PYTHONPATH"] == str(Path("logs").resolve() / "python")
    assert "--middleware" not in more.servers[1].argv
    assert "PYTHONPATH" not in plain.servers[0].env
    assert plain.plan is not None
    assert more.plan is not None
    assert more.plan.servers[0].need.total - plain.plan.servers[0].need.total == memory.PLUGIN_BYTES


def test_a_tier_with_several_urls_gets_several_servers() -> None:
    config = configs.read(QWEN / "two-80gb.yaml")
    engine = config.tiers[0].engine.model_copy(
        update={"url": None, "urls": ("http://127.0.0.1:8111/v1", "http://127.0.0.1:8112/v1")}
    )
    twice = config.model_copy(update={"tiers": (config.tiers[0].model_copy(update={"engine": engine}),)})
    launch = launching.plan(twice, dry=True, logs=Path("logs"), environ={})
    assert [(server.tier, server.port) for server in launch.servers] == [
        ("qwen2.5-0.5b#1", 8111),
        ("qwen2.5-0.5b#2", 8112),
    ]
    assert {server.env["CUDA_VISIBLE_DEVICES"] for server in launch.servers} == {"0", "1"}
    again = twice.model_copy(update={"tiers": (*twice.tiers, config.tiers[1].model_copy(update={"engine": engine}))})
    with pytest.raises(ConfigError, match=r"the tier .*#1 and the tier .*#1 have the same port 8111"):
        launching.plan(again, dry=True, logs=Path("logs"), environ={})


@pytest.mark.parametrize(("room", "whose"), [("server", "gateway"), ("admin", "gateway's admin")])
def test_a_tier_where_the_gateway_will_listen_is_told_before_anything_is_loaded(room: str, whose: str) -> None:
    config = configs.read(QWEN / "one-24gb.yaml")
    at = configs.Admin(port=8101) if room == "admin" else config.server.model_copy(update={"port": 8101})
    clash = config.model_copy(update={room: at})
    told = rf"the {whose} and the tier qwen2\.5-0\.5b have the same port 8101; give one of them another"
    with pytest.raises(ConfigError, match=told):
        launching.plan(clash, dry=True, logs=Path("logs"), environ={})


def test_a_missing_config_of_a_model_stops_planning_and_not_serving(tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text((QWEN / "one-24gb.yaml").read_text())
    checking.check(path, live=False)
    with pytest.raises(ConfigError, match=r"tier qwen2\.5-0\.5b: cannot read .*config\.json: .*No such file"):
        launching.plan(configs.read(path), dry=True, logs=Path("logs"), environ={})
