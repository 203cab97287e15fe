"""The record: what is written is what is read, whatever happens to the tail, and ranks merge."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradiometer
from gradiometer.errors import GradiometerError
from gradiometer.record import frames
from gradiometer.record.folder import create_folder, list_runs, write_info
from gradiometer.record.frames import LEDGER_SITE, SIGNALS, Flag, FrameWriter, Group, pack
from gradiometer.record.reading import last_step, read_trace

finite = st.floats(-1e30, 1e30, allow_nan=False)


def write(folder: Path, rank: int, rows: list[bytes], sites: list[str], cap: int = frames.DEFAULT_CAP) -> Path:
    path = folder / f"rank{rank}-{1000 + rank}.frames"
    writer = FrameWriter(path, {"rank": rank, "world_size": 2}, cap)
    for name in sites:
        writer.add_site({"model": "M", "place": "output", "name": name, "kind": "Linear", "role": "linear", "units": 4})
    writer.write_rows(rows)
    writer.close()
    return path


def output_row(step: int, site: int, count: float, sumsq: float, varying: float = math.nan) -> bytes:
    return pack(step, site, Group.OUTPUT, 0, [count, sumsq, varying])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 2), st.lists(finite, min_size=8, max_size=8)), max_size=30))
def test_what_is_written_is_read(rows: list[tuple[int, int, list[float]]]) -> None:
    unique = list({(step, site): (step, site, values) for step, site, values in rows}.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, 0, [pack(s, i, Group.OUTPUT, 0, v) for s, i, v in unique], ["a", "b", "c"])
        trace = read_trace(folder)
    assert trace.steps.tolist() == sorted({s for s, _, _ in unique})
    by_name = {s.name: i for i, s in enumerate(trace.sites)}
    columns = [s.name for s in SIGNALS if s.group is Group.OUTPUT]
    for step, site, values in unique:
        at = (int(np.searchsorted(trace.steps, step)), by_name["abc"[site]])
        assert [trace.values[c][at] for c in columns] == values


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400))
def test_a_torn_tail_is_ignored(kept: int) -> None:
    rows = [pack(step, LEDGER_SITE, Group.LEDGER, 0, [1.0 / (step + 1)]) for step in range(4)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder, 0, rows, ["a"])
        _, offset = frames.read_header(path)
        with path.open("r+b") as file:
            file.truncate(offset + kept)
        trace = read_trace(folder)
        whole = min(kept // frames.ROW.size, 4)
        assert trace.steps_seen == whole
        assert trace.ledger["loss"].tolist() == [1.0 / (s + 1) for s in range(whole)]
        assert last_step(folder) == whole - 1


def test_a_torn_site_table_hides_the_rows_that_need_it(tmp_path: Path) -> None:
    path = write(tmp_path, 0, [output_row(0, 0, 4, 1), output_row(0, 1, 4, 2)], ["a", "b"])
    table = frames.sites_path(path)
    table.write_bytes(table.read_bytes()[:-9])
    trace = read_trace(tmp_path)
    assert [s.name for s in trace.sites] == ["a"]


@pytest.mark.parametrize("kept", [0, 5, 11, 40])
def test_a_header_that_is_cut_is_said(kept: int, tmp_path: Path) -> None:
    path = write(tmp_path, 0, [], [])
    with path.open("r+b") as file:
        file.truncate(kept)
    with pytest.raises(GradiometerError, match=r"not a Gradiometer record|cut off inside its header"):
        read_trace(tmp_path)
    assert last_step(tmp_path) == -1


def test_another_format_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, 0, [], [])
    path.write_bytes(path.read_bytes().replace(b'"schema": 2', b'"schema": 9'))
    with pytest.raises(GradiometerError, match="record format 9; this version reads format 2"):
        read_trace(tmp_path)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 1e6), finite.map(abs), finite.map(abs)), min_size=2, max_size=2), st.booleans())
def test_ranks_merge_by_adding_and_in_any_order(parts: list[tuple[float, float, float]], swap: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rank, (count, sumsq, varying) in enumerate(reversed(parts) if swap else parts):
            write(folder, rank, [output_row(7, 0, count, sumsq, varying)], ["a"])
        trace = read_trace(folder)
    assert trace.ranks == 2
    got = [float(trace.values[c][0, 0]) for c in ("output_count", "output_sumsq", "output_varying")]
    assert got == pytest.approx([sum(column) for column in zip(*parts, strict=True)])


def test_merged_statistics_equal_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Two halves of a batch on two ranks give the signal of the whole."""
    x = np.random.default_rng(0).normal(size=(8, 4))
    for rank, half in enumerate((x[:3], x[3:])):
        write(tmp_path, rank, [output_row(0, 0, half.size, float((half**2).sum()))], ["a"])
    expected = 0.5 * math.log10(float((x**2).mean()))
    assert read_trace(tmp_path).log10_signal[0, 0] == pytest.approx(expected)


def test_losses_of_ranks_are_averaged_and_an_infinite_one_shows(tmp_path: Path) -> None:
    for rank, loss in enumerate((1.0, math.inf)):
        flag = Flag.NONFINITE if math.isinf(loss) else Flag.NONE
        rows = [pack(0, LEDGER_SITE, Group.LEDGER, 0, [2.0 + rank]), pack(1, LEDGER_SITE, Group.LEDGER, flag, [loss])]
        write(tmp_path, rank, rows, [])
    trace = read_trace(tmp_path)
    assert trace.ledger["loss"].tolist() == [2.5, math.inf]
    assert trace.ledger.has(Flag.NONFINITE).tolist() == [False, True]


def test_the_record_stays_below_its_cap_and_reaches_over_any_length(tmp_path: Path) -> None:
    """A writer that obeys its stride never fills the file, and the steps it keeps thin out like a logarithm."""
    cap = 2000 * frames.ROW.size
    writer = FrameWriter(tmp_path / "rank0-1.frames", {"rank": 0}, cap)
    kept: list[int] = []
    for step in range(1_000_000):
        if step % writer.stride == 0:
            writer.write_rows([pack(step, LEDGER_SITE, Group.LEDGER, 0, [0.0])])
            kept.append(step)
    writer.close()
    trace = read_trace(tmp_path)
    assert trace.ledger.step.tolist() == kept, "nothing was dropped"
    assert len(kept) < 1500, "ten doublings after the dense part take a quarter of the rest"
    gaps = np.diff(kept)
    assert (np.diff(gaps) >= 0).all()
    assert gaps.max() < 0.05 * kept[-1], "no gap is large beside the steps before it"


def test_a_run_folder(tmp_path: Path) -> None:
    folder = create_folder(tmp_path / "a", ["python", "train.py"], "0.0")
    run = gradiometer.load(folder)
    assert run.info["command"] == ["python", "train.py"]
    assert run.trace.steps_seen == 0
    assert list_runs(tmp_path) == [folder]
    with pytest.raises(GradiometerError, match="already holds a run"):
        create_folder(folder, [], "0.0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run.json"),
        ("{", "cannot be read"),
        ("[]", "record format nothing"),
        ('{"schema": 7}', "record format 7; this version reads format 2"),
    ],
)
def test_what_is_no_run_is_said(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(GradiometerError, match=message):
        gradiometer.load(tmp_path)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(GradiometerError, match="no run folder"):
        gradiometer.load(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GradiometerError, match="cannot be written"):
        create_folder(tmp_path / "file" / "run", [], "0.0")


def test_info_is_replaced_in_one_piece(tmp_path: Path) -> None:
    write_info(tmp_path, {"schema": 1, "a": 1})
    write_info(tmp_path, {"schema": 1, "a": 2})
    assert json.loads((tmp_path / "run.json").read_text())["a"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


# ---- chains: which sites may be compared --------------------------------------------------------------------------------


class Towers(nn.Module):
    """Two networks side by side that meet only in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.right = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


class Forked(nn.Module):
    """One trunk, two heads, the first layer frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trunk = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        h = torch.relu(self.trunk(self.frozen(x)))
        return [head(h) for head in self.heads]


def chains_of(model: nn.Module, folder: Path) -> list[list[str]]:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradiometer.watch(model, optimizer, out=folder, every=1):
        for _ in range(3):
            optimizer.zero_grad()
            outputs: tuple[Tensor, ...] = tuple(model(torch.randn(8, 4)))
            torch.stack([o.square().mean() for o in outputs]).sum().backward()
            optimizer.step()
    trace = gradiometer.load(folder).trace
    return [list(trace.names(c)) for c in trace.chains]


def test_networks_that_meet_only_in_the_loss_are_apart(tmp_path: Path) -> None:
    found = chains_of(Towers(), tmp_path / "run")
    assert sorted(found) == [["left.0", "left.1", "left.2"], ["right.0", "right.1", "right.2"]]


def test_one_trunk_with_two_heads_is_one_chain_with_its_frozen_front(tmp_path: Path) -> None:
    assert chains_of(Forked(), tmp_path / "run") == [["frozen", "trunk", "trunk > relu", "heads.0", "heads.1"]]


def test_names_carry_the_model_when_there_are_several(tmp_path: Path) -> None:
    encoder, decoder = nn.Sequential(nn.Linear(4, 2), nn.Tanh()), nn.Sequential(nn.Linear(2, 4))
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], 0.01)
    with gradiometer.watch(out=tmp_path / "run", every=1):
        for _ in range(2):
            optimizer.zero_grad()
            x = torch.randn(8, 4)
            (decoder(encoder(x)) - x).square().mean().backward()
            optimizer.step()
    trace = gradiometer.load(tmp_path / "run").trace
    assert [list(trace.names(c)) for c in trace.chains] == [["Sequential.0", "Sequential.1", "Sequential 2.0"]]
