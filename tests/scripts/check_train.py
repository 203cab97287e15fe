"""A training that would save over its checkpoint however it ends: check_train.py [LOADER|no]."""

import atexit
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

checkpoint = Path("checkpoint.pt")


def save(why):
    Path(f"handler-{why}").touch()
    checkpoint.write_bytes(b"overwritten")


def on_signal(number, _frame):
    save(f"signal{number}")
    sys.exit(1)


def main():
    atexit.register(save, "atexit")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCONT):
        signal.signal(number, on_signal)
    log = Path("log.txt").open("w")  # noqa: SIM115  last night's log is gone
    log.write("epoch 0\n")
    log.flush()
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.save(model.state_dict(), "initial.pt")
    torch.save(model.state_dict(), "new.pt")
    data = TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
    workers = 2 if "loader" in sys.argv else 0
    try:
        for x, y in DataLoader(data, batch_size=8, num_workers=workers, persistent_workers=workers > 0):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            Path("stepped").touch()
    except KeyboardInterrupt:
        save("interrupt")
    finally:
        save("finally")


if __name__ == "__main__":
    main()
