"""Benchmarks: each with its baseline in the same run, results as JSON under bench/results/."""

import os

from engine.devices import prepare_environment

prepare_environment(os.environ)  # before torch is imported, as the server does
