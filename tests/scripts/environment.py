"""Prints everything a script can see of its interpreter. With an argument, after importing torch."""

import builtins
import gc
import os
import pathlib
import signal
import sys
import threading
import warnings

if len(sys.argv) > 1:
    import torch  # noqa: F401

frame, depth = sys._getframe(), 0
while frame.f_back is not None:
    frame, depth = frame.f_back, depth + 1
main = sys.modules["__main__"]
facts = {
    "main": sorted((k, str(v)) for k, v in vars(main).items() if k.startswith("__") and k != "__builtins__"),
    "frames": depth,
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "path": sys.path,
    "flags": str(sys.flags),
    "prefix": (sys.prefix, sys.exec_prefix, sys.executable),
    "modules": sorted(m for m in sys.modules if m.split(".")[0] not in ("gradiometer", "hmac", "secrets")),
    "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook),
    "trace": (sys.gettrace(), sys.getprofile(), threading.gettrace()),
    "path_hooks": len(sys.path_hooks),
    "importer_cache": sorted(p for p in sys.path_importer_cache if "/gradiometer" not in p),
    "finders": [getattr(f, "__name__", "") for f in sys.meta_path][-3:],
    "warnings": (warnings.filters, sys.warnoptions, warnings.showwarning.__module__),
    "signals": [(s, str(signal.getsignal(s))) for s in signal.Signals],
    "wakeup": signal.set_wakeup_fd(-1),
    "threads": [t.name for t in threading.enumerate()],
    "gc": (gc.get_threshold(), gc.isenabled(), len(gc.callbacks)),
    "files": sorted(str(p) for p in pathlib.Path("/proc/self/fd").iterdir()),
    "builtins": sorted(dir(builtins)),
    "recursion": sys.getrecursionlimit(),
    "environment": sorted((k, v) for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("GRADIOMETER_")),
    "umask": os.umask(0o22),
}
for key, value in facts.items():
    # addresses differ from run to run
    print(key, "=", " ".join(w for w in str(value).split(" ") if not w.startswith("0x")))
