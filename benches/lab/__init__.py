"""The parts of the benchmark: data, disks, tools, measuring, comparing, reporting."""
