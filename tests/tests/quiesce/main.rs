//! Applications stand still while their volume is read, and go on whatever happens.

mod bed;
mod database;
mod ends;
mod engine;
mod hooks;
mod moments;
mod states;
