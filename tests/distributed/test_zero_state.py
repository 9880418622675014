"""P10: a checkpoint belongs to no world size and no ZeRO stage, and each worker reads only what it owns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_workers
from tiny_engine import (
    allow_fp16_on_cpu,
    assemble,
    make_engine,
    make_model,
    train,
)
from torch import Tensor

from raytrain.checkpoint.index import RangeIndex
from raytrain.checkpoint.manifest import read_sidecar
from raytrain.checkpoint.ranges import BUFFER, FP32, MOMENTS, StateRange, StorageRangeReader, write_ranges
from raytrain.checkpoint.store import CheckpointStore, sidecar_name, write_sidecar
from raytrain.config import Precision
from raytrain.engine.engine import Engine
from raytrain.engine.zero_state import load_ranges, load_scaler_state, owned_ranges, scaler_state
from raytrain.errors import CheckpointError
from raytrain.storage import Storage

ZERO_STAGES = [0, 1, 2, 3]
WORLD_SIZES = [1, 2, 3]
SAVED_STEPS, NEXT_STEPS = 3, 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[int, int], list[float]]]:
    """Checkpoints of every world size and stage after three steps, and the losses of the five steps that followed."""
    root = tmp_path_factory.mktemp("checkpoints")
    losses = {}
    for world_size in WORLD_SIZES:
        results = run_workers(_save_all, world_size, str(root))
        for zero_stage in ZERO_STAGES:
            losses[world_size, zero_stage] = _total(result[zero_stage] for result in results)
    return root, losses


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_any_checkpoint_loads_at_any_size_and_stage(saved: Any, world_size: int) -> None:
    root, losses = saved
    results = run_workers(_load_all, world_size, str(root))
    for (zero_stage, source), _ in results[0].items():
        resumed = _total(result[zero_stage, source] for result in results)
        where = f"{source} (workers, ZeRO) -> {world_size} workers, ZeRO-{zero_stage}"
        assert resumed == pytest.approx(losses[source], rel=1e-5, abs=1e-6), where
    assert len(results[0]) == len(ZERO_STAGES) * len(losses)


def test_each_element_is_saved_once_and_nothing_else(saved: Any) -> None:
    root, _ = saved
    model = make_model()
    trained = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) < len(list(model.parameters())), "the model has frozen weights"
    for world_size in WORLD_SIZES:
        for zero_stage in ZERO_STAGES:
            files = [_parts(root, (world_size, zero_stage), rank) for rank in range(world_size)]
            for kind in (FP32, *MOMENTS):
                assert {name: len(t) for name, t in assemble(files, kind).items()} == trained
            assert assemble(files, BUFFER)["gain"].tolist() == [2.0, 2.0, 2.0]
            if world_size > 1 and zero_stage > 0:
                total = sum(trained.values())
                assert all(sum(len(p.tensors.get(FP32, [])) for p in file) < 0.8 * total for file in files)


def test_a_worker_reads_only_what_it_owns(saved: Any) -> None:
    """All workers together read each parameter byte once; the rest is the small buffer."""
    root, _ = saved
    for result in [run_workers(_bytes_read, 3, str(root))]:
        for zero_stage in ZERO_STAGES:
            data = sum(worker[zero_stage][0] for worker in result)
            assert data == result[0][zero_stage][1], f"ZeRO-{zero_stage}"


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_sixteen_bit_masters_come_back_bit_for_bit(tmp_path: Path, precision: Precision) -> None:
    """Saved at 2 workers, loaded at 1 and 3: masters and moments equal in every bit, the next losses nearly."""
    sources = run_workers(_save_16_bit, 2, str(tmp_path), precision)
    scaler, losses = sources[0]["scaler"], _total(source["losses"] for source in sources)
    for world_size in (1, 3):
        results = run_workers(_load_16_bit, world_size, str(tmp_path), precision)
        for zero_stage in (1, 2, 3):
            runs = [result[zero_stage] for result in results]
            for kind in (FP32, *MOMENTS):
                before = assemble([source["ranges"] for source in sources], kind)
                after = assemble([run["ranges"] for run in runs], kind)
                assert set(before) == set(after)
                assert all(torch.equal(before[name], after[name]) for name in before), f"ZeRO-{zero_stage} {kind}"
            assert all(run["scaler"] == scaler for run in runs)
            assert all(run["is_rounded"] for run in runs), "the 16-bit copies are the masters, rounded"
            assert _total(run["losses"] for run in runs) == pytest.approx(losses, rel=2e-3)


def test_owned_ranges_before_the_first_update_have_zero_moments() -> None:
    for result in run_workers(_untrained_moments, 2):
        assert result == dict.fromkeys(ZERO_STAGES, True)


def test_a_range_that_nobody_saved_is_named(saved: Any) -> None:
    root, _ = saved
    folder = Storage(str(root / "2-1"))
    first = read_sidecar(folder.read_bytes(sidecar_name(0))).files[0]
    reader = StorageRangeReader(folder, RangeIndex.of_files({first.name: first.ranges}))
    assert len(reader.read(FP32, "embedding.weight", 3, 40)) == 37
    with pytest.raises(CheckpointError, match=r"fp32 of hidden.weight: elements \[\d+, 77\) are in none"):
        reader.read(FP32, "hidden.weight", 0, 77)
    with pytest.raises(CheckpointError, match=r"fp32 of no.such: elements \[0, 1\)"):
        reader.read(FP32, "no.such", 0, 1)
    with pytest.raises(CheckpointError, match=r"no_kind of embedding.weight: elements \[0, 1\)"):
        reader.read("no_kind", "embedding.weight", 0, 1)
    missing = StorageRangeReader(folder, RangeIndex.of_files({"missing.safetensors": first.ranges}))
    with pytest.raises(CheckpointError, match=r"missing.safetensors can't be opened"):
        missing.read(FP32, "embedding.weight", 0, 1)


def test_the_files_are_ordinary_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    ranges = [
        StateRange("a", 2, {FP32: torch.arange(3.0), "exp_avg": torch.ones(3)}),
        StateRange("b", 0, {FP32: torch.empty(0)}),
    ]
    entry = write_ranges(Storage(str(tmp_path)), "x.safetensors", ranges)
    assert entry.num_bytes == (tmp_path / "x.safetensors").stat().st_size
    loaded = load_file(str(tmp_path / "x.safetensors"))
    assert set(loaded) == {"fp32:a:2", "exp_avg:a:2", "fp32:b:0"}
    assert loaded["fp32:a:2"].tolist() == [0.0, 1.0, 2.0]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda data: data[:-4],
    "pickle": lambda data: b"\x80\x04\x95" + data[3:],
    "length": lambda data: b"\xff" * 8 + data[8:],
    "header": lambda data: data.replace(b'{"fp32', b'["fp32'),
    "offsets": lambda data: data.replace(b"[0,12]", b"[4,12]"),
    "first range": lambda data: data[:-24] + b"\x01" + data[-23:],
    "last range": lambda data: data[:-1] + b"\x01",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_before_anything_is_loaded(tmp_path: Path, damage: str) -> None:
    """Wherever it is in the file: in what this worker would read, in what it would not, in the header."""
    store = CheckpointStore(Storage(str(tmp_path)))
    folder, name = store.folder(10), "zero-00000-of-00001.safetensors"
    written = write_ranges(folder, name, [StateRange(n, 0, {FP32: torch.arange(3.0)}) for n in "ab"])
    write_sidecar(folder, 0, "t", [written])
    store.commit(10, 1, {"step": 10}, "t")
    data = folder.read_bytes(name)
    damaged = DAMAGES[damage](data)
    assert damaged != data
    folder.write_bytes(name, damaged)
    with pytest.raises(CheckpointError, match=name):
        store.newest_good()


def test_a_file_that_was_cut_since_it_was_checked_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    written = write_ranges(folder, "x.safetensors", [StateRange("a", 0, {FP32: torch.arange(3.0)})])
    folder.write_bytes("x.safetensors", folder.read_bytes("x.safetensors")[:-4])
    reader = StorageRangeReader(folder, RangeIndex.of_files({"x.safetensors": written.ranges}))
    with pytest.raises(CheckpointError, match=r"x.safetensors ends early"):
        reader.read(FP32, "a", 0, 3)


def _total(losses_of_workers: Any) -> list[float]:
    return [sum(parts) for parts in zip(*losses_of_workers, strict=True)]


def _save(engine: Engine, root: str, zero_stage: int) -> None:
    folder = Storage(f"{root}/{engine.world_size}-{zero_stage}")
    written = write_ranges(folder, f"zero-{engine.world_rank}.safetensors", owned_ranges(engine))
    write_sidecar(folder, engine.world_rank, "t", [written])
    dist.barrier()


def _open(root: str, source: tuple[int, int], gap_bytes: int = 1 << 20) -> StorageRangeReader:
    folder = Storage(f"{root}/{source[0]}-{source[1]}")
    sidecars = [read_sidecar(folder.read_bytes(sidecar_name(rank))) for rank in range(source[0])]
    index = RangeIndex.of_files({file.name: file.ranges for sidecar in sidecars for file in sidecar.files})
    return StorageRangeReader(folder, index, gap_bytes)


def _parts(root: Path, source: tuple[int, int], rank: int) -> list[StateRange]:
    from safetensors.torch import load_file

    tensors = load_file(str(root / f"{source[0]}-{source[1]}" / f"zero-{rank}.safetensors"))
    keys = [(key.split(":"), tensor) for key, tensor in tensors.items()]
    return [StateRange(name, int(start), {kind: tensor}) for (kind, name, start), tensor in keys]


def _save_all(root: str) -> dict[int, list[float]]:
    losses = {}
    for zero_stage in ZERO_STAGES:
        engine = make_engine(zero_stage)
        engine.module.gain.fill_(2.0)
        train(engine, range(SAVED_STEPS))
        _save(engine, root, zero_stage)
        losses[zero_stage] = train(engine, range(SAVED_STEPS, SAVED_STEPS + NEXT_STEPS))
        engine.close()
    return losses


def _load_all(root: str) -> dict[tuple[int, tuple[int, int]], list[float]]:
    losses = {}
    for zero_stage in ZERO_STAGES:
        for source in [(world_size, stage) for world_size in WORLD_SIZES for stage in ZERO_STAGES]:
            engine = make_engine(zero_stage, model=make_model(seed=99))  # other weights: all must come from the files
            load_ranges(engine, _open(root, source), optimizer_step=SAVED_STEPS)
            losses[zero_stage, source] = train(engine, range(SAVED_STEPS, SAVED_STEPS + NEXT_STEPS))
            engine.close()
    return losses


def _bytes_read(root: str) -> dict[int, tuple[int, int]]:
    """Parameter bytes that this worker read, and those that there are."""
    counts = {}
    for zero_stage in ZERO_STAGES:
        engine = make_engine(zero_stage)
        reader = _open(root, (2, 1), gap_bytes=0)
        load_ranges(engine, reader, optimizer_step=SAVED_STEPS)
        buffer_bytes = 4 * engine.module.gain.numel()
        total = sum(12 * p.numel() for p in make_model().parameters() if p.requires_grad)
        counts[zero_stage] = reader.bytes_read - buffer_bytes, total
        engine.close()
    return counts


def _save_16_bit(root: str, precision: Precision) -> dict[str, Any]:
    allow_fp16_on_cpu()
    engine = make_engine(2, precision=precision)
    train(engine, range(SAVED_STEPS))
    _save(engine, root, 2)
    record = {"ranges": owned_ranges(engine), "scaler": scaler_state(engine)}
    record["losses"] = train(engine, range(SAVED_STEPS, SAVED_STEPS + NEXT_STEPS))
    return record


def _load_16_bit(root: str, precision: Precision) -> dict[int, dict[str, Any]]:
    allow_fp16_on_cpu()
    scaler = {"cur_scale": 256.0, "cur_iter": 3, "last_overflow_iter": -1, "cur_hysteresis": 2}
    records = {}
    for zero_stage in (1, 2, 3):
        engine = make_engine(zero_stage, model=make_model(seed=99), precision=precision)
        train(engine, range(1))  # a used engine: what ZeRO-3 has gathered of the old weights must go
        load_ranges(engine, _open(root, (2, 2)), optimizer_step=SAVED_STEPS)
        load_scaler_state(engine, scaler)
        record = {"ranges": owned_ranges(engine), "scaler": scaler_state(engine), "is_rounded": _is_rounded(engine)}
        record["losses"] = train(engine, range(SAVED_STEPS, SAVED_STEPS + NEXT_STEPS))
        records[zero_stage] = record
        engine.close()
    return records


def _is_rounded(engine: Engine) -> bool:
    import deepspeed

    full = engine.full_state_dict() or {}
    is_good = True
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=engine.zero_stage == 3):
            if full:
                is_good &= torch.equal(parameter.detach(), full[name].to(parameter.dtype))
    return is_good


def _untrained_moments() -> dict[int, bool]:
    def is_zero(tensor: Tensor) -> bool:
        return not tensor.any()

    records = {}
    for zero_stage in ZERO_STAGES:
        engine = make_engine(zero_stage)
        pieces = [piece for piece in owned_ranges(engine) if MOMENTS[0] in piece.tensors]
        records[zero_stage] = all(
            is_zero(piece.tensors[kind]) and len(piece.tensors[kind]) == len(piece.tensors[FP32])
            for piece in pieces
            for kind in MOMENTS
        )
        engine.close()
    return records
