"""Packages sparse_dset; the configurations of ``conf`` go inside the package.

The C++ kernels of ``csrc`` are built where PyTorch and a compiler are found; without them
everything runs on the reference operators. ``SPARSE_DSET_SANITIZE=1`` builds them with
AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = [Path("conf"), *sorted(p for p in Path("conf").rglob("*") if p.is_dir())]
CONF = [".".join(("sparse_dset", *folder.parts)) for folder in FOLDERS]

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]


def native() -> dict:
    """Returns the keywords of ``setup`` that build the kernels; none without PyTorch."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        print("sparse_dset: no PyTorch to build the C++ kernels against", file=sys.stderr)
        return {}

    class BuildIfPossible(BuildExtension):
        """Leaves the kernels out where they cannot be compiled."""

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                print(f"sparse_dset: C++ kernels are left out: {error}", file=sys.stderr)
                self.extensions.clear()

    sanitize = SANITIZE if os.environ.get("SPARSE_DSET_SANITIZE") == "1" else []
    extension = CppExtension(
        "sparse_dset._C",
        sorted(str(p) for p in Path("csrc").rglob("*.cpp")),
        # OpenMP's library is the one that PyTorch has loaded: it is not linked a second time.
        extra_compile_args=["-std=c++20", "-O3", "-fopenmp", "-Wall", *sanitize],
        extra_link_args=sanitize[:1],
        depends=sorted(str(p) for p in Path("csrc").rglob("*.h")),
    )
    build = BuildIfPossible.with_options(no_python_abi_suffix=True)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": build}}


setup(
    packages=[*find_packages(include=["sparse_dset", "sparse_dset.*"]), *CONF],
    package_dir={name: name.removeprefix("sparse_dset.").replace(".", "/") for name in CONF},
    package_data={
        "sparse_dset": ["weights/*.pt", "report/*.j2"],
        **{name: ["*.yaml"] for name in CONF},
    },
    **native(),
)
