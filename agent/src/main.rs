//! The `vsync` command.

fn main() -> std::process::ExitCode {
    vsync::cli::main()
}
