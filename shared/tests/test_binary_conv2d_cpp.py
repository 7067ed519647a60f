"""The C++ of the packed convolution by itself: memory errors natively, NEON under qemu."""

import shutil
import subprocess
from pathlib import Path

import pytest

import papers_shared.kernels

SOURCES = Path(papers_shared.kernels.__file__).parent / "csrc"
CHECK = Path(__file__).with_name("binary_conv2d_check.cpp")
FLAGS = ["-std=c++17", "-ffp-contract=off", f"-I{SOURCES}", str(CHECK)]


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_path_of_this_machine_is_right_and_keeps_to_its_memory(tmp_path):
    need("g++")
    run("g++", "-O1", "-fsanitize=address,undefined", *FLAGS, "-o", str(tmp_path / "check"))
    assert run(tmp_path / "check") == "0 wrong values\n"


def test_the_neon_path_is_right_under_qemu(tmp_path):
    need("aarch64-linux-gnu-g++", "qemu-aarch64")
    run("aarch64-linux-gnu-g++", "-O2", "-static", *FLAGS, "-o", str(tmp_path / "check"))
    assert run("qemu-aarch64", tmp_path / "check") == "0 wrong values\n"
