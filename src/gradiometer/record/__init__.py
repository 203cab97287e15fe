"""The record: what the probe keeps on disk (frames), the folder it lives in (run), and the numbers read from it (trace)."""
