"""A repository like nanoGPT: its own model.py, a Python config, prepared data, a checkpoint.

It handles no signals. Unlike nanoGPT it replaces its checkpoint instead of overwriting it, since on
a busy machine a test could otherwise kill it mid-write.
"""

from __future__ import annotations

from pathlib import Path

MODEL = 'NAME = "model of the folder"\n'

CONFIG = "max_iters = 5\n"

PREPARE = """\
import os
folder = os.path.dirname(__file__)
text = "to be or not to be"
with open(os.path.join(folder, "train.bin"), "w") as file:
    file.write(text)
with open(os.path.join(folder, "meta.pkl"), "w") as file:
    file.write("".join(sorted(set(text))))
print("prepared")
"""

TRAIN = """\
import os, sys, time
from model import NAME
max_iters, init_from, pause = 100, "scratch", 0.0
for word in sys.argv[1:]:
    if "=" not in word:
        exec(open(word).read())
    else:
        key, _, value = word.removeprefix("--").partition("=")
        globals()[key] = value if key == "init_from" else float(value)
iter_num = 0
assert open("data/letters/train.bin").read()
os.makedirs("out", exist_ok=True)
if init_from == "resume":
    iter_num = int(open("out/ckpt.pt").read())
    print(f"resuming at {iter_num}")
print(f"model: {NAME}")
while iter_num < max_iters:
    iter_num += 1
    time.sleep(pause)
    with open("out/.ckpt.pt", "w") as file:
        file.write(str(iter_num))
    os.replace("out/.ckpt.pt", "out/ckpt.pt")
    print(f"iter {iter_num}: loss 1.0")
print("done", file=sys.stderr)
"""

IGNORE = "__pycache__/\n*.bin\n*.pkl\n*.pt\n"


def make_folder(folder: Path) -> Path:
    """Write the repository's files, and return ``folder``."""
    files = {
        "model.py": MODEL,
        "config/short.py": CONFIG,
        "data/letters/prepare.py": PREPARE,
        "train.py": TRAIN,
        ".gitignore": IGNORE,
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder
