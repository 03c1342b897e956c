//! Workloads and measurements shared by the benchmarks.
