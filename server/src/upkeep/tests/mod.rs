//! What upkeep promises, on real stores with clocks of their own.

mod retention;
