//! The `bayesteach` binary; everything is in the library.

fn main() -> std::process::ExitCode {
    bayesteach::cli::main()
}
