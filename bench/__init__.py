"""Benchmarks: each with its baseline in the same run, results as JSON under bench/results/."""
