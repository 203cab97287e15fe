"""Three steps of a training, importing torch in a thread."""

import threading

thread = threading.Thread(target=lambda: __import__("torch"))
thread.start()
thread.join()
import torch  # noqa: E402

model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
print("done")
