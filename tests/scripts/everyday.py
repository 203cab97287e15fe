"""A training, and around it everything a script could do that might notice a probe. Prints what it sees."""

import atexit
import copy
import gc
import hashlib
import inspect
import io
import pickle
import signal
import sys
import threading
import traceback
import warnings

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

EARLY = {"excepthook": sys.excepthook is sys.__excepthook__, "threads": len(threading.enumerate()), "gc": gc.get_threshold()}


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return len(buffer.getvalue())


def pickled(thing):
    again = pickle.loads(pickle.dumps(thing))
    return len(pickle.dumps(again)), digest(str(again.state_dict()).encode())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.cell = nn.GRUCell(32, 32)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        h = torch.relu(self.first(x))
        state = torch.zeros(len(x), 32)
        for _ in range(3):
            state = self.cell(h, state)
        return self.last(nn.functional.dropout(state, 0.1, self.training))


torch.manual_seed(0)
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)


@atexit.register
def farewell():
    print("farewell", pickled(model), pickled(optimizer), saved(model), len(threading.enumerate()))


for step in range(200):
    optimizer.zero_grad()
    x = torch.randn(32, 16)
    loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    if step % 20 == 0:
        print(step, loss.item(), norm.item())
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, sys.argv[1])

print("copies", pickled(copy.deepcopy(model)), pickled(copy.deepcopy(optimizer)))
clone = pickle.loads(pickle.dumps(optimizer))
print(sorted(vars(clone)), sorted(vars(optimizer)), sorted(vars(model)))

# what the wrapped functions look like from outside
functions = (
    torch.autograd.backward,
    torch.autograd.grad,
    torch.compile,
    clip_grad_norm_,
    torch.optim.Optimizer.__init__,
    torch.optim.AdamW.__init__,
    torch.amp.GradScaler.step,
    nn.Module.compile,
)
for f in functions:
    print(f.__module__, f.__qualname__, f.__name__, inspect.signature(f), digest(inspect.getsource(f).encode()))
assert torch.nn.utils.clip_grad_norm_ is torch.nn.utils.clip_grad.clip_grad_norm_ is clip_grad_norm_
for f in (torch.autograd.backward, torch.autograd.grad, torch.compile, clip_grad_norm_):
    assert pickle.loads(pickle.dumps(f)) is f


# errors that pass through them
def twice():
    total = model(torch.randn(2, 16)).sum()
    total.backward()
    total.backward()


def nonfinite():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.full((2,), float("nan"))
    clip_grad_norm_([parameter], 1.0, error_if_nonfinite=True)


def unused():
    torch.autograd.grad(torch.zeros(1, requires_grad=True).sum(), torch.zeros(1, requires_grad=True))


errors = (
    twice,
    nonfinite,
    unused,
    lambda: torch.optim.SGD([], 0.1),
    lambda: torch.optim.SGD(model.parameters(), -1.0),
    lambda: torch.compile(model, mode="no such mode"),
    lambda: torch.zeros(2, requires_grad=True).backward(),
    lambda: torch.autograd.backward(),
)
for error in errors:
    try:
        error()
    except Exception:  # noqa: BLE001
        print(traceback.format_exc())

# warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    h = model.train()(torch.randn(4, 16))
    saved(h)
    clip_grad_norm_((p for p in ()), 1.0)
    clip_grad_norm_(iter(list(model.parameters())), 1.0)
    clip_grad_norm_(parameters=model.parameters(), max_norm=1.0)
print([str(w.message) for w in seen], warnings.filters[:3])


# TorchScript knows torch.autograd.grad by its identity
def scripted(x: torch.Tensor) -> torch.Tensor:
    y = torch.autograd.grad([(x * x).sum()], [x])[0]
    assert y is not None
    return y


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    compiled = torch.jit.script(scripted)
    script_model = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)))
print(compiled(torch.ones(2, requires_grad=True)))
script_optimizer = torch.optim.SGD(script_model.parameters(), 0.1)
for _ in range(30):
    script_optimizer.zero_grad()
    script_model(torch.ones(2, 4)).sum().backward()
    script_optimizer.step()
print([p.sum().item() for p in script_model.parameters()])

print(EARLY, sys.excepthook is sys.__excepthook__, [t.name for t in threading.enumerate()], sys.path[:1], sys.argv[0])
print([(s.name, str(signal.getsignal(s))[:30]) for s in signal.Signals if s is not signal.SIGINT])


def last_words(kind, value, trace):
    print("last words:", kind.__name__, value, len(traceback.extract_tb(trace)))


sys.excepthook = last_words
raise RuntimeError("the end")
