"""What each configuration of the Triton kernels takes of a GPU, by Triton's own compiler; no GPU is needed.

    python bench/gpu_resources.py
    python bench/gpu_resources.py --arch 80 --width 128

Registers of a thread (255 at most), bytes that did not fit into them (spilled, to slow memory), shared memory
of a block (227 KB at most on Hopper, 163 on an A100), and whether its matrix products are Hopper's
asynchronous ones (wgmma).
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # else Triton would hand out its interpreter's kernels
    os.environ.pop("TRITON_INTERPRET", None)
ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT)]

from lab.options import CheckedOptions, opt, parse_options, run_script  # noqa: E402

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import flash  # noqa: E402

# (name, kernel, configurations, whether completions share prompts)
KERNELS = [(name, flash.KERNELS[name], configs, False) for name, configs in flash.CONFIGS.items()]
KERNELS += [(f"{name}, prompts", kernel, configs, True) for name, kernel, configs, _ in KERNELS]
KERNELS += [
    ("decode, prompt", flash._decode_prompt, flash.DECODE[:1], False),
    ("decode, own", flash._decode_own, flash.DECODE[1:], False),
]
TYPES = {
    "*i32": "bounds prompts lengths",
    "*i64": "filled",
    "*fp32": "lse delta state",
    "i32": "T H K stride",
}


@dataclass(frozen=True)
class Options(CheckedOptions):
    arch: int = opt(90, "compute capability, times ten: 80 (A100), 89, 90 (H100, H200), 100, 120")
    width: int = opt(64, "head width D", flash.WIDTHS)
    dtype: str = opt("bf16", "bf16, fp16 or fp32", ("bf16", "fp16", "fp32"))
    first: bool = opt(False, "of each kernel only the first configuration")


def compile_one(kernel, config, prompts, o):
    """→ Triton's compiled kernel, specialised as for lengths and strides that 16 divides."""
    constants = {"D": o.width, "M": config[0], "N": config[1]}
    if not prompts and "prompts" in kernel.arg_names:
        constants["prompts"] = None
    types = {name: kind for kind, names in TYPES.items() for name in names.split()}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*" + o.dtype)
        for name in kernel.arg_names
    }
    place = kernel.arg_names.index
    aligned = [name for name, kind in signature.items() if kind[0] == "*" or name in ("T", "stride")]
    values = {(place(name),): value for name, value in constants.items()}
    source = ASTSource(
        kernel, signature, values, {(place(name),): [["tt.divisibility", 16]] for name in aligned}
    )
    options = {"num_warps": config[2], "num_stages": config[3]}
    return triton.compile(source, target=GPUTarget("cuda", o.arch, 32), options=options)


def main(argv=None):
    o = parse_options(Options, argv, description=__doc__.partition("\n\n")[0])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    print(f"Triton {triton.__version__}, sm_{o.arch}, D={o.width}, {o.dtype}")
    print(
        f"{'kernel':18}{'queries, keys, warps, stages':30}{'registers':>10}{'spilled':>10}{'shared KB':>11}{'wgmma':>7}"
    )
    for name, kernel, configs, prompts in KERNELS:
        for config in configs[:1] if o.first else configs:
            compiled = compile_one(kernel, config, prompts, o)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(compiled.asm["cubin"])
                file.flush()
                usage = subprocess.run(
                    [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
                ).stdout
            registers, spilled = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))
            wgmma = "yes" if "wgmma" in compiled.asm["ptx"] else "no"
            print(
                f"{name:18}{config!s:30}{registers:10}{spilled:10}{compiled.metadata.shared / 1024:11.0f}{wgmma:>7}"
            )


if __name__ == "__main__":
    run_script(main)
