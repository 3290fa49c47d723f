//! The binary as it is released.

fn main() -> std::process::ExitCode {
    holdfast::main()
}
