"""Embedded data: handwritten digits and the training script of ``gradiometer demo``.

The digits are those of scikit-learn: UCI Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998,
licensed CC BY 4.0.
"""

from pathlib import Path
from typing import Final

DEMO_SCRIPT: Final = Path(__file__).with_name("digits_train.py")
"""A plain PyTorch training: twenty sigmoid layers on digits."""
DEMO_DATA: Final = Path(__file__).with_name("digits.npz")
"""What it trains on; it looks for it beside itself."""
