"""Small trainings in every style the probe must survive. Each returns the module(s) whose weights it trained.

Plain PyTorch, deterministic given ``torch.manual_seed``; six steps or so, a few milliseconds each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

X = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(2))
STEPS = 6


def mlp(act: type[nn.Module] = nn.ReLU, depth: int = 4, out: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(16, 16), act()]
    return nn.Sequential(*layers, nn.Linear(16, out))


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor = X, y: Tensor = Y, steps: int = STEPS) -> nn.Module:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def sgd() -> nn.Module:
    model = mlp()
    return fit(model, torch.optim.SGD(model.parameters(), 0.1))


def fused_adamw() -> nn.Module:
    model = mlp()
    return fit(model, torch.optim.AdamW(model.parameters(), fused=True))


def bfloat16() -> nn.Module:
    model = mlp().bfloat16()
    return fit(model, torch.optim.SGD(model.parameters(), 0.1), X.bfloat16())


def lbfgs() -> nn.Module:
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    for _ in range(STEPS):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            return loss

        optimizer.step(closure)
    return model


def gan() -> nn.Module:
    generator, critic = mlp(out=16), mlp(out=1)
    for_generator, for_critic = torch.optim.Adam(generator.parameters()), torch.optim.Adam(critic.parameters())
    for _ in range(STEPS):
        fake = generator(torch.randn(32, 16))  # one forward pass, used by both losses
        loss = F.softplus(-critic(X)).mean() + F.softplus(critic(fake.detach())).mean()
        for_critic.zero_grad()
        loss.backward()
        for_critic.step()
        loss = F.softplus(-critic(fake)).mean()
        for_generator.zero_grad()
        loss.backward()
        for_generator.step()
    return nn.ModuleList([generator, critic])


def gradient_penalty() -> nn.Module:
    critic = mlp(nn.Tanh, out=1)
    optimizer = torch.optim.Adam(critic.parameters())
    for _ in range(STEPS):
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        loss = (slope.norm(dim=1) - 1).square().mean() + critic(X).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic


def by_hand() -> nn.Module:
    """No optimizer object, no module: raw tensors, functional activations, weights updated in place."""
    weights = [(0.3 * torch.randn(16, 16)).requires_grad_() for _ in range(6)]
    for _ in range(STEPS):
        h = X
        for w in weights:
            h = torch.sigmoid(h @ w)
        h.mean().backward()
        with torch.no_grad():
            for w in weights:
                assert w.grad is not None
                w -= 0.1 * w.grad
                w.grad = None
    return nn.ParameterList(weights)


def by_hand_with_grad() -> nn.Module:
    """No optimizer, no backward(): ``torch.autograd.grad`` and new tensors every step."""
    weights = [(0.3 * torch.randn(16, 16)).requires_grad_() for _ in range(6)]
    for _ in range(STEPS):
        h = X
        for w in weights:
            h = torch.tanh(h @ w)
        slopes = torch.autograd.grad(h.square().mean(), weights)
        weights = [(w - 0.1 * g).detach().requires_grad_() for w, g in zip(weights, slopes, strict=True)]
    return nn.ParameterList(weights)


def accumulate_and_clip() -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(STEPS):
        for k in range(0, 32, 8):
            (F.cross_entropy(model(X[k : k + 8]), Y[k : k + 8]) / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return model


def two_optimizers() -> nn.Module:
    model = mlp()
    parameters = list(model.parameters())
    first, second = torch.optim.SGD(parameters[:4], 0.1), torch.optim.Adam(parameters[4:])
    for _ in range(STEPS):
        first.zero_grad()
        second.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        first.step()
        second.step()
    return model


def step_in_backward() -> nn.Module:
    model = mlp()
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()  # type: ignore[index]
        optimizers[p].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for _ in range(STEPS):
        F.cross_entropy(model(X), Y).backward()
    return model


def _scaled(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> nn.Module:
    model = mlp()
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for i in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y) * (float("inf") if i == 3 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return model


def scaler() -> nn.Module:
    """Step 3 overflows and is skipped: no optimizer hook fires."""
    return _scaled(lambda m: torch.optim.SGD(m.parameters(), 0.1))


def scaler_fused() -> nn.Module:
    """Step 3 overflows: the hooks of a fused optimizer fire, the weights do not move."""
    return _scaled(lambda m: torch.optim.AdamW(m.parameters(), fused=True))


def inplace_conv() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(True), nn.Flatten()
    ).append(nn.Linear(8 * 16, 3))
    return fit(model, torch.optim.SGD(model.parameters(), 0.1), torch.randn(16, 1, 8, 8), Y[:16])


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([mlp(nn.GELU, 2) for _ in range(3)])
        self.back = nn.ModuleList([nn.Linear(3, 16) for _ in range(3)])
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        for i, (block, back) in enumerate(zip(self.blocks, self.back, strict=True)):
            x = back(F.relu(checkpoint(block, x, use_reentrant=bool(i % 2))))
        return self.head(x)


def checkpointing() -> nn.Module:
    model = Checkpointed()
    return fit(model, torch.optim.SGD(model.parameters(), 0.1))


class Hidden(torch.autograd.Function):
    """Runs a whole module out of autograd's sight, as reversible networks do."""

    @staticmethod
    def forward(ctx, x, module, *parameters):  # type: ignore[no-untyped-def]
        ctx.module = module
        ctx.save_for_backward(x)
        ctx.count = len(parameters)
        return module(x)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.module(x), gradient)
        return (x.grad, None, *([None] * ctx.count))


def hidden_in_function() -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(Hidden.apply(X.clone().requires_grad_(), model, *model.parameters()), Y).backward()
        optimizer.step()
    return model


def compiled() -> nn.Module:
    model = mlp()
    fit(torch.compile(model, backend="eager"), torch.optim.SGD(model.parameters(), 0.1))  # type: ignore[arg-type]
    return model


def per_example_gradients() -> nn.Module:
    """torch.func: no backward() at all, gradients assigned by hand."""
    from torch.func import functional_call, grad, vmap

    model = mlp()

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(STEPS):
        gradients = vmap(grad(loss), (None, 0, 0))(dict(model.named_parameters()), X, Y)
        for name, p in model.named_parameters():
            p.grad = gradients[name].mean(0).detach()
        optimizer.step()
    return model


def frozen_tied_unused() -> nn.Module:
    model = mlp()
    for p in model[:4].parameters():
        p.requires_grad_(False)
    model[6].weight = model[4].weight
    model.unused = nn.Linear(3, 3)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.net[:-1]:
                x = layer(x)
            return x

    return fit(Holder(), torch.optim.SGD(model.parameters(), 0.1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 16, 2, batch_first=True)
        self.cell = nn.GRUCell(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out, _ = self.lstm(self.embed(tokens))
        h = torch.zeros(tokens.shape[0], 16)
        for t in range(5):
            h = self.cell(out[:, t], h)
        return self.head(h)


def recurrent() -> nn.Module:
    model = Recurrent()
    return fit(model, torch.optim.Adam(model.parameters()), torch.randint(0, 50, (32, 5)))


def sparse_embedding() -> nn.Module:
    embed, head = nn.Embedding(50, 16, sparse=True), nn.Linear(16, 3)
    first, second = torch.optim.SparseAdam(embed.parameters()), torch.optim.SGD(head.parameters(), 0.1)
    tokens = torch.randint(0, 50, (32,))
    for _ in range(STEPS):
        first.zero_grad()
        second.zero_grad()
        F.cross_entropy(head(embed(tokens)), Y).backward()
        first.step()
        second.step()
    return nn.ModuleList([embed, head])


def autocast() -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
    return model


def step_that_raises() -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for i in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        if i == 2:
            with contextlib.suppress(ZeroDivisionError):
                optimizer.step(lambda: 1 / 0)
        optimizer.step()
    return model


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}


def dictionary_outputs() -> nn.Module:
    model = Outputs()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(X, Y)["loss"].backward()
        optimizer.step()
    return model


def evaluates_between_steps() -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(STEPS):
        fit(model, optimizer, steps=1)
        model.eval()
        with torch.no_grad():
            model(X)
        model.train()
    return model


TRAININGS: tuple[Callable[[], nn.Module], ...] = (
    sgd,
    fused_adamw,
    bfloat16,
    lbfgs,
    gan,
    gradient_penalty,
    by_hand,
    by_hand_with_grad,
    accumulate_and_clip,
    two_optimizers,
    step_in_backward,
    scaler,
    scaler_fused,
    inplace_conv,
    checkpointing,
    hidden_in_function,
    compiled,
    per_example_gradients,
    frozen_tied_unused,
    recurrent,
    sparse_embedding,
    autocast,
    step_that_raises,
    dictionary_outputs,
    evaluates_between_steps,
)
