//! The place of the consistency suite; for now, the benchmarks: `make bench`.
