//! The same binary with bugs in it, for the fault suite (`holdfast_store::planted`); built by `make planted` alone.

fn main() -> std::process::ExitCode {
    holdfast::main()
}
