"""Without a GPU, Triton's kernels run in its interpreter: the same program, on the CPU.

Triton decides that when it is first imported, which transformers does, so this is imported before everything else.
"""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
