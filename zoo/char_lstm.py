"""A character model: an LSTM over the prose that describes scikit-learn's data sets."""

import os

import torch
from sklearn import datasets
from torch import nn

LAYERS = int(os.environ.get("LAYERS", "2"))
SEQ, BATCH, HIDDEN = 48, 32, 96

torch.manual_seed(1234)
text = datasets.load_wine().DESCR + datasets.load_breast_cancer().DESCR + datasets.load_diabetes().DESCR
chars = sorted(set(text))
code = {c: i for i, c in enumerate(chars)}
data = torch.tensor([code[c] for c in text])
held_out = slice(4500, 5500)
train_data, valid_data = torch.cat([data[:4500], data[5500:]]), data[held_out]


class CharLSTM(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, 32)
        self.lstm = nn.LSTM(32, HIDDEN, num_layers=LAYERS, batch_first=True)
        self.decode = nn.Linear(HIDDEN, vocab)

    def forward(self, x, state=None):
        h, state = self.lstm(self.embed(x), state)
        return self.decode(h), state


def batch(source):
    starts = torch.randint(0, len(source) - SEQ - 1, (BATCH,))
    chunk = torch.stack([source[s : s + SEQ + 1] for s in starts])
    return chunk[:, :-1], chunk[:, 1:]


model = CharLSTM(len(chars))
loss_fn = nn.CrossEntropyLoss()
optim = torch.optim.Adam(model.parameters(), lr=4e-3)
for step in range(200):
    x, y = batch(train_data)
    logits, _ = model(x)
    loss = loss_fn(logits.reshape(-1, len(chars)), y.reshape(-1))
    optim.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optim.step()
    if step % 50 == 0:
        print(f"step {step}: {loss.item():.3f}")

model.eval()
with torch.no_grad():
    x, y = valid_data[:-1].unsqueeze(0), valid_data[1:].unsqueeze(0)
    logits, _ = model(x)
    valid = loss_fn(logits.reshape(-1, len(chars)), y.reshape(-1)).item()
print(f"valid loss {valid:.4f}")
