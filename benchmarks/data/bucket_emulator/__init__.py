"""Imitates Google Cloud Storage on this machine, with its latency and its faults."""

from benchmarks.data.bucket_emulator.process import Emulator, forget_file_systems, running, upload
from benchmarks.data.bucket_emulator.store import Store

__all__ = ["Emulator", "Store", "forget_file_systems", "running", "upload"]
