"""The C++ core and its typed Python face: one step of a whole model over a flat batch, on a CPU."""

from smelt.native.formats import Integers, native_weights
from smelt.native.machine import MachineReport, machine_report, multiply_rate, read_bandwidth
from smelt.native.runner import NativeRunner

__all__ = [
    "Integers",
    "MachineReport",
    "NativeRunner",
    "machine_report",
    "multiply_rate",
    "native_weights",
    "read_bandwidth",
]
