//! The `bayesteach` binary; everything is in the library.

#[global_allocator]
static ALLOCATOR: bayesteach::cli::Allocator = bayesteach::cli::Allocator;

fn main() -> std::process::ExitCode {
    bayesteach::cli::main()
}
