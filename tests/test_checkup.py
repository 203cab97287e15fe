"""``gradiometer check``: a command is stopped before its first step and judged; exit status, formats, and why it could not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, torch
from torch import nn
torch.manual_seed(0)
act = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}[sys.argv[1] if len(sys.argv) > 1 else "sigmoid"]
depth = int(sys.argv[2]) if len(sys.argv) > 2 else 12
layers = [part for _ in range(depth) for part in (nn.Linear(32, 32), act())]
model = nn.Sequential(*layers, nn.Linear(32, 4))
opt = torch.optim.SGD(model.parameters(), lr=float(sys.argv[3]) if len(sys.argv) > 3 else 0.1)
x, y = torch.randn(64, 32), torch.randint(0, 4, (64,))
print("begins")
for step in range(5):
    opt.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    opt.step()
    open("stepped.txt", "a").write("x")
print("ended")
"""


def check(*words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gradiometer", "check", *words]
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    return tmp_path


def test_a_sick_command(script: Path) -> None:
    done = check("train.py", cwd=script)
    assert done.returncode == 1, done.stderr
    assert "SICK" in done.stdout
    assert "Each sigmoid layer multiplies the gradient by 0.14" in " ".join(done.stdout.split())
    assert "begins" in done.stderr  # its own output keeps out of ours
    assert "ended" not in done.stderr
    assert sorted(p.name for p in script.iterdir()) == ["train.py"]  # nothing of ours, nothing of a step


def test_a_well_command_as_json(script: Path) -> None:
    done = check("--format", "json", "train.py", "relu", "3", cwd=script)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["verdict"] == "well"
    assert told["command"][1:] == ["train.py", "relu", "3"]
    assert told["learning_rate"] is None
    assert told["layers"][0]["expected_log10_gradient"] is not None


def test_the_learning_rate_is_checked_on_demand(script: Path) -> None:
    done = check("--curvature", "--format", "json", "train.py", "relu", "2", "300", cwd=script)
    told = json.loads(done.stdout)
    assert told["learning_rate"]["learning_rate"] == 300.0
    assert told["learning_rate"]["largest_stable"] < 300.0
    assert [f["rule"] for f in told["findings"]] == ["learning-rate-ceiling"]
    assert done.returncode == 1


def test_a_page(script: Path) -> None:
    done = check("--format", "html", "-o", "page.html", "train.py", cwd=script)
    assert done.returncode == 1
    assert done.stdout.strip() == "page.html"
    assert "gradient-forecast" in (script / "page.html").read_text(encoding="utf-8")


def test_fail_on_warning(script: Path) -> None:
    (script / "flat.py").write_text(
        SCRIPT.replace('"sigmoid": nn.Sigmoid', '"sigmoid": nn.Tanh').replace(
            "opt =",
            "model[2].weight.data.mul_(28.0)\nopt =",  # one layer saturates for the most part
        ),
        encoding="utf-8",
    )
    strict = check("--fail-on", "warning", "--format", "json", "flat.py", "sigmoid", "3", cwd=script)
    told = json.loads(strict.stdout)
    assert [(f["rule"], f["severity"]) for f in told["findings"]] == [("saturated-units", "warning")]
    assert strict.returncode == 1
    assert check("flat.py", "sigmoid", "3", cwd=script).returncode == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("print('no torch here')", "never imported torch"),
        ("import torch\nprint(torch.ones(2))", "never called backward()"),
        ("import torch\nraise SystemExit(3)", "failed with status 3"),
        (
            "import torch\nw = torch.ones(3, requires_grad=True)\nopt = torch.optim.SGD([w], 0.1)\n(w * w).sum().backward()",
            "optimizer.step() was not reached",
        ),
        (
            "import torch\nm = torch.nn.Linear(4, 2, device='meta')\nm(torch.ones(3, 4, device='meta')).sum().backward()",
            "meta device",
        ),
        ("import time, torch\ntime.sleep(60)", "the first optimizer step had not come"),
    ],
    ids=["no torch", "no backward", "fails", "no optimizer", "meta", "too slow"],
)
def test_what_cannot_be_checked(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "train.py").write_text(text, encoding="utf-8")
    slow = ("--timeout", "4") if "sleep" in text else ()
    done = check(*slow, "train.py", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_usage_errors(tmp_path: Path) -> None:
    missing = check("nothere.py", cwd=tmp_path)
    assert missing.returncode == 2
    assert "There is no script nothere.py." in missing.stderr


def test_a_log_it_truncates_is_put_back_and_said(script: Path) -> None:
    (script / "log.txt").write_text("last night\n", encoding="utf-8")
    (script / "train.py").write_text('open("log.txt", "w").write("new")\n' + SCRIPT, encoding="utf-8")
    done = check("train.py", "relu", "2", cwd=script)
    assert (script / "log.txt").read_text(encoding="utf-8") == "last night\n"
    assert "Put back as it was before the check: " in done.stdout
    assert "log.txt" in done.stdout


def test_weights_updated_by_hand_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        """
import torch
torch.manual_seed(0)
ws = [torch.randn(32, 32).mul_(32 ** -0.5).requires_grad_() for _ in range(12)]
x = torch.randn(64, 32)
for step in range(3):
    h = x
    for w in ws:
        h = torch.sigmoid(h @ w)
    (h ** 2).mean().backward()
    with torch.no_grad():
        for w in ws:
            w -= 0.1 * w.grad
            w.grad = None
        open("stepped.txt", "w").write("x")
""",
        encoding="utf-8",
    )
    done = check("--format", "json", "train.py", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert told["verdict"] == "sick"
    assert "Each sigmoid layer" in told["why"]
    assert not (tmp_path / "stepped.txt").exists()


def test_a_closure_is_stopped_before_its_weights_move(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(32, 32), nn.Sigmoid())], nn.Linear(32, 4))
x, y = torch.randn(64, 32), torch.randint(0, 4, (64,))
opt = torch.optim.LBFGS(model.parameters())
calls = []
def closure():
    opt.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    calls.append(1)
    if len(calls) > 1:
        open("stepped.txt", "w").write("x")
    loss.backward()
    return loss
opt.step(closure)
""",
        encoding="utf-8",
    )
    done = check("--format", "json", "train.py", cwd=tmp_path)
    assert json.loads(done.stdout)["verdict"] == "sick"
    assert not (tmp_path / "stepped.txt").exists()


@pytest.mark.processes
def test_all_ranks_are_stopped(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        SCRIPT.replace(
            "opt =", "torch.distributed.init_process_group('gloo')\nmodel = nn.parallel.DistributedDataParallel(model)\nopt ="
        ),
        encoding="utf-8",
    )
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = check("--format", "json", "--", *launcher, "train.py", cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-2000:]
    assert json.loads(done.stdout)["verdict"] == "sick"
    assert not (tmp_path / "stepped.txt").exists()
